"""The head's pass within training: tokens known to have no loss are left out, and the log says what it measured."""

from __future__ import annotations

import pytest
import torch

import ballast
from ballast.training import loss as module
from group_rows import GROUPS
from group_rows import run as run_groups
from test_training_laws import double, make_cache
from training_tools import largest_difference, run, weights


@pytest.fixture
def projected(monkeypatch):
    """How many tokens each training forward sent through the head, of how many."""
    seen = []
    real = module.fused_pass

    def counted(hidden, head, targets, *rest, **options):
        found = real(hidden, head, targets, *rest, **options)
        seen.append((len(found.stats.logprob), len(targets)))
        return found

    monkeypatch.setattr(module, "fused_pass", counted)
    return seen


def two_runs(tmp_path, name):
    """Train four steps, logging at every one, and at every other one."""
    ends = []
    for every in (1, 2):
        cache = make_cache(tmp_path / f"cache-{every}", double())
        options = {"max_steps": 4, "logging_steps": every, "per_device_train_batch_size": 4}
        ends.append(run(tmp_path / str(every), name, model=double(), reference=cache, **options))
    return ends


def logs(trainer):
    return [log for log in trainer.state.log_history if "loss" in log]


def test_dropped_tokens_are_projected_where_the_step_is_logged_alone(tmp_path, projected):
    every, other = two_runs(tmp_path, "prift-mass")
    assert largest_difference(weights(every), weights(other)) < 1e-10
    whole, part = projected[:4], projected[4:]
    assert all(done == count for done, count in whole)
    assert [done == count for done, count in part] == [False, True, False, True]
    assert all(done > 0 for done, _ in part)
    first, second, third, fourth = logs(every)
    assert len(logs(other)) == 2
    sizes_of = [[count for _, count in whole[place : place + 2]] for place in (0, 2)]
    for log, pair, sizes in zip(logs(other), ((first, second), (third, fourth)), sizes_of, strict=True):
        assert log["measured_share"] == pytest.approx(sizes[1] / sum(sizes))
        for name in ("nll", "entropy", "log_ratio"):
            assert log[name] == pytest.approx(pair[1][name], rel=1e-9), name
        for name in ("weight_mean", "weight_zero_share"):
            mean = sum(one[name] * size for one, size in zip(pair, sizes, strict=True)) / sum(sizes)
            assert log[name] == pytest.approx(mean, rel=1e-9), name
        assert log["loss"] == pytest.approx((pair[0]["loss"] + pair[1]["loss"]) / 2, rel=1e-4)
    assert all("measured_share" not in log for log in logs(every))
    assert logs(other)[1]["num_tokens"] == fourth["num_tokens"]


def test_what_has_a_loss_everywhere_is_measured_everywhere(tmp_path, projected):
    every, other = two_runs(tmp_path, "prift-prob")
    assert largest_difference(weights(every), weights(other)) < 1e-12
    assert all(done == count for done, count in projected)
    pair = logs(every)[:2]
    assert logs(other)[0]["nll"] != pytest.approx(pair[1]["nll"], rel=1e-3)
    assert "measured_share" not in logs(other)[0]


def test_answers_without_advantage_are_left_out_too(tmp_path, projected):
    ends = []
    for every in (1, 2):
        options = {"max_steps": 2, "logging_steps": every, "per_device_train_batch_size": 4}
        ends.append(run_groups(tmp_path / str(every), groups={**GROUPS, "own": 1, "teacher": 0}, **options))
    assert largest_difference(*map(weights, ends)) < 1e-10
    assert [done == count for done, count in projected] == [True, True, False, True]
    alone, pair = logs(ends[1])[0], logs(ends[0])
    assert alone["own/probability"] == pytest.approx(pair[1]["own/probability"], rel=1e-6)
    assert alone["own/reward"] == pytest.approx((pair[0]["own/reward"] + pair[1]["own/reward"]) / 2)


def test_an_objective_of_wider_scope_goes_through_two_phases(tmp_path, monkeypatch, projected):
    calls = []
    real = module.two_phase
    monkeypatch.setattr(module, "two_phase", lambda *a, **k: calls.append(k["fields"]) or real(*a, **k))
    run(tmp_path / "eksft", "eksft")
    run(tmp_path / "ift", "ift")
    assert len(calls) == 2
    assert not projected


def test_called_outside_of_training_the_batch_is_the_step(tmp_path):
    trainer = run(tmp_path, "sft", model=double())
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.train()
    trainer.state.global_step = 0
    loss = trainer.compute_loss(trainer.model, dict(batch))
    logits = trainer.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    mask = batch["labels"][:, 1:] != -100
    plain = torch.nn.functional.cross_entropy(logits[:, :-1][mask], batch["labels"][:, 1:][mask])
    assert float(loss.detach()) == pytest.approx(float(plain.detach()), rel=1e-9)
    assert loss.requires_grad
    assert isinstance(trainer.objective, ballast.Objective)
