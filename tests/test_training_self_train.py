"""Online self-training: each origin's mean over the whole optimiser step weighs the same."""

import dataclasses

import pytest
import torch

import ballast
from ballast.training import shares
from group_rows import GROUPS, model, prompts, run, tokenizer, trainer
from training_tools import config, weights

SELF_TRAIN = {"name": "self-train"}
STEP = {"max_steps": 1, "learning_rate": 0.5, "per_device_train_batch_size": 8, "optim": "sgd"}


def losses(made):
    return [log["loss"] for log in made.state.log_history if "loss" in log]


def trained(tmp_path, **settings):
    return run(tmp_path, objective=SELF_TRAIN, **{**STEP, **settings})


def halves(net, made):
    """Return the loss by hand: half the mean over expert's tokens, half that over right own answers'."""
    nll = {"expert": [], "own": []}
    for group in made:
        for member in group.members:
            if member.origin == "own" and member.reward != 1:
                continue
            ids = torch.tensor([member.ids])
            logprobs = net(ids).logits[0].double().log_softmax(-1)
            answer = range(member.start, len(member.ids))
            nll[member.origin] += [-logprobs[place - 1, member.ids[place]] for place in answer]
    parts = [torch.stack(values).mean() for values in nll.values() if values]
    return sum(parts) / len(parts)


def one_step(tmp_path, groups=None, **settings):
    """Return the trainer after a step, the groups of the step, and the model as it was before."""
    made = trainer(tmp_path, objective=SELF_TRAIN, groups=groups, **{**STEP, **settings})
    before, seen = model(), []
    take = made.groups.take

    def watched(*given):
        batches = take(*given)
        seen.extend(made.groups._batches._groups.values())
        return batches

    made.groups.take = watched
    made.train()
    return made, seen, before


ROWS = [{**row, "teachers": []} for row in prompts()]


def test_the_loss_is_half_of_each_mean_and_so_is_the_gradient(tmp_path):
    made, groups, before = one_step(tmp_path, rows=ROWS)
    rewards = [member.reward for group in groups for member in group.members if member.origin == "own"]
    assert 0 < sum(rewards) < len(rewards)
    expected = halves(before, groups)
    assert losses(made)[0] == pytest.approx(expected.item(), rel=1e-5)
    expected.backward()
    for name, weight in made.model.named_parameters():
        start = dict(before.named_parameters())[name]
        torch.testing.assert_close(start.detach() - 0.5 * start.grad, weight.detach(), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_micro_batches_do_not_matter(tmp_path, batch):
    whole = trained(tmp_path / "whole", rows=ROWS)
    split = trained(
        tmp_path / "split", rows=ROWS, per_device_train_batch_size=batch, gradient_accumulation_steps=8 // batch
    )
    assert losses(split) == pytest.approx(losses(whole), rel=1e-6)
    for one, other in zip(weights(whole).values(), weights(split).values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


def plain(tmp_path, max_steps=3):
    from datasets import Dataset

    made = ballast.Trainer(
        model(),
        config(tmp_path, **{**STEP, "max_steps": max_steps}),
        train_dataset=Dataset.from_list([{name: row[name] for name in ("prompt", "completion")} for row in ROWS]),
        processing_class=tokenizer(),
        objective="sft",
    )
    made.train()
    return made


def test_without_own_answers_it_is_sft(tmp_path):
    alone = trained(tmp_path / "alone", rows=ROWS, groups={**GROUPS, "own": 0}, max_steps=3)
    sft = plain(tmp_path / "sft")
    assert losses(alone) == losses(sft)
    for one, other in zip(weights(alone).values(), weights(sft).values(), strict=True):
        assert torch.equal(one, other)


def test_with_nothing_right_it_is_sft_but_for_rounding(tmp_path):
    wrong = trained(tmp_path / "wrong", rows=ROWS, groups={**GROUPS, "verifier": "group_rows:NOTHING"})
    sft = plain(tmp_path / "sft", max_steps=1)
    assert losses(wrong) == pytest.approx(losses(sft), rel=1e-6)
    # The share of the expert's tokens is a column in float32, as all columns are.
    for one, other in zip(weights(wrong).values(), weights(sft).values(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-7)


def test_own_answers_alone_are_rejection_sampling(tmp_path):
    made, groups, before = one_step(tmp_path, {**GROUPS, "expert": 0, "teacher": 0}, rows=ROWS)
    assert {member.origin for group in groups for member in group.members} == {"own"}
    assert losses(made)[0] == pytest.approx(halves(before, groups).item(), rel=1e-5)


def test_the_log_names_rewards_by_origin(tmp_path):
    logged = trained(tmp_path, rows=ROWS).state.log_history[0]
    assert {"expert/reward", "own/reward", "groups/own"} <= logged.keys()
    assert logged["nll"] != pytest.approx(logged["loss"])


def by_micro_batch(batches, *given):
    for batch in batches:
        shares.fill_shares([batch], *given)


MUTANTS = {
    "over the micro-batch": by_micro_batch,
    "wrong answers counted": lambda batches, objective, *given: shares.fill_shares(
        batches, dataclasses.replace(Everything(), needs_=objective.needs), *given
    ),
    "no share": lambda batches, *_: [batch.update(share=torch.ones_like(batch["origin"])) for batch in batches],
}


@dataclasses.dataclass(frozen=True)
class Everything:
    needs_: tuple = ()

    @property
    def needs(self):
        return self.needs_

    def active(self, columns):
        return None


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_wrong_share_is_found(tmp_path, monkeypatch, mutant):
    monkeypatch.setattr("ballast.training.trainer.fill_shares", MUTANTS[mutant])
    split = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8}
    made, groups, before = one_step(tmp_path, rows=ROWS, **split)
    assert losses(made)[0] != pytest.approx(halves(before, groups).item(), rel=1e-3)
