"""The pages of docs/objectives are up to date, and the check notices when they are not."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "scripts" / "objective_pages.py"
PAGES = ROOT / "docs" / "objectives"


def _check(folder):
    command = [sys.executable, str(SCRIPT), "--check", "--folder", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_pages_are_up_to_date():
    done = _check(PAGES)
    assert done.returncode == 0, done.stderr


def _stale(folder):
    page = folder / "eksft.md"
    page.write_text(page.read_text(encoding="utf-8").replace("`0.2`", "`0.3`"), encoding="utf-8")


def _without_deviations(folder):
    page = folder / "dft.md"
    page.write_text(page.read_text(encoding="utf-8").replace("## Deviations", "## Notes"), encoding="utf-8")


SPOILT = {
    "stale": (_stale, "eksft.md: stale"),
    "missing": (lambda folder: (folder / "sft.md").unlink(), "sft.md: missing"),
    "left over": (lambda folder: (folder / "gone.md").write_text("# gone"), "gone.md: no such objective"),
    "no section on deviations": (_without_deviations, "dft.md: has no section"),
}


@pytest.mark.parametrize(("spoil", "message"), list(SPOILT.values()), ids=list(SPOILT))
def test_the_check_notices(spoil, message, tmp_path):
    folder = shutil.copytree(PAGES, tmp_path / "objectives")
    spoil(folder)
    done = _check(folder)
    assert done.returncode == 1
    assert message in done.stderr
