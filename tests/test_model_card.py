"""The card of a run says what its record says, and nothing of the record acts on the page."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ballast import models
from ballast.config.recipe import ModelSection
from ballast.pipeline.run_folder import _store_once
from ballast.records.model_card import About, card
from ballast.records.schema import SCHEMA, EvalRecord, RunRecord


def estimate(value):
    return {"value": value, "n": 20, "low": value - 0.1, "high": value + 0.1, "level": 0.95, "method": "wilson"}


def measured(model, **metrics):
    task = {"name": "test", "kind": "generate", "counts": {}, "settings": {}, "seconds": 1.0}
    task["metrics"] = {name: estimate(value) for name, value in metrics.items()}
    return EvalRecord.model_validate({"model": model, "tasks": [task]}, strict=False)


def record(**changes):
    values = {
        "schema": SCHEMA,
        "status": "finished",
        "recipe": {"model": {"path": "owner/base", "lora": {"r": 4}}, "training": {"learning_rate": 1e-4}, "seed": 3},
        "objective": {"name": "prift-mass", "threshold": 0.5},
        "model": {"path": "owner/base", "type": "llama", "parameters": 1000, "dtype": "float32"},
        "inputs": {"data.train": {"source": "rows|x.jsonl", "digest": "abc"}},
        "versions": {"ballast": "9.9"},
    }
    return RunRecord.model_validate({**values, **changes})


def test_a_card_has_base_data_objective_settings_and_measurements():
    text = card(
        record(),
        [measured("base", accuracy=0.5), measured("trained", accuracy=0.7, nll=1.5)],
        About("m", "PriFT", "owner/base", "mit", True),
    )
    for piece in (
        "base_model: owner/base\nlibrary_name: peft\nlicense: mit\n",
        "`owner/base` fine-tuned with the objective `prift-mass` (PriFT), by [ballast](",
        "AutoPeftModelForCausalLM.from_pretrained('m')",
        "| objective | `prift-mass`: threshold `0.5` |",
        "| settings | learning_rate `0.0001` |",
        "| adapter | LoRA: r `4` |",
        "| seed | 3 |",
        "| test | accuracy | 0.5 (0.4 to 0.6) | 0.7 (0.6 to 0.8) |",
        "| test | nll | – | 1.5 (1.4 to 1.6) |",
        "The licence is that of the base model: mit.",
    ):
        assert piece in text, text


def test_the_latest_measurement_of_a_model_counts():
    text = card(record(), [measured("trained", accuracy=0.5), measured("trained", accuracy=0.7)], About("m"))
    assert "0.7 (0.6 to 0.8)" in text
    assert "0.5 (0.4" not in text


def test_after_rl_the_card_names_the_judge_and_the_start():
    text = card(record(rl={"algorithm": "grpo", "verifier": "math"}, start="runs/a", objective=None), [], About("m"))
    assert "`runs/a` after reinforcement learning (GRPO), rewarded by `math`" in text
    assert "tags: [ballast, reinforcement-learning]" in text
    assert "## Evaluation" not in text
    assert "names none" in text
    assert "base_model" not in text
    assert "see its page" in card(record(), [], About("m", hub="owner/base"))


def test_text_of_the_record_stays_in_its_cell():
    hostile = "a`|b\u202e\n| x |"
    text = card(record(recipe={"model": {"path": hostile}, "training": {"note": hostile}}), [], About(hostile))
    assert "\u202e" not in text
    assert "a'\\|b" in text
    assert "\n| x |" not in text


def test_the_licence_is_the_bases_own(tmp_path):
    assert models.licence(models.resolve(ModelSection(path="lab"))) == "apache-2.0"
    assert models.licence(ModelSection(path=str(tmp_path))) is None
    for text, licence in (
        ("---\nlicense: mit\n---\n", "mit"),
        ("---\nlicense: [a]\n---\n", None),
        ("---\nlicense: [a\n---\n", None),
        ("---\nlicense: 'mit: x'\n---\n", None),
        ('---\nlicense: "mit\\nbase_model: other"\n---\n', None),
        ("none", None),
    ):
        (tmp_path / "README.md").write_text(text)
        assert models.licence(ModelSection(path=str(tmp_path))) == licence


def test_a_folder_is_no_name_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("runs/final").mkdir(parents=True)
    folders = ("runs/final", "runs/final/", "./runs", "a/b/c", "a b/c", "owner/base\nlicense: mit", "owner/base\n")
    assert {models.hub_id(ModelSection(path=path)) for path in folders} == {None}
    assert models.hub_id(models.resolve(ModelSection(path="lab"))) is None
    for name in ("owner/base-1.5B_x", "gpt2"):
        assert models.hub_id(ModelSection(path=name)) == name


def test_weights_that_a_checkpoint_shares_with_the_final_model_are_stored_once(tmp_path):
    for name, content in (("", b"last"), ("checkpoint-2", b"last"), ("checkpoint-1", b"first")):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "model.safetensors").write_bytes(content)
    _store_once(tmp_path)
    final, last, first = (tmp_path / name / "model.safetensors" for name in ("", "checkpoint-2", "checkpoint-1"))
    assert os.path.samefile(final, last)
    assert not os.path.samefile(final, first)
    assert (last.read_bytes(), first.read_bytes()) == (b"last", b"first")
    assert {path.name for path in last.parent.iterdir()} == {"model.safetensors"}


@pytest.mark.skipif(os.name != "posix", reason="links as POSIX has them")
def test_a_disk_without_links_holds_them_twice(tmp_path, monkeypatch):
    def refused(*_):
        raise OSError

    monkeypatch.setattr(os, "link", refused)
    for name in ("", "checkpoint-2"):
        (tmp_path / name).mkdir(exist_ok=True)
        Path(tmp_path, name, "model.safetensors").write_bytes(b"last")
    _store_once(tmp_path)
    assert (tmp_path / "checkpoint-2" / "model.safetensors").read_bytes() == b"last"
