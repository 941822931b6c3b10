import json
import subprocess
import sys

import pytest

from ballast.errors import BallastError
from ballast.evaluation import Task, evaluate, write_results
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
        "sampled": {"mean@4", "pass@1", "pass@4", "answer_tokens", "entropy", "base_kl"},
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


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"kind": "generat"}, "unknown kind 'generat'; did you mean 'generate'"),
        ({"temprature": 1}, "unknown option 'temprature'; did you mean 'temperature'"),
        ({"k": 8}, "pass@8 cannot be estimated from 1 samples"),
        ({"samples": 4}, "greedy answers are all the same"),
        ({"limit": 0}, "limit = 0"),
        ({"max_new_tokens": 2.5}, "max_new_tokens = 2.5"),
        ({"verifier": "exactt"}, "did you mean 'exact'"),
        ({"data": []}, "no rows"),
        ({"data": [{"question": "x", "answer": "y"}]}, "row 1: 'prompt' must be text"),
        ({"data": [SUMS[0], {"prompt": "x"}]}, "row 2: no 'answer'"),
        ({"base_kl": True}, "needs the base model"),
        ({"kind": "code", "data": CODE}, "1 programs written by the model would run"),
        ({"kind": "code", "data": SUMS, "allow_code_execution": True}, "row 1: 'test' must be text"),
        ({"kind": "choice"}, "row 1: no 'question'"),
        ({"kind": "nll", "data": [{"story": "x"}]}, "row 1: no 'text'"),
        ({"max_new_tokens": 500}, "task 'bad': row 1: prompt of 4 tokens"),
    ],
)
def test_bad_tasks_are_named_and_nothing_is_written(model, tokenizer, tmp_path, values, words):
    task = {"name": "bad", "kind": "generate", "data": SUMS, "max_new_tokens": 4, **values}
    with pytest.raises(BallastError, match=words) as error:
        evaluate(model, tokenizer, [task], output=tmp_path / "out.json", items=tmp_path / "items")
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_bad_later_task_stops_before_the_first_runs(tokenizer):
    with pytest.raises(BallastError, match="task 'second'"):
        evaluate(None, tokenizer, [quick(), {"name": "second", "kind": "choice", "data": SUMS}])
    with pytest.raises(BallastError, match="two tasks are named"):
        evaluate(None, tokenizer, [quick(), quick()])
    with pytest.raises(BallastError, match="'data' is missing"):
        evaluate(None, tokenizer, [{"name": "x", "kind": "nll"}])


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
