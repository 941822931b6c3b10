"""`ballast merge`: the merged model is the adapted one, and nothing is written where it is not."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from ballast.cli import app
from tiny import char_tokenizer, tiny_model

IDS = torch.tensor([[5, 9, 14, 3, 8]])


@pytest.fixture
def adapter(tmp_path):
    """A LoRA adapter, far from zero, beside its base."""
    from peft import LoraConfig, get_peft_model

    base = tmp_path / "base"
    tiny_model().save_pretrained(base)
    char_tokenizer().save_pretrained(base)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(base)
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear"))
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.3)
    adapted.save_pretrained(tmp_path / "run")
    with torch.no_grad():
        return tmp_path / "run", adapted.eval()(IDS).logits


def merge(*words):
    return CliRunner().invoke(app, ["merge", *map(str, words)])


def test_the_merged_model_is_the_adapted_one_and_needs_no_adapter(adapter, tmp_path):
    path, logits = adapter
    done = merge(path, "--output", tmp_path / "whole")
    assert done.exit_code == 0, done.output
    assert not (tmp_path / "whole" / "adapter_config.json").exists()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    with torch.no_grad():
        assert (model(IDS).logits - logits).abs().max() < 1e-5
        assert (AutoModelForCausalLM.from_pretrained(tmp_path / "base")(IDS).logits - logits).abs().max() > 0.1
    assert "merged and stored in float32" in done.stdout.replace("\n", " ")
    assert {place.name for place in tmp_path.iterdir()} == {"base", "run", "whole"}


def test_what_lies_beside_the_merged_model_is_left_alone(adapter, tmp_path):
    kept = [tmp_path / name / "kept" for name in ("whole.unfinished", "whole.older", ".whole")]
    for one in kept:
        one.parent.mkdir()
        one.touch()
    assert merge(adapter[0], "--output", tmp_path / "whole").exit_code == 0
    assert all(one.exists() for one in kept)


def test_rounding_to_a_narrower_type_is_told(adapter, tmp_path):
    done = merge(adapter[0], "--output", tmp_path / "half", "--dtype", "bfloat16")
    assert "with the rounding of bfloat16" in done.stdout.replace("\n", " ")
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"


def test_another_model_is_not_written(adapter, tmp_path, monkeypatch):
    from peft import PeftModel

    # As if merging lost the adapter.
    monkeypatch.setattr(PeftModel, "merge_and_unload", lambda self, **_: self.unload(), raising=False)
    done = merge(adapter[0], "--output", tmp_path / "whole")
    assert (done.exit_code, "it would be another model" in done.stderr) == (2, True)
    assert {place.name for place in tmp_path.iterdir()} == {"base", "run"}


@pytest.mark.parametrize(
    ("path", "output", "named"),
    [
        ("base", "new", "is a model without an adapter: there is nothing to merge"),
        ("nowhere/at/all", "new", "no such folder"),
        ("run", "base", "--output: base: is not empty"),
        ("run", "run/adapter_config.json", "--output: run/adapter_config.json"),
    ],
)
def test_bad_input_is_one_line(adapter, tmp_path, monkeypatch, path, output, named):
    monkeypatch.chdir(tmp_path)
    done = merge(path, "--output", output)
    assert (done.exit_code, len(done.stderr.splitlines())) == (2, 1), done.output
    assert named in done.stderr
    assert {place.name for place in tmp_path.iterdir()} == {"base", "run"}
