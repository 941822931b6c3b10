"""What is computed of micro-batches before they are trained on: the old model's scores, the weights of a whole step."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

import ballast
from ballast import BallastError, TokenStats, objective
from ballast.objectives import Objective
from ballast.training import ahead
from tiny import char_tokenizer, tiny_model
from training_tools import config, dataset, largest_difference, run, weights


def train(tmp_path, built, *, rows=16, model=None, resume=None, **changes):
    settings = {"per_device_train_batch_size": 4, "max_steps": 4, "learning_rate": 0.05, **changes}
    trainer = ballast.Trainer(
        model if model is not None else tiny_model(dtype=torch.float64),
        config(tmp_path, **settings),
        train_dataset=dataset(rows),
        processing_class=char_tokenizer(),
        objective=built,
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def logged(trainer, name):
    return [log[name] for log in trainer.state.log_history if name in log]


# The old model


def test_the_first_step_of_a_round_has_the_gradient_of_sft(tmp_path):
    plain = train(tmp_path / "sft", "sft", max_steps=1)
    for refresh in (1, 3):
        first = train(tmp_path / str(refresh), objective("psft", refresh=refresh), max_steps=1)
        assert largest_difference(weights(plain), weights(first)) < 1e-12
        assert logged(first, "loss") == [pytest.approx(-1)]


def test_scoring_anew_at_every_step_is_sft_whatever_the_bound(tmp_path):
    plain = train(tmp_path / "sft", "sft")
    for clip in (0.01, 1e9):
        trained = train(tmp_path / str(clip), objective("psft", refresh=1, clip=clip))
        assert largest_difference(weights(plain), weights(trained)) < 1e-12


@pytest.mark.parametrize(("refresh", "starts"), [(1, [0, 1, 2, 3]), (2, [0, 2]), (3, [0, 3]), (8, [0])])
def test_the_old_model_is_that_of_the_last_scoring(tmp_path, refresh, starts):
    """Where a round begins nothing has moved; elsewhere the log-ratio is that to the weights of the round's start."""
    trained = train(tmp_path, objective("psft", refresh=refresh, clip=9))
    moved = [abs(ratio) > 1e-6 for ratio in logged(trained, "old_log_ratio")]
    assert [step for step, has in enumerate(moved) if not has] == starts


def test_the_old_log_probabilities_are_those_of_an_earlier_checkpoint(tmp_path):
    saved = {"save_strategy": "steps", "save_steps": 1, "per_device_train_batch_size": 16, "rows": 64}
    trained = train(tmp_path, objective("psft", refresh=4, clip=9), **saved)
    (kept,) = json.loads((tmp_path / "checkpoint-3" / "ballast-0.json").read_text())["old"]
    start = tiny_model(dtype=torch.float64)
    scored = {}
    for batch in trained.get_train_dataloader():
        with torch.no_grad():
            logits = start(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        labels = batch["labels"][:, 1:]
        logp = logits[:, :-1].log_softmax(-1).gather(2, labels.clamp(min=0)[..., None]).squeeze(-1)
        scored[ahead._digest(batch)] = logp[labels != -100]
    torch.testing.assert_close(torch.tensor(kept["values"], dtype=torch.float64), scored[kept["batch"]])


def test_the_bound_holds_within_a_round(tmp_path):
    free = train(tmp_path / "free", objective("psft", refresh=4, clip=1e9))
    bound = train(tmp_path / "bound", objective("psft", refresh=4, clip=0.05))
    assert max(logged(free, "clipped")) == 0
    assert max(logged(bound, "clipped")) > 0.3
    assert max(logged(bound, "old_log_ratio")) < max(logged(free, "old_log_ratio"))


@pytest.mark.parametrize("accumulation", [2, 4])
def test_splitting_the_batch_changes_nothing(tmp_path, accumulation):
    whole = train(tmp_path / "whole", objective("psft", refresh=3, clip=0.1))
    size = {"per_device_train_batch_size": 4 // accumulation, "gradient_accumulation_steps": accumulation}
    parts = train(tmp_path / "parts", objective("psft", refresh=3, clip=0.1), **size)
    assert largest_difference(weights(whole), weights(parts)) < 1e-12


@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_a_resumed_run_is_the_undisturbed_one(tmp_path, steps):
    settings = {"rows": 24, "max_steps": 8, "save_strategy": "steps", "save_steps": 1}
    built = objective("psft", refresh=4, clip=0.1)
    whole = train(tmp_path / "whole", built, **settings)
    checkpoint = str(tmp_path / "whole" / f"checkpoint-{steps}")
    again = train(tmp_path / "again", built, resume=checkpoint, **settings)
    assert largest_difference(weights(whole), weights(again)) == 0


def test_a_run_that_goes_on_with_other_rows_is_refused(tmp_path):
    settings = {"rows": 24, "max_steps": 8, "save_strategy": "steps", "save_steps": 2}
    train(tmp_path / "whole", objective("psft", refresh=4), **settings)
    changed = {**settings, "data_seed": 7}
    with pytest.raises(BallastError, match="not those that were scored before it: data, batch size, seed"):
        train(
            tmp_path / "again", objective("psft", refresh=4), resume=str(tmp_path / "whole" / "checkpoint-2"), **changed
        )


def test_scoring_leaves_dropout_and_the_gradients_alone(tmp_path):
    model = tiny_model(attention_dropout=0.3)
    trained = train(tmp_path, objective("psft", refresh=2), model=model, max_steps=1)
    assert trained.model.training
    # Scored with dropout off, trained with it on: the ratio is not 1 already at the first step.
    assert abs(logged(trained, "old_log_ratio")[0]) > 1e-4


# The step as a scope


@dataclass(frozen=True)
class AboveTheMean(Objective):
    """Imitate the tokens of a step that are likelier than its mean token, and lower the entropy of all."""

    name: ClassVar[str] = "above-the-mean"
    source: ClassVar[str] = "these tests"
    scope: ClassVar[str] = "step"
    needs: ClassVar[tuple[str, ...]] = ("logprob", "entropy")

    def weight(self, stats: TokenStats) -> torch.Tensor:
        logprob = stats.require("logprob")
        return (logprob > logprob.mean()).to(logprob.dtype)

    def extra(self, stats: TokenStats) -> torch.Tensor:
        return 0.1 * stats.require("entropy")

    def report(self, stats: TokenStats) -> dict[str, torch.Tensor]:
        return {"sharpness": -stats.require("entropy")}


STEP = {
    "talr": objective("talr"),
    "deft": objective("deft", exponent="cayley"),
    "tail-sft": objective("tail-sft"),
    "with terms of its own": AboveTheMean(),
}


@pytest.mark.parametrize("built", list(STEP.values()), ids=list(STEP))
@pytest.mark.parametrize("size", [8, 2])
def test_the_weights_are_those_of_the_whole_step(tmp_path, built, size):
    split = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 8 // size, "max_steps": 1}
    trained = train(tmp_path / "ours", built, rows=8, **split)
    expected = by_hand(built)
    assert largest_difference(weights(trained), expected) < 1e-12
    assert largest_difference(weights(trained), weights(train(tmp_path / "sft", "sft", rows=8, **split))) > 1e-5


def by_hand(built):
    """One step of gradient descent on the whole batch, with full logits and autograd."""
    trainer = ballast.Trainer(
        tiny_model(dtype=torch.float64),
        config("unused", per_device_train_batch_size=8),
        train_dataset=dataset(8),
        processing_class=char_tokenizer(),
    )
    (batch,) = trainer.get_train_dataloader()
    model = tiny_model(dtype=torch.float64)
    labels = batch["labels"][:, 1:]
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1][labels != -100]
    logp = logits.log_softmax(-1)
    stats = TokenStats(
        logprob=logp.gather(1, labels[labels != -100][:, None]).squeeze(1),
        entropy=-(logp.exp() * logp).sum(-1),
        ref_logprob=logp.gather(1, labels[labels != -100][:, None]).squeeze(1).detach(),
        sequence=(labels != -100).nonzero()[:, 0],
    )
    loss = (-stats.logprob * built.weight(stats).detach() + built.extra(stats)).sum() / len(logp)
    loss.backward()
    return {name: (weight - 0.05 * weight.grad).detach() for name, weight in model.named_parameters()}


def test_what_the_objective_reports_is_logged(tmp_path):
    trained = train(tmp_path, AboveTheMean(), max_steps=1)
    assert logged(trained, "sharpness") == pytest.approx([-value for value in logged(trained, "entropy")])


def test_tokens_of_weight_0_are_not_projected(tmp_path):
    @dataclass(frozen=True)
    class Few(AboveTheMean):
        def extra(self, stats):
            return 0 * stats.require("logprob")

    assert ahead.Weighed(Few()).active({"step_weight": torch.tensor([0.0, 1.0])}) is None

    column = torch.tensor([0.0, 2.0])
    for alone in (objective("talr"), objective("product", of=["talr", "reweight"])):
        weighed = ahead.Weighed(alone)
        assert weighed.active({"step_weight": column}).tolist() == [False, True]
        assert weighed.needs == ("logprob", "step_weight")
    for wide in (AboveTheMean(), objective("product", of=["talr", "kl-sft"])):
        weighed = ahead.Weighed(wide)
        assert weighed.active({"step_weight": column}) is None
        assert weighed.needs == ("logprob", "step_weight", *wide.needs[1:])

    @dataclass(frozen=True)
    class Reports(AboveTheMean):
        extra = Objective.extra

    weighed = ahead.Weighed(Reports())
    assert weighed.active({"step_weight": column}).tolist() == [False, True]
    assert weighed.needs == ("logprob", "step_weight", "entropy")


def test_sequences_of_different_micro_batches_stay_apart():
    parts = [{"sequence": torch.tensor([0, 0, 1])}, {"sequence": torch.tensor([0, 2])}, {"sequence": torch.tensor([0])}]
    assert ahead._joined(parts)["sequence"].tolist() == [0, 0, 1, 2, 4, 5]


def test_groups_of_different_micro_batches_stay_apart():
    parts = [{"sequence": torch.tensor([0, 1]), "group": torch.tensor([0.0, 1.0])}] * 2
    assert ahead._joined(parts)["group"].tolist() == [0, 1, 2, 3]


def test_a_loss_of_its_own_is_refused_with_this_scope():
    with pytest.raises(BallastError, match="per_token_loss of its own, which would see single micro-batches"):
        objective(f"{__name__}:OwnLoss")


@dataclass(frozen=True)
class OwnLoss(AboveTheMean):
    """Has a loss of its own."""

    name: ClassVar[str] = "own-loss"

    def per_token_loss(self, stats: TokenStats) -> torch.Tensor:
        return -stats.require("logprob")


@dataclass(frozen=True)
class NoRefresh(Objective):
    """Reads the old model and does not say how old."""

    name: ClassVar[str] = "no-refresh"
    source: ClassVar[str] = "these tests"
    needs: ClassVar[tuple[str, ...]] = ("logprob", "old_logprob")


def test_an_old_model_without_refresh_is_refused():
    with pytest.raises(BallastError, match="no option 'refresh', so the old model would never be scored"):
        objective(f"{__name__}:NoRefresh")


# Progress


@dataclass(frozen=True)
class WarmsUp(Objective):
    """Weighs every token by the share of the training that is done."""

    name: ClassVar[str] = "warms-up"
    source: ClassVar[str] = "these tests"
    needs: ClassVar[tuple[str, ...]] = ("logprob", "progress")

    def weight(self, stats: TokenStats) -> torch.Tensor:
        return stats.require("progress")


def test_progress_is_the_share_of_the_steps_taken(tmp_path):
    trained = train(tmp_path / "whole", WarmsUp(), save_strategy="steps", save_steps=2)
    assert logged(trained, "weight_mean") == pytest.approx([0, 0.25, 0.5, 0.75])
    again = train(tmp_path / "again", WarmsUp(), resume=str(tmp_path / "whole" / "checkpoint-2"))
    assert logged(again, "weight_mean")[2:] == pytest.approx([0.5, 0.75])


def test_progress_reaches_a_step_as_a_scope(tmp_path):
    @dataclass(frozen=True)
    class OfTheStep(WarmsUp):
        scope: ClassVar[str] = "step"

    trained = train(tmp_path, OfTheStep(), gradient_accumulation_steps=2, max_steps=2)
    assert logged(trained, "weight_mean") == pytest.approx([0, 0.5])


# What is computed


def test_of_a_reference_only_what_is_declared_is_computed_between_logs(tmp_path, monkeypatch):
    from ballast.training.reference import RunReference

    asked, original = [], RunReference.states

    def states(self, mask, inputs, fields):
        found = original(self, mask, inputs, fields)
        asked.append((fields, found is not None))
        return found

    monkeypatch.setattr(RunReference, "states", states)
    trainer = run(tmp_path / "prob", "prift-prob", max_steps=2, logging_steps=2)
    assert [("kl" in fields, states) for fields, states in asked] == [(False, True), (True, True)]
    assert "kl" in trainer.state.log_history[0]
    asked.clear()
    trainer = run(tmp_path / "sft", "sft", reference="model", max_steps=2, logging_steps=2)
    assert [("ref_logprob" in fields, states) for fields, states in asked] == [(False, False), (True, True)]
    # Of the second step alone, in which the model has moved.
    assert trainer.state.log_history[0]["kl"] > 1e-4
