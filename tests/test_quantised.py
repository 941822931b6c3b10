"""Weights in few bits: gradients are those of the decoded weights, and what cannot be right is refused."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from peft import LoraConfig
from typer.testing import CliRunner

import ballast
from ballast import models
from ballast.cli import app
from ballast.config.recipe import ModelSection, load_recipe
from ballast.errors import BallastError
from ballast.pipeline import EVALUATE_CHECKS, TRAIN_CHECKS
from ballast.reference import CacheKey
from ballast.reference.providers import AdapterOffReference, adapter_off
from tiny import char_tokenizer, tiny_model
from training_tools import config, dataset, largest_difference, rows, weights

LORA = {"r": 4, "target_modules": "all-linear", "init_lora_weights": False}
FOUR = ({"bits": 4}, {"bits": 4, "double": True}, {"bits": 4, "type": "fp4"})
IDS = torch.arange(3, 40)[None]


def no_package(name):
    return None


@pytest.fixture
def base(tmp_path, monkeypatch):
    """A folder with a model whose layers bitsandbytes can pack, and demonstrations beside it."""
    monkeypatch.chdir(tmp_path)
    tiny_model(hidden=64, heads=2, initializer_range=0.15).save_pretrained("model")
    char_tokenizer().save_pretrained("model")
    demonstrations = [{**row, "answer": row["completion"]} for row in rows(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in demonstrations))
    return tmp_path


@pytest.fixture
def bits():
    return pytest.importorskip("bitsandbytes", reason="needs the extra quantization")


def load(quantization, **changes):
    return models.load_model(ModelSection(path="model", quantization=quantization, **changes))


def decoded(model):
    """A copy whose linear layers hold what the codes mean, in full precision."""
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit

    plain = tiny_model(hidden=64, heads=2)
    state = {
        name: weight
        for name, weight in copy.deepcopy(model).state_dict().items()
        if ".weight." not in name and weight.is_floating_point()
    }
    for name, layer in model.named_modules():
        if isinstance(layer, Linear4bit):
            state[f"{name}.weight"] = dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()
    plain.load_state_dict(state)
    return plain.eval()


def trained(model, folder, objective="eksft", **changes):
    trainer = ballast.Trainer(
        model,
        config(folder, **{"max_steps": 2, "eval_strategy": "steps", "eval_steps": 1, **changes}),
        train_dataset=dataset(),
        eval_dataset=dataset(3),
        processing_class=char_tokenizer(),
        peft_config=LoraConfig(**LORA, task_type="CAUSAL_LM"),
        objective={"name": objective, "rho": 0.3} if objective == "eksft" else objective,
    )
    trainer.train()
    return trainer


@pytest.mark.parametrize("quantization", FOUR, ids=str)
def test_four_bits_train_as_the_decoded_weights_do(base, bits, quantization):
    """Two steps, with a reference and a measurement between them: forwards that would pack the weights on a CPU."""
    model = load(quantization)
    plain = decoded(model)
    with torch.no_grad():
        assert (model(IDS).logits - plain(IDS).logits).abs().max() < 1e-4
        assert (
            model(IDS).logits - tiny_model(hidden=64, heads=2, initializer_range=0.15)(IDS).logits
        ).abs().max() > 0.1
    ours, theirs = trained(model, base / "a"), trained(plain, base / "b")
    clean = {name: value for name, value in weights(theirs).items() if "lora_" in name}
    start = weights(trained(decoded(load(quantization)), base / "c", learning_rate=0))
    assert largest_difference(weights(ours), clean) < 2e-5
    assert largest_difference(clean, start) > 1e-2


def test_eight_bits_train_close_to_the_full_weights(base, bits):
    models = [load(8), *(tiny_model(hidden=64, heads=2, initializer_range=0.15) for _ in range(2))]
    ours, theirs, start = (
        weights(trained(model, base / str(rate), "sft", max_steps=1, learning_rate=rate))
        for model, rate in zip(models, (0.1, 0.1, 0), strict=True)
    )
    moved = [torch.cat([(end[name] - start[name]).flatten() for name in start]) for end in (ours, theirs)]
    assert torch.cosine_similarity(*moved, dim=0) > 0.99


def test_adapters_of_quantised_models_are_not_rounded(base, bits):
    model = load(4)
    trainer = ballast.Trainer(
        model,
        config(base / "out"),
        train_dataset=dataset(),
        processing_class=char_tokenizer(),
        peft_config=LoraConfig(**LORA, task_type="CAUSAL_LM"),
    )
    trained_ones = [weight for weight in trainer.model.parameters() if weight.requires_grad]
    assert {weight.dtype for weight in trained_ones} == {torch.float32}
    assert any((weight.bfloat16().float() != weight).any() for weight in trained_ones)


def test_packed_weights_are_refused(base, bits):
    from ballast.quantised import PACKS

    model = load(4)
    layers = [layer for layer in model.modules() if hasattr(layer, PACKS)]
    assert len(layers) == 14
    assert not any(getattr(layer, PACKS) for layer in layers)
    layers[3].weight.quant_state.packing_format_for_cpu = True
    with pytest.raises(BallastError, match=r"self_attn.o_proj.base_layer' were packed for inference on the CPU"):
        trained(model, base / "out")


def test_the_adapter_switched_off_is_the_quantised_base(base, bits):
    from peft import get_peft_model

    model = load(4)
    with torch.no_grad():
        before = model(IDS).logits
        adapted = get_peft_model(load(4), LoraConfig(**LORA)).eval()
        reference = AdapterOffReference(adapted)
        assert torch.equal(reference.head.logits(reference.hidden(input_ids=IDS)), before)
        with adapter_off(adapted):
            assert torch.equal(adapted(input_ids=IDS).logits, before)
        assert (adapted(input_ids=IDS).logits - before).abs().max() > 0.01


def test_a_cache_tells_apart_how_weights_are_held(base, bits):
    from peft import get_peft_model

    tokenizer = char_tokenizer()
    keys = [CacheKey.of(load(one), tokenizer).model for one in (None, 4, {"bits": 4, "double": True}, 8)]
    assert len({*keys}) == 4
    assert CacheKey.of(load(4), tokenizer).model == keys[1]
    fresh = {**LORA, "init_lora_weights": True}
    assert CacheKey.of(get_peft_model(load(4), LoraConfig(**fresh)), tokenizer).model == keys[1]


def test_a_frozen_copy_of_a_quantised_model_stays_where_it_was(base, bits):
    trainer = ballast.Trainer(
        load(4),
        config(base / "out", max_steps=2),
        train_dataset=dataset(),
        processing_class=char_tokenizer(),
        peft_config=LoraConfig(r=4, target_modules="all-linear"),
        objective={"name": "eksft", "rho": 0.3},
        reference="model",
    )
    trainer.train()
    with torch.no_grad():
        before, live = load(4)(IDS).logits, trainer.reference.live
        assert torch.equal(live.head.logits(live.hidden(input_ids=IDS)), before)
        assert (trainer.model.eval()(input_ids=IDS).logits - before).abs().max() > 1e-3


RECIPE = (
    "model={path: model, lora: {r: 4, target_modules: all-linear}, quantization: 4}", "data.train=rows.jsonl",
    "objective={name: prift-mass, threshold: 0.02}", "reference.cache=cache", "output=out",
    "training={max_steps: 3, learning_rate: 1e-2, per_device_train_batch_size: 4, report_to: none, use_cpu: true}",
    "evaluation.tasks=[{name: held, kind: nll, data: rows.jsonl, base_kl: true}]",
)  # fmt: skip


def run(*words):
    return CliRunner().invoke(app, [*words])


def test_recipes_train_evaluate_and_merge(base, bits):
    done = run("train", *RECIPE)
    assert done.exit_code == 0, done.output
    record = json.loads((base / "out" / "run.json").read_text())
    assert record["recipe"]["model"]["quantization"]["bits"] == 4
    lines = [json.loads(line) for line in (base / "out" / "evals.jsonl").read_text().splitlines()]
    before, after = (line["tasks"][0]["metrics"] for line in lines)
    # The base of the divergence is the quantised one, as training started from it.
    assert before["base_kl"]["value"] == pytest.approx(0, abs=1e-6)
    assert after["base_kl"]["value"] > 1e-3
    again = run("evaluate", "model={path: model, quantization: 4}", "output=out", RECIPE[-1])
    assert again.exit_code == 0, again.output
    measured = [json.loads(line) for line in (base / "out" / "evals.jsonl").read_text().splitlines()][-1]
    assert measured["tasks"][0]["metrics"] == after
    # Another way to hold the weights is another reference.
    full = run("train", *RECIPE[1:-1], "model={path: model, lora: {r: 4}}", "output=other")
    assert (full.exit_code, "scored by another model" in full.stderr) == (2, True), full.output
    merged = run("merge", "out", "--output", "whole")
    assert merged.exit_code == 0, merged.output
    said = merged.stdout.replace("\n", " ")
    assert "the adapter was trained on weights in 4 bits, and is merged into those in full precision" in said
    assert not getattr(models.load_model(ModelSection(path="whole")), "is_quantized", False)


def test_a_quantised_base_is_merged_into_the_full_one(base, bits):
    from peft import get_peft_model

    load(4).save_pretrained("coded")
    char_tokenizer().save_pretrained("coded")
    section = ModelSection(path="coded")
    adapted = get_peft_model(models.load_model(section), LoraConfig(**LORA, task_type="CAUSAL_LM"))
    adapted.save_pretrained("adapter")
    refused = run("merge", "adapter", "--output", "whole")
    assert (refused.exit_code, "name the base in full precision: --base FOLDER" in refused.stderr) == (2, True)
    missing = run("merge", "adapter", "--output", "whole", "--base", "nowhere/at/all")
    assert (missing.exit_code, "--base: nowhere/at/all: no such folder" in missing.stderr) == (2, True)
    done = run("merge", "adapter", "--output", "whole", "--base", "model")
    assert done.exit_code == 0, done.output
    full = get_peft_model(tiny_model(hidden=64, heads=2, initializer_range=0.15), LoraConfig(**LORA))
    full.load_state_dict({k: v for k, v in adapted.state_dict().items() if "lora_" in k}, strict=False)
    with torch.no_grad():
        logits = models.load_model(ModelSection(path="whole"))(IDS).logits
        assert (logits - full.eval()(input_ids=IDS).logits).abs().max() < 1e-4


def test_reinforcement_goes_on_from_a_quantised_run(base, bits):
    assert run("train", *RECIPE[:-1]).exit_code == 0
    done = run(
        "rl", "model={path: out, quantization: 4}", "data.train=rows.jsonl", "output=rl", "training=",
        "rl={verifier: exact, steps: 1, prompts: 2, group: 2, max_new_tokens: 4}",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert json.loads((base / "rl" / "run.json").read_text())["status"] == "finished"
    assert json.loads((base / "rl" / "adapter_config.json").read_text())["r"] == 4


REFUSED = (
    ("without an adapter", ("model={path: model, quantization: 4}",), "model.quantization: quantised weights are"),
    ("three bits", ("model.quantization=3",), "model.quantization.bits: 3 is not allowed"),
    ("no bits", ("model.quantization={type: nf4}",), "model.quantization.bits: is required and missing"),
    ("unknown key", ("model.quantization={bits: 4, typ: nf4}",), "model.quantization.typ: unknown key; did you mean"),
    ("unknown type", ("model.quantization={bits: 4, type: nf3}",), "model.quantization.type: 'nf3' is not allowed"),
    ("text", ("model.quantization=nf4",), "model.quantization: must be a mapping of keys; got 'nf4'"),
    ("true", ("model.quantization=true",), "model.quantization: must be a mapping of keys; got True"),
    ("type of 8 bits", ("model.quantization={bits: 8, type: nf4}",), "model.quantization.type: is of 4 bits and would"),
    ("double of 8 bits", ("model.quantization={bits: 8, double: true}",), "model.quantization.double: is of 4 bits"),
    ("compute dtype", ("model.quantization={bits: 4, compute_dtype: int8}",), "compute_dtype: 'int8' is not allowed"),
    ("FSDP", ("training.fsdp=full_shard",), "training.fsdp: would shard codes"),
    ("half", ("training.half=0.5",), "training.half: does not go with model.lora"),
)  # fmt: skip


@pytest.mark.parametrize(("name", "settings", "named"), REFUSED, ids=[case[0] for case in REFUSED])
def test_recipes_are_refused_in_one_line(base, monkeypatch, name, settings, named):
    monkeypatch.setattr("ballast.packages.find_spec", lambda name: object())
    done = run("train", *RECIPE, *settings, "--dry-run")
    lines = [line for line in done.stderr.splitlines() if named in line]
    assert (done.exit_code, len(lines)) == (2, 1), done.output


def test_without_the_package_a_recipe_is_refused(base, monkeypatch):
    monkeypatch.setattr("ballast.packages.find_spec", no_package)
    done = run("train", *RECIPE, "--dry-run")
    assert "model.quantization: not possible: 'bitsandbytes' needs the package bitsandbytes" in done.stderr
    # Measuring needs the package too, and no adapter.
    with pytest.raises(BallastError, match="needs the package bitsandbytes"):
        load_recipe(None, ("model={path: model, quantization: 8}", RECIPE[-1]), checks=EVALUATE_CHECKS)
    monkeypatch.setattr("ballast.packages.find_spec", lambda name: object())
    load_recipe(None, ("model={path: model, quantization: 8}", RECIPE[-1]), checks=EVALUATE_CHECKS)


def test_weights_that_are_quantised_already_are_not_quantised_again(base, monkeypatch):
    monkeypatch.setattr("ballast.packages.find_spec", lambda name: object())
    settings = json.loads((base / "model" / "config.json").read_text())
    coded = {**settings, "quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    (base / "model" / "config.json").write_text(json.dumps(coded))
    with pytest.raises(
        BallastError, match=r"model\.quantization: would be ignored: the weights of model are quantised"
    ):
        load_recipe(None, RECIPE, checks=TRAIN_CHECKS)
    with pytest.raises(
        BallastError, match=r"model: quantised weights are codes.*set model\.lora, or take other weights"
    ):
        load_recipe(None, ("model={path: model}", *RECIPE[1:]), checks=TRAIN_CHECKS)


def test_a_learnt_reward_has_all_its_weights(base, monkeypatch):
    monkeypatch.setattr("ballast.packages.find_spec", lambda name: object())
    done = run("reward", "model={path: model, quantization: 4}", "groups.file=nowhere", "output=out")
    assert "model.quantization: a reward is learnt with all weights" in done.stderr


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"model": "nowhere/at/all"}, "quantization_config: quantised weights are codes"),
        ({"model": None, "peft_config": LoraConfig(r=2)}, "quantization_config would be ignored: the model is loaded"),
    ],
    ids=["no adapter", "loaded already"],
)
def test_the_trainer_refuses_a_quantisation_that_cannot_be(tmp_path, monkeypatch, given, named):
    class Bits:
        quant_method = "bitsandbytes"

    monkeypatch.setattr("ballast.packages.find_spec", lambda name: object())
    model = given.pop("model", None) or tiny_model()
    with pytest.raises(BallastError, match=named):
        ballast.Trainer(model, config(tmp_path), objective="sft", quantization_config=Bits(), **given)


def test_the_trainer_refuses_a_quantised_model_without_an_adapter(base, bits):
    with pytest.raises(BallastError, match="the model is quantised: quantised weights are codes"):
        ballast.Trainer(load(4), config(base / "out"), train_dataset=dataset(), processing_class=char_tokenizer())


def test_a_quantised_head_is_refused(base, bits):
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    from ballast.head import lm_head

    tiny_model(hidden=64, heads=2, tied=False).save_pretrained("untied")
    settings = BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=["nothing"])
    model = AutoModelForCausalLM.from_pretrained("untied", quantization_config=settings, dtype="float32")
    with pytest.raises(BallastError, match="the LM head is quantised"):
        lm_head(model)
