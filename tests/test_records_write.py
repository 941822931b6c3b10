"""What writes records: lines added and read back, and a full disk told from other errors by its number."""

import errno
import os
from pathlib import Path

import pytest

from ballast.errors import BallastError
from ballast.records.write import (
    RUST_ERRNO,
    append_jsonl,
    disk_full_as_error,
    is_disk_full,
    read_jsonl,
    unwritable_as_error,
)

RUST = "Error while serializing: I/O error: {} (os error {})"


def raised_from(error, cause, *, explicit=True):
    try:
        try:
            raise cause
        except Exception as inner:
            if explicit:
                raise error from inner
            raise error  # noqa: B904
    except Exception as outer:
        return outer


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.ENOSPC, "kein Platz"), True),
        (OSError(errno.EDQUOT, "quota"), True),
        (raised_from(RuntimeError("could not save"), OSError(errno.ENOSPC, "x")), True),
        (raised_from(RuntimeError("could not save"), OSError(errno.ENOSPC, "x"), explicit=False), True),
        (RuntimeError(RUST.format("No space left on device", errno.ENOSPC)), True),
        (RuntimeError(RUST.format("Disk quota exceeded", errno.EDQUOT)), True),
        (OSError(errno.EACCES, "denied"), False),
        (RuntimeError(RUST.format("Permission denied", errno.EACCES)), False),
        (RuntimeError("the file says: No space left on device"), False),
    ],
)
def test_a_full_disk_is_known_by_its_number_wherever_it_stands(error, full):
    assert is_disk_full(error) == full


def test_errors_that_caused_each_other_come_to_an_end():
    first, second = RuntimeError("a"), RuntimeError("b")
    first.__cause__, second.__cause__ = second, first
    assert not is_disk_full(first)


def test_the_library_of_the_weights_names_the_number_in_its_text(tmp_path):
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with pytest.raises((SafetensorError, OSError)) as caught:
        save_file({"weight": torch.zeros(4)}, tmp_path / "none" / "model.safetensors")
    assert int(RUST_ERRNO.search(str(caught.value))[1]) == errno.ENOENT


def test_only_a_full_disk_is_one_line_of_any_error_and_every_error_of_a_file_is_one_of_files():
    other = RuntimeError("of another\nkind")
    with pytest.raises(RuntimeError, match="of another\nkind"), disk_full_as_error(Path("out")):
        raise other
    said = r"^out: cannot be written \(\[Errno 13\] denied\)"
    with pytest.raises(BallastError, match=said), unwritable_as_error(Path("out")):
        raise OSError(errno.EACCES, "denied")


def test_lines_are_added_behind_those_that_are_there(tmp_path):
    path = tmp_path / "evals.jsonl"
    append_jsonl(path, [{"text": "one\u2028two"}])
    append_jsonl(path, [{"text": "three\x85"}])
    assert [row["text"] for row in read_jsonl(path)] == ["one\u2028two", "three\x85"]
    assert os.listdir(tmp_path) == ["evals.jsonl"]
