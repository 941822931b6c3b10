"""Models as a recipe names them: what goes along from one to another, and what LoRA settings do to the head."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import ballast
from ballast import models
from ballast.compare.jobs import make_random
from ballast.compare.plan import Plan, method_recipe
from ballast.config.recipe import ModelSection, load_recipe
from ballast.data import PrepareOptions, prepare
from ballast.errors import BallastError
from ballast.pipeline import run_train
from ballast.pipeline.row_statistics import load_models
from ballast.reference import CacheKey, ReferenceCache, score_rows
from tiny import char_tokenizer, tiny_model
from training_tools import config, dataset, rows

LOADING = {"dtype": "bfloat16", "attn_implementation": "eager", "trust_remote_code": True, "revision": "v1"}
HEAD = {"r": 2, "target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, seed, tied in (("model", 0, True), ("other", 1, True), ("untied", 0, False)):
        tiny_model(seed=seed, tied=tied).save_pretrained(name)
        char_tokenizer().save_pretrained(name)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))
    return tmp_path


def section(**changes) -> ModelSection:
    return ModelSection(**{"path": "model", **LOADING, **changes})


def test_another_model_is_loaded_as_the_recipes_is():
    other = models.section_of("other", section())
    assert other == section(path="other", revision=None)


def test_the_same_model_keeps_its_revision():
    assert models.section_of("model", section(lora={"r": 2})) == section()


def test_a_path_may_begin_at_home(monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    assert models.section_of("~/model").path == "/somewhere/model"


def test_the_real_model_is_named_by_its_name_and_where_it_is_not_made_yet_that_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = models.resolve(ModelSection(path="smollm2"))
    assert made.path == str(Path("models", "smollm2"))
    assert "`make real-model` writes it" in str(models.check_folder(made.path))
    tiny_model().save_pretrained("models/smollm2")
    assert models.check_folder(made.path) is None


def test_a_path_of_a_caller_may_begin_at_home(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    model, rows = models.load_model(ModelSection(path="~/model")), dataset()
    prepared = prepare(rows, char_tokenizer(), PrepareOptions(max_length=None)).dataset
    key = CacheKey.of(model, char_tokenizer())
    written = score_rows(model, prepared, "~/cache", key, progress=False)
    assert written.path == ReferenceCache.open("~/cache").path == folder / "cache"
    for reference in ("~/cache", {"cache": "~/cache"}, {"model": "~/other"}):
        trainer = ballast.Trainer(
            "~/model", config(folder / "out"), train_dataset=rows, objective="prift-mass", reference=reference
        )
        trainer.train()
    assert not (folder / "~").exists()


RECIPE = ("model={path: model, attn_implementation: eager}", "data.train=rows.jsonl", "objective=eksft", "output=out")


def test_the_reference_of_a_recipe_is_loaded_as_its_model_is(folder, monkeypatch):
    loaded, load = [], models.load_model
    monkeypatch.setattr(models, "load_model", lambda one, **more: (loaded.append(one), load(one, **more))[1])
    settings = ("reference.model=other", "training.max_steps=1", "training.report_to=none", "evaluation.base=false")
    recipe = load_recipe(None, (*RECIPE, *settings))
    run_train(recipe, say=lambda _: None, progress=False)
    assert [(one.path, one.attn_implementation) for one in loaded] == [("model", "eager"), ("other", "eager")]
    loaded.clear()
    load_models(recipe, None)
    assert [(one.path, one.attn_implementation) for one in loaded] == [("model", "eager"), ("other", "eager")]


def test_the_reference_of_the_trainer_is_loaded_as_its_model_is(folder):
    model = models.load_model(ModelSection(path="model", attn_implementation="eager"))
    trainer = ballast.Trainer(
        model,
        config(folder / "out"),
        train_dataset=dataset(),
        processing_class=char_tokenizer(),
        objective="eksft",
        reference={"model": "other"},
    )
    assert trainer.reference.live.model.config._attn_implementation == "eager"


def test_random_weights_are_loaded_as_the_recipes_model_is(folder):
    compare = "compare={objectives: [sft], rates: [1e-4], random: true, seeds: 1}"
    asked = f"model={json.dumps({'path': 'model', **LOADING, 'dtype': 'float32', 'revision': None})}"
    plan = Plan(load_recipe(None, (asked, "data.train=rows.jsonl", "output=out", compare)))
    make_random(plan, 0, folder / "random")
    start = method_recipe(plan.recipe, plan.methods[-1].section, cache="cache", start=folder / "random").model
    assert start == section(path=str(folder / "random"), dtype="float32", revision=None)


def gradient_of_the_head(model) -> torch.Tensor:
    """The gradient of the mean negative log-likelihood, from whole logits."""
    tokenizer, losses = char_tokenizer(), []
    for row in rows():
        prompt = tokenizer(row["prompt"])["input_ids"]
        ids = torch.tensor([prompt + tokenizer(row["completion"])["input_ids"] + [tokenizer.eos_token_id]])
        logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1]
        losses.append(torch.nn.functional.cross_entropy(logits, ids[0, len(prompt) :], reduction="none"))
    loss = torch.cat(losses).mean()
    (gradient,) = torch.autograd.grad(loss, [model.get_output_embeddings().weight])
    return gradient


def test_a_head_saved_beside_an_adapter_is_trained_by_its_whole_gradient(folder):
    recipe = load_recipe(
        None,
        (
            "model.path=untied", f"model.lora={json.dumps(HEAD)}", "data.train=rows.jsonl", "objective=sft",
            "output=out", "training={max_steps: 1, learning_rate: 0.1, optim: sgd, max_grad_norm: 0, weight_decay: 0, "
            "lr_scheduler_type: constant, per_device_train_batch_size: 8, report_to: none}",
        ),
        checks=ballast.pipeline.TRAIN_CHECKS,
    )  # fmt: skip
    start = tiny_model(tied=False)
    expected = start.get_output_embeddings().weight.detach() - 0.1 * gradient_of_the_head(start)
    run_train(recipe, say=lambda _: None, progress=False)
    trained = models.load_model(models.section_of("out", recipe.model))
    head = trained.get_base_model().get_output_embeddings().weight
    assert (head - start.get_output_embeddings().weight).abs().max() > 1e-3
    torch.testing.assert_close(head.detach(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("tied", [True, False])
def test_the_trainer_refuses_a_copy_of_a_tied_head_alone(tmp_path, tied):
    from peft import LoraConfig

    def trainer():
        return ballast.Trainer(
            tiny_model(tied=tied),
            config(tmp_path),
            train_dataset=dataset(),
            processing_class=char_tokenizer(),
            objective="sft",
            peft_config=LoraConfig(**HEAD, task_type="CAUSAL_LM"),
        )

    if tied:
        with pytest.raises(BallastError, match="whose weight is the embedding's too"):
            trainer()
    else:
        trainer()


def test_packages_that_are_missing_are_refused_by_the_trainer_before_it_loads_anything(tmp_path, monkeypatch):
    monkeypatch.setattr("ballast.packages.find_spec", lambda name: None)
    for setting, package in (("report_to", "wandb"), ("optim", "adamw_8bit")):
        with pytest.raises(BallastError, match=rf"training.{setting} is not possible: '{package}' needs the package"):
            ballast.Trainer("nowhere/at/all", config(tmp_path, **{setting: package}), objective="sft")


def test_the_trainer_refuses_an_output_that_it_could_not_save_to(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(BallastError, match=r"output_dir: .*file is no folder"):
        ballast.Trainer("nowhere/at/all", config(tmp_path / "file" / "run", save_strategy="steps"), objective="sft")


def test_a_quantisation_without_its_package_is_refused(tmp_path, monkeypatch):
    class Bits:
        quant_method = "bitsandbytes"

    monkeypatch.setattr("ballast.packages.find_spec", lambda name: None)
    with pytest.raises(BallastError, match="quantization_config: 'bitsandbytes' needs the package bitsandbytes"):
        ballast.Trainer("nowhere/at/all", config(tmp_path), objective="sft", quantization_config=Bits())


def test_optimisers_that_project_need_to_know_what(tmp_path, monkeypatch):
    monkeypatch.setattr("ballast.packages.find_spec", lambda name: object())
    with pytest.raises(BallastError, match=r"set training\.optim_target_modules"):
        ballast.Trainer("nowhere/at/all", config(tmp_path, optim="galore_adamw"), objective="sft")


def test_the_fused_loss_of_liger_is_refused_where_liger_is_installed(tmp_path, monkeypatch):
    monkeypatch.setattr("ballast.packages.find_spec", lambda name: object())
    liger = {"use_liger_kernel": True, "liger_kernel_config": {"fused_linear_cross_entropy": True}}
    with pytest.raises(BallastError, match="fused_linear_cross_entropy is not supported"):
        ballast.Trainer("nowhere/at/all", config(tmp_path, **liger), objective="sft")


def test_a_model_without_weights_is_none_of_the_processes_under_zero3(monkeypatch):
    monkeypatch.setattr("transformers.modeling_utils.is_deepspeed_zero3_enabled", lambda: True)
    section = models.resolve(models.section_of("lab"))
    empty = models.empty_model(section, models.load_config(section))
    assert {weights.device.type for weights in empty.parameters()} == {"meta"}
