"""Real rows and a real pretrained model through the command line: score, train with every objective, evaluate."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ballast.cli import app
from ballast.objectives import list_objectives
from ballast.records import write as records

SETTINGS = (
    "data.train=svamp.jsonl",
    "training.max_steps=2",
    "training.per_device_train_batch_size=8",
    "training.learning_rate=1e-3",
    "training.max_length=256",
    "training.logging_steps=1",
    "training.gradient_checkpointing=false",
    "evaluation.base=false",
)


def run(*arguments: str) -> str:
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == 0, (done.output, done.exception)
    return done.stdout


@pytest.fixture
def workspace(real_data, tmp_path, monkeypatch) -> Path:
    """Word problems with the equation as the completion, some to train on and others to judge by evaluating it."""
    rows = [
        {
            "prompt": f"{row['Body']} {row['Question']}\n",
            "completion": row["Equation"],
            "answer": row["Answer"],
            "weight": 1,
        }
        for row in json.loads((real_data / "data" / "svamp" / "SVAMP.json").read_text())[:40]
    ]
    for name, part in (("svamp", rows[:24]), ("held", rows[24:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def settings(real_data) -> list[str]:
    tasks = [
        {"name": "svamp", "data": "held.jsonl", "verifier": "expression", "limit": 8, "max_new_tokens": 10},
        {
            "name": "stories",
            "kind": "nll",
            "data": str(real_data / "data/tinystories/tinystories_5k.jsonl"),
            "limit": 6,
        },
    ]
    return [f"model={real_data / 'models/stories260K'}", *SETTINGS, f"evaluation.tasks={json.dumps(tasks)}"]


GROUPS = "groups={verifier: expression, own: 2, max_new_tokens: 10}"
OWN = {
    **dict.fromkeys(("asft", "eksft", "gift", "kl-sft"), ("reference=model",)),
    **dict.fromkeys(("gft", "hpt", "luffy", "rift", "self-train"), (GROUPS,)),
    "irft": (GROUPS, "reference=round"),
}
"""What an objective needs in place of the cache."""


def test_every_objective_trains_and_is_measured(workspace, settings):
    run("score", *settings, "reference.cache=cache")
    losses = {}
    for info in list_objectives():
        own = OWN.get(info.name, ("reference.cache=cache",))
        run("train", *settings, f"objective={info.name}", *own, f"output={info.name}")
        steps = [line for line in records.read_jsonl(workspace / info.name / "metrics.jsonl") if "nll" in line]
        measured = records.read_jsonl(workspace / info.name / "evals.jsonl")
        assert [task["name"] for task in measured[0]["tasks"]] == ["svamp", "stories"]
        assert 0.5 < measured[0]["tasks"][1]["metrics"]["nll"]["value"] < 5
        losses[info.name] = [line["nll"] for line in steps]
    # The same rows in the same order before the first step, so the same likelihood whatever the objective; but IFT
    # reads mixed inputs, and groups have the model's own answers among them.
    first = [values[0] for name, values in losses.items() if name != "ift" and GROUPS not in OWN.get(name, ())]
    assert max(first) - min(first) < 1e-4
    assert losses["sft"][-1] < losses["sft"][0]
    assert len({round(values[-1], 5) for values in losses.values()}) > 2


def test_gsm8k_solutions_are_experts_beside_own_answers(workspace, real_data, settings):
    source = real_data / "data" / "gsm8k" / "train.jsonl"
    kept = [setting for setting in settings if not setting.startswith(("data.train", "training.max_length"))]
    run(
        "train",
        *kept,
        "data.limit=4",
        f"data.train={source}",
        # The verifier reads the solution's last number.
        'data.columns={prompt: question, completion: answer, answer: "{answer}"}',
        "training.max_length=512",
        "training.per_device_train_batch_size=2",
        "objective=gft",
        "groups={verifier: last-number, own: 2, max_new_tokens: 16}",
        "output=out",
    )
    steps = [line for line in records.read_jsonl(workspace / "out" / "metrics.jsonl") if "nll" in line]
    assert [line["expert/reward"] for line in steps] == [1, 1]
    assert all(line["own/reward"] < 1 for line in steps)
    assert all(line["expert/length"] > 20 for line in steps)


def test_gsm8k_rows_are_scored_once_and_read_again(workspace, real_data, settings):
    source = real_data / "data" / "gsm8k" / "train.jsonl"
    rows = [
        "data.limit=6",
        f"data.train={source}",
        "data.columns={prompt: question, completion: answer}",
        "training.max_length=512",
    ]
    kept = [setting for setting in settings if not setting.startswith("data.train")]
    printed = run("score", *kept, *rows, "reference.cache=cache")
    before = (workspace / "cache" / "manifest.json").read_bytes()
    run("train", *kept, *rows, "objective=prift-prob", "reference.cache=cache", "output=out")
    assert "cache: holds 6 rows" in printed
    assert (workspace / "cache" / "manifest.json").read_bytes() == before
