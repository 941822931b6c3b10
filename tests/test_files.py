"""Folders for a while: gone with their block, and those of killed processes with the next one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from ballast.files import temporary_folder

HOLD = """
import sys, time
from ballast.files import temporary_folder
with temporary_folder("copy-", sys.argv[1]) as place:
    (place / "weights").write_bytes(bytes(1000))
    print(place, flush=True)
    time.sleep(600)
"""


def test_a_folder_goes_with_its_block_whatever_ends_it(tmp_path):
    def broken():
        with temporary_folder("copy-", tmp_path / "new") as place:
            (place / "weights").touch()
            assert place.stat().st_mode & 0o077 == 0
            raise KeyError

    with pytest.raises(KeyError):
        broken()
    assert list((tmp_path / "new").iterdir()) == []


def test_what_a_killed_process_left_goes_and_what_a_living_one_holds_stays(tmp_path):
    (tmp_path / "copy-of-mine").mkdir()
    held = [subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True) for _ in "ab"]
    try:
        dead, living = (process.stdout.readline().strip() for process in held)
        held[0].send_signal(signal.SIGKILL)
        held[0].wait()
        assert os.path.isdir(dead)
        with temporary_folder("copy-", tmp_path) as place:
            assert place.is_dir()
            assert not os.path.exists(dead)
            assert os.path.isdir(living)
    finally:
        for process in held:
            process.kill()
            process.wait()
            process.stdout.close()
    assert {one.name for one in tmp_path.iterdir()} == {
        "copy-of-mine",
        os.path.basename(living),
        os.path.basename(living) + ".lock",
    }


def test_two_at_once_do_not_take_each_others(tmp_path):
    with temporary_folder("copy-", tmp_path) as first, temporary_folder("copy-", tmp_path) as second:
        assert first != second
        assert first.is_dir()
        assert second.is_dir()
