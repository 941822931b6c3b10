"""Families of models: the trained gradient is that of the model's own logits; scripts/families.py tries them all."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

import ballast
from ballast.errors import BallastError
from tiny import char_tokenizer
from training_tools import config, dataset

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

import families  # noqa: E402
import family_sizes  # noqa: E402

# Those that a fault has been seen in, or that compute in a way of their own.
SAMPLE = (
    "deepseek_v4",  # its experts have another name, and TRL's router loss fails
    "doge",  # a router loss of its own
    "gemma3",  # multimodal
    "inkling_text",  # divides by a width and cuts logits off
    "llama4",  # names no backbone
    "mamba",  # no LoRA on two of its layers
    "mllama",  # multimodal, names no backbone
    "phimoe",  # a router that passes for a linear layer
    "xlstm",  # soft-cap under a name of its own
)
EVERY = tuple(sorted(families.families()))


@pytest.mark.parametrize("family", SAMPLE)
def test_a_sample_of_families_has_the_gradient_of_its_own_logits(family):
    found = families.measure(family)
    assert found.works, found


@pytest.mark.slow
@pytest.mark.parametrize("family", EVERY)
def test_every_family_works_or_is_refused(family):
    found, before = families.measure(family), families.stored()[family]
    assert (found.works, bool(found.refused)) == (before.works, bool(before.refused)), found


def test_the_page_is_made_of_what_was_found_and_names_every_family():
    assert tuple(sorted(families.stored())) == EVERY
    made, page = families.tables(list(families.stored().values())), families.PAGE.read_text(encoding="utf-8")
    for table in made.values():
        assert table in page


def test_what_no_longer_works_shows(monkeypatch):
    monkeypatch.setattr(import_module("ballast.head.lm_head"), "logit_softcap", lambda config: None)
    found = families.measure("xlstm")
    assert not found.works
    assert "changes its logits" in found.refused


@pytest.mark.parametrize("family", ["doge", "flint"])
def test_a_mixture_without_experts_has_no_router_loss(tmp_path, monkeypatch, family):
    dense = {"doge": {"is_moe": False}, "flint": {"mlp_only_layers": [0, 1]}}
    monkeypatch.setitem(family_sizes.FITTING, family, dense[family])
    model = family_sizes.tiny_model(family)
    trainer = ballast.Trainer(model, config(tmp_path), train_dataset=dataset(), processing_class=char_tokenizer())
    assert trainer.router_coefficient() > 0
    trainer.train()


@pytest.mark.parametrize(
    ("family", "named"),
    [
        ("phimoe", "an adapter on 'router' is not possible: PhimoeTopKRouter computes more"),
        ("deepseek_v4", r"exclude_modules: \[o_a_proj\]"),
        ("mamba", "peft_config: .*Module 'out_proj' is incompatible with Mamba"),
        ("reformer", "passes no gradient on to an adapter"),
    ],
)
def test_adapters_that_fit_no_layer_are_refused_in_one_line(tmp_path, family, named):
    with pytest.raises(BallastError, match=named) as caught:
        ballast.Trainer(
            family_sizes.tiny_model(family),
            config(tmp_path),
            train_dataset=dataset(),
            processing_class=char_tokenizer(),
            peft_config=LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear"),
        )
    assert "\n" not in str(caught.value)


def test_an_adapter_that_was_put_on_a_router_before_is_refused_too(tmp_path):
    model = get_peft_model(family_sizes.tiny_model("phimoe"), LoraConfig(r=2, target_modules="all-linear"))
    with pytest.raises(BallastError, match="exclude_modules: \\[router\\]"):
        ballast.Trainer(model, config(tmp_path), train_dataset=dataset(), processing_class=char_tokenizer())


@pytest.mark.parametrize(
    ("family", "named"),
    [
        ("bert", "BertLMHeadModel changes its logits in a way"),
        # Its hidden states do not fit the head, which an error of torch would tell.
        ("rembert", "RemBertForCausalLM changes its logits in a way"),
        ("xmod", "cannot compute logits from token ids alone, .*: Input language unknown"),
    ],
)
def test_models_that_cannot_be_trained_on_tokens_alone_are_refused_in_one_line(tmp_path, monkeypatch, family, named):
    if family == "xmod":
        monkeypatch.setitem(family_sizes.FITTING, family, {"default_language": None})
    with pytest.raises(BallastError, match=named):
        ballast.Trainer(
            family_sizes.tiny_model(family),
            config(tmp_path),
            train_dataset=dataset(),
            processing_class=char_tokenizer(),
        )


def test_a_model_that_would_fill_the_memory_is_not_built(monkeypatch):
    monkeypatch.setattr(family_sizes, "LARGEST", 1000)
    with torch.device("cpu"), pytest.raises(MemoryError, match="too many to try"):
        family_sizes.tiny_model("llama")
