"""What a run writes to disk, said beforehand: against what it wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ballast.cli import app
from ballast.config.recipe import Recipe, load_recipe
from ballast.config.training import training_config
from ballast.pipeline import disk
from ballast.pipeline.disk import Sizes, Written, checkpoints_kept, shown_bytes, state_bytes, written
from tiny import char_tokenizer, tiny_model

GB = 10**9


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_model(hidden=32).save_pretrained("model")
    char_tokenizer().save_pretrained("model")
    rows = [{"prompt": f"{n}+1=", "completion": f"{n + 1}"} for n in range(16)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def recipe(**changes):
    training = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "per_device_train_batch_size": 4}
    return Recipe.from_dict(
        {
            "model": "model",
            "data": {"train": "rows.jsonl"},
            "objective": "sft",
            "output": "out",
            **changes,
            "training": {**training, **changes.get("training", {})},
        }
    )


def bytes_of(folder, *patterns):
    return sum(file.stat().st_size for pattern in patterns for file in Path(folder).glob(pattern))


EPOCHS = {"save_strategy": "epoch", "max_steps": -1, "num_train_epochs": 2, "per_device_train_batch_size": 8}
CASES = {
    "all weights": {},
    "epochs": {"training": EPOCHS},
    "bfloat16": {"model": {"path": "model", "dtype": "bfloat16"}},
    "LoRA": {"model": {"path": "model", "lora": {"r": 4, "target_modules": "all-linear"}}},
    "half": {"training": {"half": 0.5}},
    "sgd": {"training": {"optim": "sgd"}},
    "adafactor": {"training": {"optim": "adafactor"}},
    "weights alone": {"training": {"save_only_model": True}},
}


@pytest.mark.parametrize("case", CASES)
def test_checkpoints_are_as_large_as_was_said(place, case):
    from ballast.pipeline import run_train

    made = recipe(**CASES[case])
    said = []
    run_train(made, say=said.append, progress=False)
    args = training_config(made)
    found = written(made.model, args, 4, epochs=2, seed=made.seed)
    weights = bytes_of("out/checkpoint-4", "*.safetensors")
    state = bytes_of("out/checkpoint-4", "optimizer.pt")
    # Headers, names, and what optimisers keep once.
    assert found.sizes.weights <= weights <= found.sizes.weights + 8_000
    assert found.sizes.state <= state <= found.sizes.state + 24_000
    assert found.checkpoints == len(list(Path("out").glob("checkpoint-*"))) == 2
    assert sum(str(line).startswith(f"disk: {found.line()}; ") for line in said) == 1


@pytest.mark.parametrize(
    ("settings", "steps", "count"),
    [
        ({"save_strategy": "no"}, 100, 0),
        ({"save_strategy": "steps", "save_steps": 30}, 100, 4),
        ({"save_strategy": "steps", "save_steps": 0.25}, 100, 4),
        ({"save_strategy": "steps", "save_steps": 500}, 100, 1),
        ({"save_strategy": "steps", "save_steps": 10, "save_total_limit": 2}, 100, 3),
        ({"save_strategy": "steps", "save_steps": 50, "save_total_limit": 2}, 100, 2),
        ({"save_strategy": "epoch"}, 100, 3),
        ({"save_strategy": "best", "eval_strategy": "steps", "metric_for_best_model": "loss"}, 100, 1),
    ],
)
def test_as_many_checkpoints_are_counted_as_lie_there_at_once(settings, steps, count):
    args = training_config(Recipe.from_dict({"training": settings}))
    assert checkpoints_kept(args, steps, 3) == count


def test_what_optimisers_keep():
    assert [state_bytes(name, 4) for name in ("adamw_torch_fused", "adamw_8bit", "sgd", "lion_32bit", "new")] == [
        8,
        2,
        0,
        4,
        8,
    ]
    assert state_bytes("adamw_torch", 2) == 4


def test_it_is_said_in_words():
    assert Written(Sizes(GB)).line() == "the final model, 1.0 GB"
    assert Written(Sizes(GB, 2 * GB), 2).line() == (
        "2 checkpoints of 3.0 GB (weights 1.0 GB, optimiser's state 2.0 GB) and the final model, 1.0 GB: 7.0 GB in all"
    )
    assert [shown_bytes(one) for one in (999, 5 * 10**6, 1.5 * GB)] == ["999 bytes", "5 MB", "1.5 GB"]


def with_free(monkeypatch, count):
    monkeypatch.setattr(disk, "free_bytes", lambda _: count)


def test_a_run_that_does_not_fit_is_refused_before_weights_are_loaded(place, monkeypatch):
    words = ["train", "model=model", "data.train=rows.jsonl", "objective=sft", "output=out", "training.max_steps=2"]
    with_free(monkeypatch, 100_000)
    monkeypatch.setattr("ballast.models.load_model", None)
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("output: out: disk: 1 checkpoint of ")
    assert "training.save_total_limit" in line
    assert not Path("out").exists()


def test_what_lies_there_is_not_counted_again(place, monkeypatch):
    Path("out").mkdir()
    Path("out/weights").write_bytes(bytes(1000))
    with_free(monkeypatch, 500)
    assert disk.refuse_full(Path("out"), 1500, "x") == "disk: x; 500 bytes are free"
    with pytest.raises(ValueError, match="output: out: disk: x; 500 bytes are free: the disk would be full"):
        disk.refuse_full(Path("out"), 1501, "x")


def test_a_comparison_counts_the_models_that_stay(place, monkeypatch):
    from ballast.compare.disk import announced
    from ballast.compare.jobs import JobContext
    from ballast.compare.plan import Plan
    from ballast.records.folder import Store

    task = {"data": "rows.jsonl", "kind": "nll"}
    compare = {
        "objectives": ["sft", "dft"],
        "rates": [1e-4, 1e-3],
        "seeds": 3,
        "tuning_seeds": 1,
        "choose_by": {"task": "a", "metric": "nll"},
        "budget": {"steps": 2},
    }
    made = recipe(
        compare=compare, evaluation={"tasks": [{"name": "a", **task}, {"name": "b", **task}]}, objective="sft"
    )
    made = made.model_copy(update={"training": {}, "objective": None})
    size = written(made.model, training_config(made), 2).sizes.weights
    context = JobContext(Plan(made), Store(place / "out"), steps=2)
    with_free(monkeypatch, 8 * size)
    assert announced(context, 2) == f"disk: 6 models of {shown_bytes(size)}, {shown_bytes(8 * size)} in all; " + (
        f"{shown_bytes(8 * size)} are free"
    )
    with pytest.raises(ValueError, match="would be full before the end"):
        announced(context, 3)


def test_try_refuses_a_plan_that_does_not_fit(place, monkeypatch):
    from ballast.start import plan as planning
    from ballast.start.plan import Size

    monkeypatch.setattr(planning, "SIZES", (Size(1, 1, 2, 2, 0, 8, 0),))
    rows = [{"prompt": f"{n}+1=", "completion": f"{n + 1}"} for n in range(80)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with_free(monkeypatch, 100_000)
    done = CliRunner().invoke(app, ["init", "model", "rows.jsonl", "--output", "o"])
    assert done.exit_code == 2
    assert "--output: o: disk: " in done.stderr
    assert not Path("o").exists()
    with_free(monkeypatch, GB)
    assert CliRunner().invoke(app, ["init", "model", "rows.jsonl", "--output", "o"]).exit_code == 0
    assert load_recipe("o/recipe.yaml").model.path == "model"
