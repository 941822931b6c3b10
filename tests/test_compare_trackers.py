"""Trackers are told of a comparison's runs under names of their own, in one group, and of each run's end."""

import os
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest
from transformers import TrainerCallback
from transformers.integrations import integration_utils

from ballast.compare import trackers
from compare_tools import THEN, one_rate, run_quietly, write_inputs


@pytest.fixture
def told(monkeypatch):
    """A tracker with one run in a process at a time, as W&B is: what is told lands in the run that there is."""
    module, runs = ModuleType("wandb"), []
    module.__spec__, module.run = ModuleSpec("wandb", None), None

    def finish():
        module.run = None

    module.finish = finish

    class Callback(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            if module.run is None:
                module.run = {"name": args.run_name, "group": os.environ.get("WANDB_RUN_GROUP"), "losses": []}
                runs.append(module.run)

        def on_log(self, args, state, control, logs=None, **kwargs):
            module.run["losses"] += [logs["loss"]] if "loss" in logs else []

    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "wandb", Callback)
    monkeypatch.delenv("WANDB_RUN_GROUP", raising=False)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    return runs


def reporting(folder, output, report_to, **changes):
    recipe = one_rate(folder, output, seeds=1, **changes)
    return recipe.model_copy(update={"training": {**recipe.training, "report_to": report_to}})


def test_every_run_has_its_name_in_the_group(told, tmp_path):
    write_inputs(tmp_path)
    run_quietly(reporting(tmp_path, "sums", "wandb", objectives=["sft"], then=THEN))
    names = {"sft-lr0.001-s5", "sft-lr0.001-s5, RL", "base-s5, RL"}
    assert {run["name"] for run in told} == names
    assert len(told) == 3
    assert {run["group"] for run in told} == {"sums"}
    assert [len(run["losses"]) for run in told if "RL" not in run["name"]] == [2]
    assert "WANDB_RUN_GROUP" not in os.environ
    assert "MLFLOW_EXPERIMENT_NAME" not in os.environ


def test_a_run_that_breaks_off_leaves_nothing_behind(told, tmp_path):
    recipe = reporting(tmp_path, "out", ["wandb"])
    wandb = sys.modules["wandb"]

    def break_off():
        with trackers.tracked(recipe, "mine"):
            assert (os.environ["WANDB_RUN_GROUP"], os.environ["MLFLOW_EXPERIMENT_NAME"]) == ("mine", "mine")
            wandb.run = {}
            raise RuntimeError

    with pytest.raises(RuntimeError):
        break_off()
    assert wandb.run is None
    assert "WANDB_RUN_GROUP" not in os.environ


def test_what_is_there_already_stays(told, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_RUN_GROUP", "theirs")
    wandb = sys.modules["wandb"]
    wandb.run = own = {"name": "of the notebook"}
    with trackers.tracked(reporting(tmp_path, "out", "wandb"), "mine"):
        assert os.environ["WANDB_RUN_GROUP"] == "theirs"
    assert wandb.run is own
    assert os.environ["WANDB_RUN_GROUP"] == "theirs"


@pytest.mark.parametrize("nothing", ["none", [], ["none"], None])
def test_recipes_without_trackers_are_as_before(tmp_path, nothing):
    recipe = reporting(tmp_path, "out", nothing)
    assert trackers.named(recipe, "run", recipe) is recipe
    with trackers.tracked(recipe, "mine"):
        assert os.environ.get("WANDB_RUN_GROUP") != "mine"


def test_group_and_project(tmp_path):
    recipe = reporting(tmp_path, "sums", ["trackio"])
    assert trackers.named(recipe, "run", recipe).training["project"] == "sums"
    assert "project" not in trackers.named(reporting(tmp_path, "sums", "wandb"), "run", recipe).training
    own = recipe.model_copy(update={"training": {**recipe.training, "run_name": "mine", "project": "ours"}})
    assert trackers.group_of(own) == "mine"
    made = trackers.named(own, "run", own).training
    assert (made["project"], made["run_name"]) == ("ours", "run")


def test_tensorboard_has_a_file_in_every_run(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    write_inputs(tmp_path)
    run_quietly(reporting(tmp_path, "out", "tensorboard", objectives=["sft"]))
    files = list(Path(tmp_path / "out").rglob("events.out.tfevents*"))
    assert len({path.relative_to(tmp_path / "out").parts[:2] for path in files}) == 1
    assert all(path.stat().st_size for path in files)
