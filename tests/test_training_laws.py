"""Laws of the trainer: TRL's gradients, one reduction, cached = live, packed = padded, resumed = undisturbed."""

from __future__ import annotations

import copy

import pytest
import torch

import ballast
from tiny import char_tokenizer, tiny_model
from training_tools import OBJECTIVES, config, dataset, largest_difference, objective, run, weights


def trl_run(tmp_path, model, data=None, **changes):
    from trl import SFTConfig, SFTTrainer

    args = config(tmp_path, config_class=SFTConfig, bf16=False, **changes)
    trainer = SFTTrainer(model, args, train_dataset=data or dataset(), processing_class=char_tokenizer())
    trainer.train()
    return trainer


@pytest.mark.parametrize(("name", "loss_type"), [("sft", "nll"), ("dft", "dft")])
@pytest.mark.parametrize("accumulation", [1, 4])
def test_gradients_are_trls(tmp_path, name, loss_type, accumulation):
    split = {"per_device_train_batch_size": 8 // accumulation, "gradient_accumulation_steps": accumulation}
    ours = run(tmp_path, name, **split)
    theirs = trl_run(tmp_path, tiny_model(), loss_type=loss_type, **split)
    assert largest_difference(weights(ours), weights(theirs)) < 1e-6
    assert largest_difference(weights(ours), weights(run(tmp_path, "sft" if name == "dft" else "dft"))) > 1e-3
    assert ours.state.log_history[0]["loss"] == pytest.approx(theirs.state.log_history[0]["loss"], rel=1e-5)


class OwnLossCount:
    """Marks a model class as one of those that do not take `num_items_in_batch`."""

    accepts_loss_kwargs = False


def double(accepts: bool = True):
    model = tiny_model(dtype=torch.float64)
    if not accepts:
        model.__class__ = type("Unscaled", (OwnLossCount, type(model)), {})
    return model


@pytest.mark.parametrize("accepts", [True, False])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_splitting_the_batch_changes_nothing(tmp_path, name, accepts):
    ends = []
    for batch, accumulation in ((8, 1), (1, 8), (2, 4)):
        trainer = run(
            tmp_path,
            name,
            model=double(accepts),
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            max_steps=2,
        )
        assert trainer.model_accepts_loss_kwargs == accepts
        ends.append((weights(trainer), trainer.state.log_history[0]))
    for end, log in ends[1:]:
        assert largest_difference(ends[0][0], end) < 1e-10
        for metric in ("loss", "nll", "entropy", "weight_mean", "weight_zero_share", "effective_tokens"):
            assert log[metric] == pytest.approx(ends[0][1][metric], rel=1e-6, abs=1e-9), metric
    assert largest_difference(ends[0][0], dict(double().named_parameters())) > 1e-4


def test_batch_scope_depends_on_the_split(tmp_path):
    ends = [
        weights(
            ballast_run_eksft_batch_scope(
                tmp_path, per_device_train_batch_size=size, gradient_accumulation_steps=8 // size
            )
        )
        for size in (8, 1)
    ]
    assert largest_difference(*ends) > 1e-6


def ballast_run_eksft_batch_scope(tmp_path, **changes):
    trainer = ballast.Trainer(
        double(),
        config(tmp_path, **changes),
        train_dataset=dataset(),
        processing_class=char_tokenizer(),
        objective=ballast.objective("eksft", rho=0.3, scope="batch"),
    )
    trainer.train()
    return trainer


@pytest.mark.parametrize("name", ["prift-prob", "prift-mass"])
def test_cached_is_live(tmp_path, name):
    # In float64, so that what differs is the rounding of the cache alone.
    exact = run(tmp_path / "exact", name, model=double())
    kept = run(tmp_path / "kept", name, model=double(), reference=make_cache(tmp_path / "wide", double()))
    assert largest_difference(weights(exact), weights(kept)) < 1e-8
    live = run(tmp_path / "live", name)
    cached = run(tmp_path / "cached", name, reference=make_cache(tmp_path / "cache", tiny_model()))
    # One unit in the last place of the largest weights: tiles are cut otherwise where there are two models.
    assert largest_difference(weights(live), weights(cached)) < 2.5e-7
    assert largest_difference(weights(live), weights(run(tmp_path / "sft", "sft"))) > 1e-3
    # The row lookups match by content, so another order and other batches do not matter.
    shuffled = run(
        tmp_path / "shuffled",
        name,
        data=dataset().shuffle(seed=5),
        reference=make_cache(tmp_path / "cache", tiny_model()),
    )
    assert largest_difference(weights(live), weights(shuffled)) < 1e-6


def make_cache(folder, model, data=None):
    from ballast.data import PrepareOptions, prepare
    from ballast.reference import CacheKey, score_rows

    ready = prepare(data or dataset(), char_tokenizer(), PrepareOptions())
    return score_rows(model, ready.dataset, folder, CacheKey.of(model, char_tokenizer()), progress=False)


def test_rows_that_the_cache_lacks_are_scored_at_the_start(tmp_path):
    cache = make_cache(tmp_path / "cache", tiny_model(), dataset(3))
    trainer = ballast.Trainer(
        tiny_model(),
        config(tmp_path / "run", eval_strategy="steps", eval_steps=1),
        train_dataset=dataset(),
        eval_dataset={"other": dataset(12).select(range(8, 12))},
        processing_class=char_tokenizer(),
        objective=objective("prift-prob"),
        reference=cache,
    )
    trainer.train()
    live = run(tmp_path / "live", "prift-prob")
    assert largest_difference(weights(live), weights(trainer)) < 1e-7
    assert "eval_other_weight_mean" in trainer.state.log_history[1]
    with pytest.raises(ballast.BallastError, match="cannot be scored once training has moved"):
        trainer.evaluate(dataset(14).select([13]))


@pytest.mark.parametrize("name", ["eksft", "prift-mass"])
def test_adapter_off_is_a_second_model(tmp_path, name):
    from peft import LoraConfig

    ends = []
    for reference in ("adapter-off", "model", None):
        lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.0)
        trainer = run(tmp_path, name, reference=reference, peft_config=lora, max_steps=3, learning_rate=5.0)
        ends.append((weights(trainer), trainer.state.log_history[2]["kl"], type(trainer.reference.live).__name__))
    assert [end[2] for end in ends] == ["AdapterOffReference", "ModelReference", "AdapterOffReference"]
    assert largest_difference(ends[0][0], ends[1][0]) < 1e-6
    assert ends[0][1] == pytest.approx(ends[1][1], rel=1e-3)
    assert ends[0][1] > 1e-6


def test_adapter_off_reads_its_own_head_where_a_copy_is_trained(tmp_path):
    from peft import LoraConfig

    kls = []
    for reference in ("adapter-off", "model"):
        lora = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"])
        model = tiny_model(tied=False)
        trainer = run(tmp_path, "eksft", model=model, reference=reference, peft_config=lora, max_steps=3)
        kls.append(trainer.state.log_history[2]["kl"])
    assert kls[0] == pytest.approx(kls[1], rel=1e-3)
    assert kls[0] > 1e-4


@pytest.mark.parametrize("name", ["sft", "dft", "prift-mass", "eksft"])
def test_packing_changes_nothing(tmp_path, name):
    padded = run(tmp_path, name, model=double())
    packed = run(tmp_path, name, model=double(), packing=True, max_length=512, per_device_train_batch_size=1)
    assert padded.state.log_history[0]["loss"] == pytest.approx(packed.state.log_history[0]["loss"], rel=1e-6)
    assert largest_difference(weights(padded), weights(packed)) < 1e-10


def test_packed_rows_keep_their_cached_columns(tmp_path):
    padded = run(tmp_path / "padded", "prift-mass")
    packed = run(
        tmp_path / "packed",
        "prift-mass",
        reference=make_cache(tmp_path / "cache", tiny_model()),
        packing=True,
        max_length=64,
        per_device_train_batch_size=8,
    )
    assert largest_difference(weights(padded), weights(packed)) < 1e-6


@pytest.mark.parametrize("name", ["sft", "eksft"])
def test_resumed_is_undisturbed(tmp_path, name):
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "learning_rate": 0.05}
    whole = run(tmp_path / "whole", name, **settings)
    again = ballast.Trainer(
        tiny_model(),
        config(tmp_path / "again", **settings),
        train_dataset=dataset(),
        processing_class=char_tokenizer(),
        objective=objective(name),
    )
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert largest_difference(weights(whole), weights(again)) < 1e-6
    for metric in ("effective_tokens", "num_tokens"):
        logged = [[log[metric] for log in t.state.log_history if metric in log] for t in (whole, again)]
        assert logged[0] == pytest.approx(logged[1]), metric
    if name == "eksft":
        # The reference is the original start, not the checkpoint.
        kls = [[log["kl"] for log in t.state.log_history if "kl" in log][-1] for t in (whole, again)]
        assert kls[0] == pytest.approx(kls[1], rel=1e-3)


def test_the_frozen_copy_does_not_move(tmp_path):
    start = tiny_model()
    trainer = run(tmp_path, "eksft", model=copy.deepcopy(start), max_steps=3)
    frozen = trainer.reference.live.model
    assert largest_difference(dict(start.named_parameters()), dict(frozen.named_parameters())) == 0
    kls = [log["kl"] for log in trainer.state.log_history if "kl" in log]
    assert kls[0] == pytest.approx(0, abs=1e-6)
    assert kls[2] > 1e-4


def test_router_loss_is_trls(tmp_path):
    ends = []
    for make in (lambda m: run(tmp_path, "sft", model=m), lambda m: trl_run(tmp_path, m)):
        ends.append(weights(make(tiny_mixtral())))
    assert largest_difference(*ends) < 1e-6
    without = run(tmp_path, "sft", model=tiny_mixtral(), router_aux_loss_coef=0.0)
    assert largest_difference(ends[0], weights(without)) > 1e-6


def tiny_mixtral():
    from transformers import MixtralConfig, MixtralForCausalLM

    settings = MixtralConfig(
        vocab_size=len(char_tokenizer()),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=4,
        num_experts_per_tok=2,
        router_aux_loss_coef=0.5,
        output_router_logits=True,
    )
    torch.manual_seed(0)
    return MixtralForCausalLM(settings)
