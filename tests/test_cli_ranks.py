"""`ballast train` in several processes: what it trains, a process that dies, going on, what is refused."""

from __future__ import annotations

import argparse
import json
import os
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import ballast
from ballast import checkpoints, sharding
from ballast.cli import app
from ballast.loop import resume_problem
from ballast.ranks import ALONE, Ranks, is_loss
from ballast.training.refusals import refuse_arguments, refuse_partitioned, refuse_unsharded
from sharded import SETTINGS
from test_training_ranks import NEEDS_DEEPSPEED, launch
from tiny import char_tokenizer, tiny_model
from training_tools import config, rows

LAUNCH = Path(__file__).parent.parent / "recipes" / "launch"
ROWS = 33
TRAINING = {
    "learning_rate": 0.01,
    "lr_scheduler_type": "constant",
    "num_train_epochs": 1,
    "logging_steps": 1,
    "gradient_checkpointing": False,
    "bf16": False,
    "save_strategy": "steps",
    "save_steps": 2,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model, 33 rows and a recipe: LoRA with prift-mass and the default reference, the README's main example."""
    folder = tmp_path_factory.mktemp("cli")
    tiny_model().save_pretrained(folder / "model")
    char_tokenizer().save_pretrained(folder / "model")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(ROWS)))
    lora = {"r": 2, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
    recipe = {
        "model": {"path": str(folder / "model"), "lora": lora},
        "data": {"train": str(folder / "rows.jsonl")},
        "objective": {"name": "prift-mass", "threshold": 0.02},
        "training": TRAINING,
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    return folder


def command(folder: Path, output: str, size: int, *more: str) -> list[str]:
    overrides = [f"output={folder / output}", f"training.per_device_train_batch_size={size}"]
    return ["train", str(folder / "recipe.yaml"), *overrides, *more]


def on_cpus(setting: str) -> list[str]:
    """Settings without which no processes find each other on CPUs."""
    return ["training.ddp_backend=gloo"] if setting.startswith("zero") else ["training.use_cpu=true"]


def ranks(folder: Path, output: str, setting: str, *more: str, count: int = 2, **environment: str):
    words = command(folder, output, 8 // count, *on_cpus(setting), *more)
    return launch(setting, *words, script="ranks_cli.py", ranks=count, **environment)


@pytest.fixture(scope="module")
def one_process(folder) -> Path:
    done = CliRunner().invoke(app, command(folder, "one", 8, "training.use_cpu=true"))
    assert done.exit_code == 0, done.stderr
    return folder / "one"


def check_equal(found: Path, wanted: Path) -> None:
    ours, theirs = (load_file(one / "adapter_model.safetensors") for one in (found, wanted))
    assert ours.keys() == theirs.keys()
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in theirs) < 2e-5


def test_a_process_that_dies_ends_the_others_and_leaves_nothing_half_written(folder):
    done = ranks(folder, "dies", "fsdp2", DIES_AT="4")
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if "another process of this run has ended" in line]
    last = folder / "dies" / "checkpoint-2"
    assert len(lines) == 1, done.stderr[-3000:]
    assert lines[0].startswith("process 0: ")
    assert lines[0].endswith(f"the same command with --resume goes on from {last}")
    assert checkpoints.what_is_wrong(last) is None
    left = {path.name for path in (folder / "dies").iterdir()}
    assert left <= {"checkpoint-2", "run.json", "metrics.jsonl", "evals.jsonl", "README.md", ".lock"}
    # FSDP's parts are no other run's.
    refused = CliRunner().invoke(app, [*command(folder, "dies", 8, "training.use_cpu=true"), "--resume"])
    assert refused.exit_code == 2
    assert "was written under FSDP2 and the run is under no sharding" in refused.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "setting", [pytest.param(name, marks=NEEDS_DEEPSPEED if name.startswith("zero") else ()) for name in SETTINGS]
)
def test_several_processes_train_what_one_does(folder, one_process, setting):
    done = ranks(folder, setting, setting)
    assert done.returncode == 0, done.stderr[-3000:]
    check_equal(folder / setting, one_process)
    assert json.loads((folder / setting / "run.json").read_text())["processes"] == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "setting", [pytest.param(name, marks=NEEDS_DEEPSPEED if name.startswith("zero") else ()) for name in SETTINGS]
)
def test_several_processes_fill_a_cache_and_train_with_it(folder, one_process, setting):
    done = ranks(folder, f"{setting}-cached", setting, f"reference.cache={folder / setting}.cache")
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"{folder / setting}.cache: holds {ROWS} rows" in done.stdout
    check_equal(folder / f"{setting}-cached", one_process)


def measured(folder: Path) -> list[dict]:
    """The tasks of each measurement of a run, without their seconds."""
    lines = (folder / "evals.jsonl").read_text().splitlines()
    return [task | {"seconds": 0} for line in lines for task in json.loads(line)["tasks"]]


@pytest.fixture(scope="module")
def tasks(folder) -> str:
    asked = [{"prompt": f"{n}+{n}=", "completion": str(2 * n), "answer": str(2 * n)} for n in range(9)]
    (folder / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    data = str(folder / "asked.jsonl")
    sums = {"name": "sums", "data": data, "verifier": "last-number", "max_new_tokens": 4, "batch_tokens": 64}
    return f"evaluation.tasks={json.dumps([sums, {'name': 'held-out', 'kind': 'nll', 'data': data}])}"


@pytest.fixture(scope="module")
def measured_alone(folder, tasks) -> list[dict]:
    done = CliRunner().invoke(app, command(folder, "measured", 8, "training.use_cpu=true", tasks))
    assert done.exit_code == 0, done.stderr
    return measured(folder / "measured")


@pytest.mark.slow
@pytest.mark.parametrize(
    "setting", ["ddp", "fsdp2", *(pytest.param(name, marks=NEEDS_DEEPSPEED) for name in ("zero2", "zero3"))]
)
def test_several_processes_measure_what_one_does(folder, tasks, measured_alone, setting):
    done = ranks(folder, f"{setting}-measured", setting, tasks)
    assert done.returncode == 0, done.stderr[-3000:]
    found = measured(folder / f"{setting}-measured")
    # Before training the same to the bit; afterwards the weights differ in their last one.
    assert found[:2] == measured_alone[:2]
    # A model that is sharded is not measured afterwards.
    wanted = measured_alone[2 : 2 if setting in ("fsdp2", "zero3") else 4]
    for ours, theirs in zip(found[2:], wanted, strict=True):
        values = [{name: one["value"] for name, one in task["metrics"].items()} for task in (ours, theirs)]
        assert values[0] == pytest.approx(values[1], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("setting", "count"), [("ddp", 4), ("fsdp2", 4)])
def test_another_number_of_processes_goes_on(folder, one_process, setting, count):
    name = f"{setting}-resumed"
    stopped = ranks(folder, name, setting, DIES_AT="4")
    assert stopped.returncode != 0
    done = ranks(folder, name, setting, "--resume", count=count)
    assert done.returncode == 0, done.stderr[-3000:]
    check_equal(folder / name, one_process)


@pytest.mark.slow
@NEEDS_DEEPSPEED
def test_another_number_of_processes_does_not_go_on_under_zero(folder):
    assert ranks(folder, "zero-resumed", "zero2", DIES_AT="4").returncode != 0
    done = ranks(folder, "zero-resumed", "zero2", "--resume", count=4)
    assert done.returncode != 0
    assert "holds the optimiser's state in 2 parts" in done.stderr


@pytest.mark.parametrize(
    ("sharded", "engine", "shared"),
    [(False, {}, True), (True, {}, False), (False, {"engine": {"kind": "vllm"}}, False)],
)
def test_ranks_share_what_a_run_measures(monkeypatch, sharded, engine, shared):
    """Unless one of them alone has the weights, or a server samples, which one of them starts."""
    from ballast.config.recipe import Recipe
    from ballast.pipeline import run

    def measure(*_, ranks=ALONE, **__):
        return ranks

    monkeypatch.setattr(run, "measure", measure)
    monkeypatch.setattr(run.models, "on_rank_0_alone", lambda: sharded)
    here = Ranks(0, 2)
    monkeypatch.setattr(run, "join", lambda: here)
    monkeypatch.setattr(Ranks, "first", lambda self, make: ("first", make()))
    recipe = Recipe.from_dict({"model": "m", "data": {"train": ["d"]}, **engine})
    tasks = argparse.Namespace(sample=True)
    one = run.Run(recipe, tasks, recipe.model, recipe.model, ("base", "trained"))
    assert one._measure(None, None, "base", None, recipe.model) == (here if shared else ("first", ALONE))


# What cannot be


class Plugin:
    """What transformers makes of a DeepSpeed configuration."""

    def __init__(self, stage: int, **zero: object) -> None:
        self.deepspeed_config = {"zero_optimization": {"stage": stage, **zero}}


def refused(tmp_path, message: str, **attributes: object) -> None:
    args = config(tmp_path)
    for name, value in attributes.items():
        setattr(args, name, value)
    with pytest.raises(ballast.BallastError, match=message) as found:
        refuse_arguments(args)
    assert "\n" not in str(found.value)


OFFLOAD = {"offload_optimizer": {"device": "cpu"}}


@pytest.mark.parametrize(
    ("message", "attributes", "installed"),
    [
        (r"training.parallelism_config is not supported: tensor, context", {"parallelism_config": object()}, None),
        (r"training.fsdp is not supported: FSDP1 flattens", {"fsdp_plugin_args": {"fsdp_version": 1}}, None),
        (r"ZeRO-3 without stage3_gather_16bit", {"deepspeed_plugin": Plugin(3)}, None),
        (r"DeepSpeed 0.18.9 with offload_optimizer drops", {"deepspeed_plugin": Plugin(2, **OFFLOAD)}, "0.18.9"),
        (r"DeepSpeed 0.16.4 with offload_optimizer drops", {"deepspeed_plugin": Plugin(1, **OFFLOAD)}, "0.16.4"),
    ],
)
def test_what_does_not_shard_is_refused(tmp_path, monkeypatch, message, attributes, installed):
    if installed is not None:
        monkeypatch.setattr(sharding, "version", lambda package: installed)
    refused(tmp_path, message, **attributes)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"ACCELERATE_USE_FSDP": "true"}, "training.fsdp is not supported: FSDP1"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, "training.fsdp is not supported: FSDP1"),
        ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, "training.parallelism_config is not supported"),
    ],
)
def test_what_a_launcher_asks_for_is_refused(tmp_path, monkeypatch, environment, message):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    refused(tmp_path, message)


def test_tensor_parallelism_of_deepspeed_is_refused(tmp_path):
    plugin = Plugin(2)
    plugin.deepspeed_config["tensor_parallel"] = {"autotp_size": 2}
    refused(tmp_path, "tensor parallelism .autotp_size. splits the head", deepspeed_plugin=plugin)


@pytest.mark.parametrize("installed", ["0.19.0", "0.19.8", "1.0.0"])
def test_offload_that_keeps_gradients_is_not_refused(monkeypatch, installed):
    monkeypatch.setattr(sharding, "version", lambda package: installed)
    args = argparse.Namespace(deepspeed_plugin=Plugin(2, **OFFLOAD))
    assert list(sharding.refusals(args)) == []


def test_zero3_that_offloads_has_always_kept_gradients(monkeypatch):
    monkeypatch.setattr(sharding, "version", lambda package: "0.16.0")
    plugin = Plugin(3, stage3_gather_16bit_weights_on_model_save=True, **OFFLOAD)
    assert list(sharding.refusals(argparse.Namespace(deepspeed_plugin=plugin))) == []


def test_sharding_that_accelerate_leaves_out_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    with pytest.raises(ballast.BallastError, match="FSDP2 was asked for, and accelerate leaves it out here"):
        refuse_unsharded(config(tmp_path), fsdp=False, deepspeed=False)
    refuse_unsharded(config(tmp_path), fsdp=True, deepspeed=False)


def test_a_model_that_is_in_parts_already_is_refused():
    model = tiny_model()
    refuse_partitioned(model)
    weight = next(model.parameters())
    weight.ds_id, weight.ds_status = 0, argparse.Namespace(name="NOT_AVAILABLE")
    with pytest.raises(ballast.BallastError, match=r"loaded in parts \(zero.Init\)"):
        refuse_partitioned(model)


def test_deepspeed_that_is_absent_is_named(folder, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setattr("ballast.packages.find_spec", lambda name: None)
    done = CliRunner().invoke(app, [*command(folder, "absent", 8), "--dry-run"])
    assert done.exit_code == 2, done.exception
    assert "training.deepspeed: not possible: True needs the package deepspeed" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("begun", "kind", "count", "message"),
    [
        ({"sharding": "zero2", "ranks": 2}, "zero2", 4, "in 2 parts, one a process, and DeepSpeed cannot divide"),
        ({"sharding": "", "ranks": 2}, "fsdp2", 2, "was written under no sharding .* the run is under FSDP2"),
        ({"sharding": "zero2", "ranks": 2}, "zero3", 2, "under ZeRO-2 and the run is under ZeRO-3"),
    ],
)
def test_checkpoints_that_cannot_be_gone_on_from(begun, kind, count, message):
    assert re.search(message, resume_problem(begun, kind, count))


@pytest.mark.parametrize(
    ("begun", "kind", "count"),
    [
        ({}, "fsdp2", 3),
        ({"sharding": "", "ranks": 2}, "", 1),
        ({"sharding": "fsdp2", "ranks": 2}, "fsdp2", 8),
        ({"sharding": "zero3", "ranks": 2}, "zero3", 2),
    ],
)
def test_checkpoints_that_can(begun, kind, count):
    assert resume_problem(begun, kind, count) is None


def test_only_the_loss_of_another_process_is_one(monkeypatch):
    gone = RuntimeError("[../gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:4242")
    assert not is_loss(gone)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert is_loss(gone)
    assert is_loss(RuntimeError("Watchdog caught collective operation timeout"))
    assert not is_loss(RuntimeError("shapes do not match"))


def test_whole_weights_leave_the_environment_as_it_was(monkeypatch):
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    with sharding.loaded_whole():
        assert os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "false"
    assert os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "true"


@pytest.mark.parametrize("path", sorted(LAUNCH.glob("*.yaml")), ids=lambda path: path.stem)
def test_ready_configurations_say_what_the_tests_run(path, monkeypatch):
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    assert load_config_from_file(str(path)).num_processes == 8
    monkeypatch.setattr("accelerate.commands.launch.is_deepspeed_available", lambda: True, raising=False)
    words = ["--config_file", str(path), "-m", "ballast.cli", "train"]
    args, defaults, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    zero = path.stem.startswith("zero")
    args.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
    found = prepare_deepspeed_cmd_env(args)[1] if zero else prepare_multi_gpu_env(args)
    wanted = {name: value for name, value in SETTINGS[path.stem].items() if name != "ACCELERATE_USE_CPU"}
    # Read whole whatever it says; the tests' own setting says otherwise on purpose.
    wanted.pop("FSDP_CPU_RAM_EFFICIENT_LOADING", None)
    if path.stem == "zero2":
        wanted.pop("ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL")
    assert {name: found.get(name) for name in wanted} == wanted


def test_no_weight_is_seen_as_finite_that_is_not():
    from ballast.loop import _finite

    assert _finite(torch.ones(2))
    assert not _finite(torch.tensor([1.0, float("nan")]))
