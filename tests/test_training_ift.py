"""IFT in the trainer: a step is what it is by hand, and what holds however the batch is cut, packed or spread."""

from __future__ import annotations

import pytest
import torch

import ballast
from ift_tools import all_weights, double, step_by_hand, stepped, trained, trainer_of
from test_training_trainer import PerSequence
from training_tools import dataset, largest_difference, rows, run

EMBEDDING = "model.embed_tokens.weight"

STEPS = {
    "default": {},
    "attached": {"embeddings": "attached", "lam": 0.4},
    "no propagation": {"gamma": 0, "lam": 0.5},
    "token mean": {"average": "token"},
    "algorithm 1": {"variant": "algorithm1", "gamma": 0.6},
    "algorithm 1, token mean": {"variant": "algorithm1", "gamma": 0.6, "average": "token", "embeddings": "attached"},
    "equation 21": {"variant": "equation21"},
    "greedy tokens alone": {"lam": 1},
    "no greedy tokens": {"lam": 0},
}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("options", list(STEPS.values()), ids=list(STEPS))
def test_a_step_is_the_one_worked_by_hand(tmp_path, options, tied):
    trainer = trained(tmp_path, options, model=double(tied=tied))
    model = double(tied=tied)
    loss = step_by_hand(model, **options)
    assert trainer.state.log_history[0]["loss"] == pytest.approx(loss, rel=1e-6)
    assert largest_difference(all_weights(trainer), stepped(model)) < 1e-12
    assert largest_difference(stepped(model), dict(double(tied=tied).named_parameters())) > 1e-4


@pytest.mark.parametrize("tied", [True, False])
def test_without_mixing_and_propagation_it_is_sft_by_sequence(tmp_path, tied):
    options = {"lam": 0, "gamma": 0}
    plain = trained(tmp_path, PerSequence(), model=double(tied=tied))
    attached = trained(tmp_path, {**options, "embeddings": "attached"}, model=double(tied=tied))
    detached = trained(tmp_path, options, model=double(tied=tied))
    for trainer in (attached, detached):
        assert trainer.state.log_history[0]["loss"] == pytest.approx(plain.state.log_history[0]["loss"], rel=1e-12)
    assert largest_difference(all_weights(plain), all_weights(attached)) < 1e-14
    ours, theirs = all_weights(detached), all_weights(plain)
    at_embedding = largest_difference({"": ours.pop(EMBEDDING)}, {"": theirs.pop(EMBEDDING)})
    assert largest_difference(ours, theirs) < 1e-14
    assert at_embedding > 1e-4


def test_a_detached_embedding_that_is_not_the_heads_stays_as_it_was(tmp_path):
    trainer = trained(tmp_path, {}, model=double(tied=False), max_steps=3, optim="adamw_torch", weight_decay=0.5)
    start = dict(double(tied=False).named_parameters())
    assert torch.equal(all_weights(trainer)[EMBEDDING], start[EMBEDDING])
    moved = {name for name, weight in all_weights(trainer).items() if not torch.equal(weight, start[name])}
    assert moved == start.keys() - {EMBEDDING}
    assert EMBEDDING in {name for name, weight in trainer.model.named_parameters() if not weight.requires_grad}


def test_a_detached_embedding_that_is_the_heads_too_gets_the_heads_gradient(tmp_path):
    tied, untied = double(tied=True), double(tied=False)
    untied.load_state_dict(tied.state_dict(), strict=True)
    untied.lm_head.weight.data.copy_(tied.lm_head.weight)
    ends = [all_weights(trained(tmp_path, {}, model=model)) for model in (tied, untied)]
    assert largest_difference({"": ends[0][EMBEDDING]}, {"": ends[1]["lm_head.weight"]}) < 1e-14


def test_without_propagation_token_means_and_gradient_everywhere_it_is_trls_loss(tmp_path):
    from test_training_laws import trl_run

    options = {"lam": 0, "gamma": 0, "average": "token", "embeddings": "attached"}
    ours, theirs = trained(tmp_path, options), trl_run(tmp_path, double(tied=False))
    # TRL computes its loss in float32.
    assert largest_difference(all_weights(ours), all_weights(theirs)) < 1e-6
    assert largest_difference(all_weights(ours), all_weights(trained(tmp_path, {}))) > 1e-3
    assert ours.state.log_history[0]["loss"] == pytest.approx(theirs.state.log_history[0]["loss"], rel=1e-6)


SPLITS = {
    "default": {},
    "noisy": {"schedule": "noisy", "lam": 0.5},
    "linear": {"schedule": "linear", "lam": 0.6, "lam_start": 0.1},
    "token mean": {"average": "token", "variant": "algorithm1"},
}


@pytest.mark.parametrize("options", list(SPLITS.values()), ids=list(SPLITS))
def test_splitting_the_batch_changes_nothing(tmp_path, options):
    ends = []
    for batch in (8, 1, 2):
        split = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": 8 // batch}
        trainer = trained(tmp_path, options, max_steps=3, learning_rate=0.01, **split)
        ends.append((all_weights(trainer), trainer.state.log_history[0]))
    for end, log in ends[1:]:
        assert largest_difference(ends[0][0], end) < 1e-10
        for metric in ("loss", "nll", "entropy", "weight_mean", "effective_tokens"):
            assert log[metric] == pytest.approx(ends[0][1][metric], rel=1e-6), metric


def test_the_schedules_differ(tmp_path):
    ends = [all_weights(trained(tmp_path, options, max_steps=3)) for options in SPLITS.values()]
    for index, end in enumerate(ends):
        for other in ends[:index]:
            assert largest_difference(end, other) > 1e-5


@pytest.mark.parametrize("options", [{}, {"schedule": "noisy", "variant": "equation21"}])
def test_packing_changes_nothing(tmp_path, options):
    padded = trained(tmp_path, options, max_steps=2)
    packing = {"packing": True, "max_length": 512, "per_device_train_batch_size": 1}
    packed = trained(tmp_path, options, max_steps=2, **packing)
    assert padded.state.log_history[0]["loss"] == pytest.approx(packed.state.log_history[0]["loss"], rel=1e-6)
    assert largest_difference(all_weights(padded), all_weights(packed)) < 1e-10


@pytest.mark.parametrize("embeddings", ["detached", "attached"])
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_changes_nothing(tmp_path, reentrant, embeddings):
    options = {"embeddings": embeddings}
    plain = trained(tmp_path, options, max_steps=2)
    checkpointed = trained(
        tmp_path,
        options,
        max_steps=2,
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": reentrant},
    )
    assert checkpointed.model.is_activation_checkpointing
    assert largest_difference(all_weights(plain), all_weights(checkpointed)) < 1e-12
    assert largest_difference(all_weights(plain), dict(double(tied=False).named_parameters())) > 1e-4


@pytest.mark.parametrize("reentrant", [None, True, False])
def test_lora_gets_the_gradient_of_a_step_by_hand(tmp_path, reentrant):
    from peft import LoraConfig, get_peft_model

    def lora():
        config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], lora_dropout=0.0, init_lora_weights="gaussian")
        torch.manual_seed(1)
        model = get_peft_model(double(), config)
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.1)
        return model

    checkpointing = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": reentrant}}
    changes = {} if reentrant is None else checkpointing
    trainer, by_hand = trained(tmp_path, {}, model=lora(), **changes), lora()
    step_by_hand(by_hand.get_base_model())
    assert largest_difference(all_weights(trainer), stepped(by_hand)) < 1e-12
    moved = {name for name, weight in by_hand.named_parameters() if weight.grad is not None and weight.grad.any()}
    assert moved == {name for name, _ in by_hand.named_parameters() if "lora" in name}


def test_an_adapter_on_the_embedding_needs_attached_inputs(tmp_path):
    from peft import LoraConfig

    for settings in ({"target_modules": ["embed_tokens", "q_proj"]}, {"modules_to_save": ["embed_tokens"]}):
        peft = LoraConfig(r=2, **{"target_modules": ["q_proj"], **settings})
        with pytest.raises(ballast.BallastError, match=r"adapter on it would never be .*embeddings='attached'"):
            trainer_of(tmp_path, {}, peft=peft)
        trainer = trainer_of(tmp_path, {"embeddings": "attached"}, peft=peft, max_steps=2)
        start = all_weights(trainer)
        trainer.train()
        moved = {name for name, weight in all_weights(trainer).items() if not torch.equal(weight, start[name])}
        assert any("embed_tokens" in name for name in moved)


def test_virtual_tokens_are_refused(tmp_path):
    from peft import PrefixTuningConfig, PromptTuningConfig

    for config in (PromptTuningConfig, PrefixTuningConfig):
        with pytest.raises(ballast.BallastError, match="virtual tokens"):
            trainer_of(tmp_path, {}, peft=config(task_type="CAUSAL_LM", num_virtual_tokens=2))


def test_evaluation_reads_the_demonstrated_tokens(tmp_path):
    still = {"learning_rate": 0.0, "model": double(tied=False)}
    mixed = trained(tmp_path, {"lam": 1}, **still)
    plain = run(tmp_path, "sft", **still)
    ours, theirs = (trainer.evaluate(dataset(5)) for trainer in (mixed, plain))
    assert ours["eval_loss"] == pytest.approx(theirs["eval_loss"], rel=1e-12)
    assert abs(mixed.state.log_history[0]["nll"] - plain.state.log_history[0]["nll"]) > 0.01


def test_the_reference_reads_the_demonstrated_tokens(tmp_path):
    nlls = []
    for lam in (0, 1):
        trainer = trained(tmp_path, {"lam": lam}, learning_rate=0.0, reference="model")
        log = trainer.state.log_history[0]
        # log q does not depend on the share: log p − log q = −nll − log q.
        nlls.append(log["log_ratio"] + log["nll"])
        assert log["kl"] == pytest.approx(0, abs=1e-9) if lam == 0 else log["kl"] > 0.1
        assert trainer.evaluate(dataset(5))["eval_kl"] == pytest.approx(0, abs=1e-9)
    assert nlls[0] == pytest.approx(nlls[1], rel=1e-9)


@pytest.mark.parametrize("options", [{"schedule": "noisy"}, {"schedule": "linear", "lam": 0.5}])
def test_resumed_is_undisturbed(tmp_path, options):
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole = trained(tmp_path / "whole", options, **settings)
    again = trainer_of(tmp_path / "again", options, **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert largest_difference(all_weights(whole), all_weights(again)) < 1e-12
    afresh = trained(tmp_path / "afresh", options, **{**settings, "seed": 43})
    assert (largest_difference(all_weights(whole), all_weights(afresh)) > 1e-6) == (options["schedule"] == "noisy")


def test_the_rows_are_of_different_lengths():
    assert len({len(row["completion"]) for row in rows()}) > 5
