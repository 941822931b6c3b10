"""Every tracker of docs/recipe.md without a network: what its package keeps of runs, their names, group and losses."""

import json
import os
import sqlite3
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from compare_tools import THEN, one_rate, write_inputs

NAMES = {"sft-lr0.001-s5", "sft-lr0.001-s5, RL", "base-s5, RL"}


def tensorboard(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = {}
    for path in (folder / "sums").rglob("events.out.tfevents*"):
        events = EventAccumulator(str(path)).Reload()
        config = json.loads(events.Tensors("args/text_summary")[0].tensor_proto.string_val[0])
        found[config["run_name"]] = [one.value for one in events.Scalars("train/loss")]
    return found


def wandb(folder):
    from wandb.proto.wandb_internal_pb2 import Record

    found = {}
    for path in folder.rglob("run-*.wandb"):
        losses, name = [], None
        for record in map(Record.FromString, records(path.read_bytes())):
            if record.HasField("run"):
                name = record.run.display_name
                assert record.run.run_group == "sums"
            for item in record.history.item:
                if "train/loss" in (item.key, *item.nested_key):
                    losses.append(json.loads(item.value_json))
        found[name] = losses
    return found


def records(data, block=32768, header=7):
    """Yield the records of a file of W&B, a log as LevelDB's: parts with checksum, size and kind, in blocks."""
    place, parts = header, b""
    while place + 7 <= len(data):
        if block - place % block < 7:
            place += block - place % block
            continue
        _, size, kind = struct.unpack_from("<IHB", data, place)
        parts += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):
            yield parts
            parts = b""


def mlflow(folder):
    from mlflow import MlflowClient

    client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    (experiment,) = (one for one in client.search_experiments() if one.name != "Default")
    assert experiment.name == "sums"
    runs = client.search_runs([experiment.experiment_id])
    assert {run.info.status for run in runs} == {"FINISHED"}
    return {
        run.info.run_name: [one.value for one in client.get_metric_history(run.info.run_id, "loss")] for run in runs
    }


def trackio(folder):
    found = {}
    with sqlite3.connect(folder / "trackio" / "sums.db") as kept:
        for name, metrics in kept.execute("SELECT run_name, metrics FROM metrics ORDER BY step"):
            found.setdefault(name, []).extend(v for k, v in json.loads(metrics).items() if k == "train/loss")
    return found


@pytest.mark.parametrize("read", [tensorboard, wandb, mlflow, trackio])
def test_a_tracker_has_every_run_of_a_comparison(read, tmp_path, monkeypatch):
    pytest.importorskip(read.__name__, reason=f"{read.__name__} is not installed")
    for name, value in {
        "WANDB_MODE": "offline",
        "WANDB_DIR": str(tmp_path),
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db",
        "TRACKIO_DIR": str(tmp_path / "trackio"),
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
    }.items():
        monkeypatch.setenv(name, value)
    write_inputs(tmp_path)
    recipe = one_rate(tmp_path, "sums", seeds=1, objectives=["sft"], then=THEN)
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    # A process of its own: packages read where to write when they are imported.
    words = ["compare", "recipe.yaml", f"training.report_to={read.__name__}", "--jobs", "1"]
    done = subprocess.run([sys.executable, "-m", "ballast.cli", *words], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = read(tmp_path)
    assert set(found) == NAMES
    logged = map(json.loads, next((tmp_path / "sums").rglob("sft*/metrics.jsonl")).read_text().splitlines())
    assert found["sft-lr0.001-s5"] == pytest.approx([one["loss"] for one in logged if "loss" in one])
    assert len(found["sft-lr0.001-s5"]) == 2
