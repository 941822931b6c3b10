"""Runs that are killed at random moments end as if nothing had happened; scripts/kill_runs.py does it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts" / "kill_runs.py"


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks processes")
def test_ten_kills_over_every_verb():
    done = subprocess.run([sys.executable, str(SCRIPT), "--kills", "10"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("| `") == 5
