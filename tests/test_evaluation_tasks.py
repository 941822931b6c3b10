import copy
import json
import os
import pickle
import subprocess
import sys

import pytest

from ballast.errors import BallastError
from ballast.evaluation import Task, evaluate, write_results
from ballast.evaluation.tasks import CLASSES
from tiny import char_tokenizer, tiny_model

SUMS = [{"prompt": f"{a}+{b}=", "completion": str(a + b), "answer": str(a + b)} for a in range(3) for b in range(3)]
CHOICES = [{"question": "2+2", "options": ["4", "5"], "answer_idx": 0}] * 3
CODE = [{"prompt": "def f():\n", "test": "def check(f):\n    assert f() == 1\n", "entry_point": "f"}]
KINDS = {"generate": SUMS, "choice": CHOICES, "nll": [{"text": "hello"}, {"text": "you there"}], "code": CODE}


@pytest.fixture(scope="module")
def tokenizer():
    return char_tokenizer()


@pytest.fixture(scope="module")
def model():
    return tiny_model(1, initializer_range=0.2)


def quick(**changes):
    return Task(**{"name": "sums", "kind": "generate", "data": SUMS, "max_new_tokens": 4, **changes})


def test_results_of_every_kind(model, tokenizer, tmp_path):
    base = tiny_model(2, initializer_range=0.2)
    sampled = {"samples": 4, "temperature": 1.0, "k": [1, 4], "max_new_tokens": 4}
    tasks = [
        {"name": "greedy", "kind": "generate", "data": SUMS, "max_new_tokens": 4},
        {"name": "sampled", "kind": "generate", "data": SUMS, "entropy": True, "base_kl": True, **sampled},
        {"name": "choice", "kind": "choice", "data": CHOICES},
        {"name": "text", "kind": "nll", "data": KINDS["nll"], "base_kl": True},
        {"name": "demonstrations", "kind": "nll", "data": SUMS, "base_kl": True},
        {"name": "code", "kind": "code", "data": CODE, "allow_code_execution": True, **sampled},
    ]
    seen = []
    results = evaluate(
        model,
        tokenizer,
        tasks,
        base=base,
        output=tmp_path / "new" / "results.json",
        items=tmp_path / "items",
        extra={"model": "tiny"},
        progress=lambda name, done, total: seen.append((name, done, total)),
    )
    measured = {result.name: set(result.metrics) for result in results}
    assert measured == {
        "greedy": {"accuracy", "answer_tokens"},
        "sampled": {"mean@4", "pass@1", "pass@4", "maj@4", "answer_tokens", "entropy", "base_kl"},
        "choice": {"accuracy", "accuracy_per_token", "accuracy_per_character", "chance"},
        "text": {"nll", "bits_per_character", "perplexity", "entropy", "base_kl"},
        "demonstrations": {"nll", "entropy", "base_kl"},
        "code": {"mean@4", "pass@1", "pass@4", "answer_tokens"},
    }
    rows = {"greedy": 9, "sampled": 9, "choice": 3, "text": 2, "demonstrations": 9, "code": 1}
    for result in results:
        assert result.counts["rows"] == rows[result.name]
        assert all(estimate.n == rows[result.name] for estimate in result.metrics.values())
    written = json.loads((tmp_path / "new" / "results.json").read_text())
    assert written["model"] == "tiny"
    assert [task["name"] for task in written["tasks"]] == list(rows)
    assert "items" not in written["tasks"][0]
    items = [json.loads(line) for line in (tmp_path / "items" / "sampled.jsonl").read_text().splitlines()]
    assert [item["prompt"] for item in items] == [row["prompt"] for row in SUMS]
    assert all(len(item["completions"]) == len(item["scores"]) == 4 for item in items)
    assert {name for name, _, _ in seen} == set(rows)
    assert all(done <= total for _, done, total in seen)


def test_scores_belong_to_their_rows(model, tokenizer):
    """A verifier that is right for one row alone finds exactly that row."""
    first = evaluate(model, tokenizer, [quick()])[0]
    target = first.items[5]["completions"][0]["text"]
    rows = [{**row, "answer": target if i == 5 else "\x01"} for i, row in enumerate(SUMS)]
    result = evaluate(model, tokenizer, [quick(data=rows)])[0]
    assert [item["scores"] for item in result.items] == [[float(i == 5)] for i in range(9)]
    assert result.metrics["accuracy"].value == pytest.approx(1 / 9)
    assert evaluate(model, tokenizer, [quick(data=rows, limit=5)])[0].metrics["accuracy"].value == 0


def test_pass_at_k_from_scores(model, tokenizer):
    task = quick(samples=6, temperature=1.5, k=(1, 3), max_new_tokens=1)
    first = evaluate(model, tokenizer, [task])[0]
    rows = [{**r, "answer": item["completions"][0]["text"]} for r, item in zip(SUMS, first.items, strict=True)]
    result = evaluate(model, tokenizer, [quick(data=rows, samples=6, temperature=1.5, k=(1, 3), max_new_tokens=1)])[0]
    mean = sum(sum(item["scores"]) / 6 for item in result.items) / 9
    assert 0 < mean < 1
    assert result.metrics["mean@6"].value == pytest.approx(mean)
    assert result.metrics["pass@1"].value == pytest.approx(mean)
    assert result.metrics["pass@3"].value > mean


def test_own_entropy_is_that_of_the_model(tokenizer):
    """A model whose head is zero is uniform: entropy ln V, whatever it wrote."""
    import math

    import torch

    model = tiny_model(1, tied=False)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    result = evaluate(model, tokenizer, [quick(samples=2, temperature=1.0, entropy=True)])[0]
    assert result.metrics["entropy"].value == pytest.approx(math.log(model.config.vocab_size), rel=1e-5)


READ_BY_ALL = {"name", "title", "kind", "data", "split", "columns", "limit", "seed", "batch_tokens"}
SAMPLED = {"samples", "temperature", "top_p", "max_new_tokens", "k", "entropy", "base_kl", "stop"}
JUDGED = {"verifier", "verifier_seconds", "tolerance", "allow_code_execution"}
JUDGING = {"verifier": "exact", "verifier_seconds": 10.0, "tolerance": 0.01, "allow_code_execution": False}
READ = {
    "generate": SAMPLED | JUDGED | {"revise"},
    "code": SAMPLED | {"allow_code_execution", "code_seconds", "code_memory_mb"},
    "readiness": SAMPLED | JUDGED | {"group", "demonstrations", "forgetting"},
    "choice": {"style", "overlong"},
    "nll": {"context", "stride", "base_kl"},
    "lm-eval": {"tasks", "few_shot", "include_path", "batch_size"},
}
NEEDED = {"lm-eval": {"tasks": ("ifeval",)}}
"""Options that a kind cannot be without, and which take the place of rows."""


@pytest.mark.parametrize("kind", READ)
def test_a_kind_takes_the_options_that_it_reads_and_refuses_those_of_other_kinds(kind):
    asked = NEEDED.get(kind, {"data": "rows.jsonl"})
    assert set(Task("x", kind, **asked).settings()) == READ_BY_ALL | READ[kind]
    for key in set().union(*READ.values()) - READ[kind]:
        readers = ", ".join(other for other in CLASSES if key in READ[other])
        said = f"task 'x': {key}: is an option of kind {readers}; {kind} would ignore it, so leave it out"
        with pytest.raises(BallastError) as caught:
            Task("x", kind, **asked, **{key: "value"})
        assert str(caught.value) == said


COMMON = {"title": None, "data": None, "split": None, "columns": None, "limit": None, "seed": 0, "batch_tokens": 16384}
SAMPLING = {"top_p": 1.0, "max_new_tokens": 256, "stop": []}
DEFAULTS = {
    "generate": SAMPLING
    | {"samples": 1, "temperature": 0.0, "k": [], "entropy": False, "base_kl": False, "revise": None}
    | JUDGING,
    "code": SAMPLING
    | {"samples": 1, "temperature": 0.0, "k": [], "entropy": False, "base_kl": False}
    | {"allow_code_execution": False, "code_seconds": 10.0, "code_memory_mb": 1024},
    "readiness": SAMPLING
    | {"samples": 8, "temperature": 1.0, "k": [1, 8], "entropy": True, "base_kl": True}
    | {**JUDGING, "group": 8, "demonstrations": None, "forgetting": None},
    "choice": {"style": "text", "overlong": "refuse"},
    "nll": {"context": None, "stride": None, "base_kl": False},
    "lm-eval": {"tasks": ["ifeval"], "few_shot": None, "include_path": None, "batch_size": 8},
}


@pytest.mark.parametrize("kind", DEFAULTS)
def test_defaults_of_every_kind(kind):
    needed = NEEDED.get(kind, {})
    task = Task(name="x", kind=kind, data=SUMS, **needed)
    assert task.settings() == {"name": "x", "kind": kind, **COMMON, **DEFAULTS[kind]}
    assert Task("x", kind, SUMS, **{**dict.fromkeys(DEFAULTS[kind]), **needed}) == task


def test_a_task_is_of_the_class_of_its_kind():
    for kind, cls in CLASSES.items():
        needed = NEEDED.get(kind, {})
        made = Task("x", kind, SUMS, **needed)
        assert type(made) is cls
        assert isinstance(made, Task)
        assert (
            made
            == cls(name="x", data=SUMS, **needed)
            == Task.from_dict({"name": "x", "kind": kind, "data": SUMS, **needed})
        )
        assert pickle.loads(pickle.dumps(made)) == copy.deepcopy(made) == made
    assert Task(data="rows.jsonl").settings()["kind"] == "generate"
    assert Task(data="rows.jsonl").name == "rows.jsonl"


def test_rows_have_no_name():
    with pytest.raises(BallastError, match=r"^task '\?': name: is required and missing: rows have no name"):
        Task(data=SUMS)


def test_what_follows_from_other_options_follows_again_when_they_change():
    assert quick(samples=4, temperature=1.0).k == (4,)
    assert quick(samples=4, temperature=1.0, k=2).k == (2,)
    assert quick(samples=4, temperature=1.0).changed({"samples": 6}).k == (6,)
    ready = Task("ready", "readiness", SUMS)
    assert (ready.samples, ready.changed({"group": 4}).samples, ready.changed({"group": 4}).k) == (8, 4, (1, 4))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"kind": "generat"}, "kind: 'generat' is not allowed; did you mean 'generate'"),
        ({"temprature": 1}, "temprature: unknown key; did you mean 'temperature'"),
        ({"k": 8}, "pass@8 cannot be estimated from 1 samples"),
        ({"samples": 4}, "greedy answers are all the same"),
        ({"limit": 0}, "limit: should be greater than or equal to 1; got 0"),
        ({"max_new_tokens": 2.5}, "max_new_tokens: should be a valid integer; got 2.5"),
        ({"verifier": "exactt"}, "did you mean 'exact'"),
        ({"data": []}, "no rows"),
        ({"data": [{"question": "x", "answer": "y"}]}, "row 1: 'prompt' must be text"),
        ({"data": [SUMS[0], {"prompt": "x"}]}, "row 2: no 'answer'"),
        ({"base_kl": True}, "needs the base model"),
        ({"kind": "code", "data": CODE}, "1 programs written by the model would run"),
        ({"kind": "code", "data": SUMS, "allow_code_execution": True}, "row 1: 'test' must be text"),
        ({"kind": "choice"}, "row 1: no 'question'"),
        ({"kind": "nll", "data": [{"story": "x"}]}, "row 1: no 'text'"),
        (
            {"kind": "nll", "max_new_tokens": 4},
            "max_new_tokens: is an option of kind generate, code, readiness; nll would ignore it",
        ),
        ({"data": None}, "data: is required and missing"),
        ({"data": {"prompt": "x"}}, "data: must be rows or a source of them"),
        ({"max_new_tokens": 500}, "task 'bad': row 1: prompt of 4 tokens"),
    ],
)
def test_bad_tasks_are_named_and_nothing_is_written(model, tokenizer, tmp_path, values, words):
    task = {"name": "bad", "kind": "generate", "data": SUMS, **values}
    with pytest.raises(BallastError, match=words) as error:
        evaluate(model, tokenizer, [task], output=tmp_path / "out.json", items=tmp_path / "items")
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_bad_later_task_stops_before_the_first_runs(tokenizer, monkeypatch):
    model = tiny_model(1)
    monkeypatch.setattr(type(model), "forward", None)
    with pytest.raises(BallastError, match="task 'second'"):
        evaluate(model, tokenizer, [quick(), {"name": "second", "kind": "choice", "data": SUMS}])
    with pytest.raises(BallastError, match="would be kept in one file"):
        evaluate(model, tokenizer, [quick(), quick()])
    with pytest.raises(BallastError, match=r"^task 'x': data: is required and missing$"):
        evaluate(model, tokenizer, [{"name": "x", "kind": "nll"}])


def test_results_are_written_whole_or_not_at_all(model, tokenizer, tmp_path):
    path = tmp_path / "results.json"
    results = evaluate(model, tokenizer, [quick()], output=path)
    before = path.read_text()
    with pytest.raises(TypeError):
        write_results(path, results, extra={"bad": object()})
    with pytest.raises(ValueError):
        write_results(path, results, extra={"bad": float("nan")})
    assert path.read_text() == before
    assert [one.name for one in tmp_path.iterdir()] == ["results.json"]


def test_rows_from_a_file(model, tokenizer, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"q": row["prompt"], "answer": row["answer"]}) + "\n" for row in SUMS))
    task = quick(data=str(path), columns={"prompt": "q"}, limit=4)
    result = evaluate(model, tokenizer, [task])[0]
    assert [item["prompt"] for item in result.items] == [row["prompt"] for row in SUMS[:4]]
    assert result.settings["data"] == str(path)


def test_no_torch_until_something_runs():
    code = (
        "import sys, ballast.evaluation as e\n"
        "e.Task(name='a', kind='generate', data=[]), e.verifier('exact'), e.pass_at_k(2, 1, 1), e.evaluate\n"
        "print([m for m in ('torch', 'transformers', 'math_verify', 'scipy', 'sympy') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_every_public_name_resolves():
    import ballast.evaluation as evaluation

    assert all(getattr(evaluation, name) is not None for name in evaluation.__all__)
    with pytest.raises(AttributeError):
        _ = evaluation.nothing


def test_settings_have_one_order_in_every_process():
    """What a set has in between comes out in another order in every process, and with it the file."""
    code = (
        "import json; from ballast.evaluation.tasks import Task; "
        "task = Task('x', 'readiness', [], verifier='number', demonstrations=[], forgetting=[], group=4, seed=1); "
        "print(json.dumps(task.settings()), json.dumps(task.changed({'limit': 3}).to_dict()))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(found) == 1
