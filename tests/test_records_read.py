"""Stored files back as models: what comes through unchanged, and what is refused, naming file, line and key."""

import json
import subprocess
import sys

import pytest

from ballast.errors import BallastError
from ballast.records.read import read, read_lines
from ballast.records.schema import Estimate, EvalRecord, ItemRecord, LogRecord, RunRecord
from ballast.records.write import write_jsonl

RUN = {"schema": 1, "status": "finished", "recipe": {"seed": 7}, "cell": None}
ESTIMATE = {"value": 0.5, "n": 4, "low": 0.1, "high": 0.9, "level": 0.95, "method": "wilson"}
TASK = {"name": "test", "kind": "generate", "counts": {}, "settings": {}, "seconds": 1.0}


def evals(**estimate):
    return {"model": "base", "tasks": [{**TASK, "metrics": {"accuracy": {**ESTIMATE, **estimate}}}]}


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\r"])
def test_a_prompt_may_hold_what_other_programs_take_for_a_line_break(tmp_path, character):
    prompt = f"3 apples{character}4 pears"
    write_jsonl(tmp_path / "test.jsonl", [{"prompt": prompt, "scores": [1.0]}, {"prompt": "next", "scores": [0.0]}])
    assert [row.prompt for row in read_lines(tmp_path / "test.jsonl", ItemRecord)] == [prompt, "next"]


def test_what_was_stored_comes_back_the_same(tmp_path):
    path = tmp_path / "run.json"
    path.write_text(json.dumps(RUN))
    record = read(path, RunRecord)
    assert (record.schema_version, record.status, record.recipe) == (1, "finished", {"seed": 7})
    assert record.plain() == RUN


def test_numbers_keep_their_kind_and_their_last_digit(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 3, "loss": 0.30000000000000004, "kl": NaN, "note": "x"}\n')
    [log] = read_lines(path, LogRecord)
    assert (log.step, type(log.step), log.values["loss"], log.values["note"]) == (3, int, 0.1 + 0.2, "x")
    assert log.values["kl"] != log.values["kl"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"schema": 1, "status": "fin', r"run\.json: is not JSON \(.*column 28\), perhaps cut short"),
        ("[1, 2]", r"run\.json: holds \[1, 2\], not a record"),
        ("[" * 100_000, r"run\.json: is not JSON \(recursion limit"),
        ('{"status": "finished", "recipe": {}}', "has no `schema`, so another version of ballast wrote it"),
        (json.dumps({**RUN, "schema": 2}), "has `schema` 2, so another version of ballast wrote it"),
        (json.dumps({**RUN, "status": "done"}), r"status: should be 'running', .* got 'done'"),
        (json.dumps({**RUN, "speed": 1}), "speed is not a key"),
        (json.dumps({"schema": 1, "status": "running"}), "recipe is missing"),
        (json.dumps({**RUN, "cell": {"label": "sft", "rate": "fast", "seed": 1, "role": "report"}}), "cell.rate: "),
    ],
)
def test_a_file_that_is_no_record_is_refused_in_one_line(tmp_path, text, words):
    path = tmp_path / "run.json"
    path.write_text(text)
    with pytest.raises(BallastError, match=words) as caught:
        read(path, RunRecord, remedy="run it again")
    assert str(caught.value).startswith(f"{path}: ")
    assert str(caught.value).endswith("; run it again")
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < len(str(path)) + 200


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (evals(value=float("nan")), r"tasks\.0\.metrics\.accuracy\.value: should be a finite number; got nan"),
        (evals(high=float("inf")), r"tasks\.0\.metrics\.accuracy\.high: should be a finite number; got inf"),
        (evals(low=0.95), r"tasks\.0\.metrics\.accuracy: its interval goes from 0.95 down to 0.9"),
        (evals(n=None), r"tasks\.0\.metrics\.accuracy\.n: should be a valid integer; got None"),
        ({"model": "base", "tasks": "all"}, "tasks: should be a valid array; got 'all'"),
    ],
)
def test_a_wrong_value_is_refused_by_line_and_key(tmp_path, line, words):
    path = tmp_path / "evals.jsonl"
    write_jsonl(path, [evals(), line])
    with pytest.raises(BallastError, match=rf"evals\.jsonl:2: {words}"):
        read_lines(path, EvalRecord)


def test_a_line_that_is_cut_short_is_left_out_at_the_end_of_a_log_alone(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "lo')
    assert [log.step for log in read_lines(path, LogRecord, torn_end=True)] == [1]
    with pytest.raises(BallastError, match=r"metrics\.jsonl:2: is not JSON"):
        read_lines(path, LogRecord)
    path.write_text('{"step": 1, "lo\n{"step": 2}')
    with pytest.raises(BallastError, match=r"metrics\.jsonl:1: is not JSON"):
        read_lines(path, LogRecord, torn_end=True)


def test_a_file_that_is_not_there_has_no_lines_and_is_no_record(tmp_path):
    assert read_lines(tmp_path / "evals.jsonl", EvalRecord) == []
    with pytest.raises(BallastError, match="cannot be read") as caught:
        read(tmp_path / "run.json", RunRecord)
    assert isinstance(caught.value.__cause__, FileNotFoundError)


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "run.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BallastError, match="is not JSON"):
        read(tmp_path / "run.json", RunRecord)


def test_an_estimate_of_nothing_has_no_value():
    from ballast.evaluation.metrics import proportion

    assert Estimate.of(proportion(0, 0)) == Estimate(value=None, n=0, low=None, high=None, level=0.95, method="none")


@pytest.mark.parametrize("module", ["schema", "summary", "tokens", "read", "write", "folder", "runs", "model_card"])
def test_records_load_without_torch(module):
    heavy = "{'torch', 'transformers', 'trl', 'datasets'}"
    code = f"import sys, ballast.records.{module}; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
