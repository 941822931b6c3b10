"""Laws of training on groups: TRL's GRPO gradient, one divisor, equal rewards teach nothing, resumed = undisturbed."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import Tensor

import ballast
from ballast import TokenStats, objective
from ballast.groups import ORIGINS, Group, GroupOptions, Member, SampledGroups, advantages
from ballast.training.groups import GroupBatches
from group_rows import GROUPS, model, prompts, run, tokenizer, trainer
from training_tools import config, largest_difference, weights

START = dict(model().named_parameters())


def moved(made) -> float:
    return largest_difference(weights(made), START)


def batches_of_a_step(made):
    """Return the micro-batches that the first step would train on."""
    return made.step_batches(iter(made.get_train_dataloader()), 1)


@pytest.mark.parametrize("aggregation", ["token", "sequence"])
def test_splitting_the_batch_changes_nothing(tmp_path, aggregation):
    ends = []
    chosen = {"name": "gft", "tau": 0.3, "aggregation": aggregation}
    for size in (8, 1, 2):
        split = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 8 // size}
        made = run(tmp_path, objective=chosen, max_steps=2, **split)
        ends.append((weights(made), made.state.log_history[1]))
    assert moved(made) > 1e-4
    for end, log in ends[1:]:
        assert largest_difference(ends[0][0], end) < 1e-10
        for name, value in ends[0][1].items():
            if not name.startswith("seconds"):
                assert log[name] == pytest.approx(value, rel=1e-6, abs=1e-9), name


def test_equal_rewards_give_exactly_no_gradient(tmp_path):
    nothing = {**GROUPS, "verifier": "group_rows:NOTHING"}
    made = run(tmp_path, groups=nothing, max_steps=2)
    assert moved(made) == 0
    log = made.state.log_history[0]
    assert log["groups/zero_advantage"] == 1
    assert log["weight_zero_share"] == 1
    assert log["loss"] == 0
    assert log["grad_norm"] == 0
    assert moved(run(tmp_path, max_steps=1)) > 1e-4


def test_own_answers_without_rectification_have_grpos_gradient(tmp_path):
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    made = trainer(
        tmp_path, groups={**GROUPS, "expert": 0, "teacher": 0, "own": 4}, objective={"name": "gft", "tau": 0}
    )
    (batch,) = batches_of_a_step(made)
    theirs = GRPOTrainer(
        model(),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=config(tmp_path, config_class=GRPOConfig, bf16=False, loss_type="dapo", beta=0.0, num_generations=4),
        train_dataset=Dataset.from_list(prompts()),
        processing_class=tokenizer(),
    )
    theirs.model.train()
    theirs.current_gradient_accumulation_steps = 1
    theirs._compute_loss(theirs.model, grpo_inputs(batch)).backward()
    made.model.train()
    made.compute_loss(made.model, dict(batch), num_items_in_batch=made.step_count([batch], "cpu")).backward()
    ours, others = (dict(one.model.named_parameters()) for one in (made, theirs))
    assert max(float(weight.grad.abs().max()) for weight in ours.values()) > 1e-3
    assert ours.keys() == others.keys()
    for name, weight in ours.items():
        # TRL's head works in float32 whatever the model's dtype.
        torch.testing.assert_close(weight.grad, others[name].grad, rtol=1e-4, atol=2e-6)


def grpo_inputs(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Lay the same answers out as TRL does: prompts padded on the left, completions on the right."""
    prompt, completion, advantage = [], [], []
    for ids, labels, values in zip(batch["input_ids"], batch["labels"], batch["advantage"], strict=True):
        trained = labels != -100
        start = int(trained.nonzero()[0])
        prompt.append(ids[:start].tolist())
        completion.append(ids[trained].tolist())
        advantage.append(float(values[trained][0]))
    left, right = max(map(len, prompt)), max(map(len, completion))
    return {
        "prompt_ids": torch.tensor([[0] * (left - len(ids)) + ids for ids in prompt]),
        "prompt_mask": torch.tensor([[0] * (left - len(ids)) + [1] * len(ids) for ids in prompt]),
        "completion_ids": torch.tensor([ids + [0] * (right - len(ids)) for ids in completion]),
        "completion_mask": torch.tensor([[1] * len(ids) + [0] * (right - len(ids)) for ids in completion]),
        "advantages": torch.tensor(advantage, dtype=torch.float64),
        "num_items_in_batch": torch.tensor(float(sum(map(len, completion)))),
    }


def test_the_ids_that_were_sampled_are_the_ids_that_are_trained(tmp_path):
    from ballast.evaluation.generation import GenerationOptions, encode_prompt, generate

    made = trainer(tmp_path, groups={**GROUPS, "expert": 0, "teacher": 0})
    (batch,) = batches_of_a_step(made)
    order = [row for part in made.get_train_dataloader() for row in part["row"].tolist()]
    options = GenerationOptions(max_new_tokens=10, samples=3, temperature=1.0, seed=made.args.seed)
    texts = [prompts()[row]["prompt"] for row in order]
    sampled = generate(made.model, tokenizer(), texts, options, streams=[(0, row) for row in order])
    expected = [
        (encode_prompt(tokenizer(), text), one) for text, found in zip(texts, sampled, strict=True) for one in found
    ]
    assert len(batch["input_ids"]) == len(expected) == 24
    for ids, labels, mask, (prompt, answer) in zip(
        batch["input_ids"], batch["labels"], batch["attention_mask"], expected, strict=True
    ):
        assert ids[mask.bool()].tolist() == [*prompt, *answer.ids]
        assert labels[labels != -100].tolist() == list(answer.ids)
        assert (answer.ids[-1] == 2) == answer.ended


def test_a_step_holds_every_origin_with_its_groups_advantages(tmp_path):
    made = trainer(tmp_path)
    (batch,) = batches_of_a_step(made)
    trained = batch["labels"] != -100
    seen = {name: torch.tensor([column[mask][0] for column, mask in zip(batch[name], trained, strict=True)])
            for name in ("advantage", "origin")}  # fmt: skip
    # Eight experts, two teachers in five of the rows, three own answers each.
    assert torch.bincount(seen["origin"].long()).tolist() == [8, 10, 24]
    order = [row for part in made.get_train_dataloader() for row in part["row"].tolist()]
    for number, row in enumerate(order):
        mine = (batch["group"] == number).any(1).nonzero().flatten()
        rewards = []
        for place in mine.tolist():
            ids = batch["labels"][place][trained[place]].tolist()
            text = tokenizer().decode(ids, skip_special_tokens=True)
            ended = ids[-1] == 2
            rewards.append(float(sum(c.isdigit() for c in text) % 2 == 0) if ended else 0.0)
        torch.testing.assert_close(seen["advantage"][mine], torch.tensor(advantages(rewards)), rtol=1e-6, atol=1e-6)
        assert len(mine) == 4 + len(prompts()[row]["teachers"])
    constant = [
        bool((column[mask] == column[mask][0]).all()) for column, mask in zip(batch["advantage"], trained, strict=True)
    ]
    assert all(constant)


def test_metrics_by_origin_are_those_of_a_naive_count(tmp_path):
    made = trainer(tmp_path)
    (batch,) = batches_of_a_step(made)
    with torch.no_grad():
        logits = model()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    logp = logits.log_softmax(-1)
    log = run(tmp_path).state.log_history[0]
    for place, origin in enumerate(ORIGINS):
        rows = [row for row, column in enumerate(batch["origin"]) if (column == place).any()]
        p, entropy, lengths = [], [], []
        for row in rows:
            targets = batch["labels"][row][1:]
            mask = targets != -100
            p += logp[row][mask].gather(1, targets[mask][:, None]).exp().flatten().tolist()
            entropy += (-(logp[row].exp() * logp[row]).sum(-1)[mask]).tolist()
            lengths.append(int(mask.sum()))
        assert log[f"{origin}/probability"] == pytest.approx(sum(p) / len(p), rel=1e-6)
        assert log[f"{origin}/rectified"] == pytest.approx(sum(one < 0.3 for one in p) / len(p))
        assert log[f"{origin}/entropy"] == pytest.approx(sum(entropy) / len(entropy), rel=1e-6)
        assert log[f"{origin}/length"] == pytest.approx(sum(lengths) / len(lengths))
    assert log["expert/reward"] == sum((sum(c.isdigit() for c in row["completion"]) % 2 == 0) for row in prompts()) / 8
    assert 0 < log["own/reward"] < 1
    assert log["groups/cut_off"] > 0
    assert log["seconds/sampling"] > 0


@pytest.mark.parametrize("refresh", [1, 3])
def test_resumed_is_undisturbed(tmp_path, refresh):
    settings = {
        "groups": {**GROUPS, "refresh": refresh},
        "max_steps": 6,
        "per_device_train_batch_size": 2,
        "save_strategy": "steps",
        "save_steps": 2,
    }
    whole = run(tmp_path / "whole", **settings)
    assert (tmp_path / "whole" / "checkpoint-2" / "ballast-0.json").exists() == (refresh == 3)
    again = trainer(tmp_path / "again", **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert largest_difference(weights(whole), weights(again)) < 1e-12
    rewards = [[log["own/reward"] for log in one.state.log_history if "own/reward" in log] for one in (whole, again)]
    assert rewards[0] == pytest.approx(rewards[1])
    assert len(rewards[0]) == 6


def test_a_changed_order_is_not_trained_on_answers_to_other_prompts(tmp_path):
    settings = {"groups": {**GROUPS, "refresh": 3}, "per_device_train_batch_size": 2, "save_strategy": "steps"}
    run(tmp_path / "whole", **settings, max_steps=4, save_steps=2)
    again = trainer(tmp_path / "again", **settings, max_steps=4, save_steps=2, data_seed=5)
    with pytest.raises(ballast.BallastError, match="not those its answers were sampled for"):
        again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))


def test_refresh_says_which_model_sampled(tmp_path, monkeypatch):
    from ballast.training import groups as module

    rounds = []
    real = module.sample_groups

    def watched(net, rows, indices, *, seed, step):
        rounds.append((step, list(indices)))
        return real(net, rows, indices, seed=seed, step=step)

    monkeypatch.setattr(module, "sample_groups", watched)
    settings = {
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 2,
        "num_train_epochs": 2,
        "max_steps": -1,
    }
    run(tmp_path, groups={**GROUPS, "refresh": 3}, rows=prompts(7), **settings)
    # Seven prompts, two a step: four steps an epoch, in rounds of three steps and of one.
    assert [(step, len(rows)) for step, rows in rounds] == [(0, 6), (3, 1), (4, 6), (7, 1)]
    assert sorted(rounds[0][1] + rounds[1][1]) == list(range(7)) == sorted(rounds[2][1] + rounds[3][1])


def test_an_experts_end_that_ends_no_own_answer_is_told(tmp_path):
    made = trainer(tmp_path, rows=[{"prompt": "1+", "completion": "2x", "answer": "2"}])
    with pytest.warns(UserWarning, match=r"row 1: the expert's answer has none of the tokens that end an own one"):
        made.groups.rows.check_ends({77})
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        made.groups.rows.check_ends({2})


def test_advantages_of_both_signs_have_effective_tokens(tmp_path):
    log = run(tmp_path).state.log_history[0]
    assert log["effective_tokens"] > 10


def test_a_round_of_one_step_is_sampled_by_the_model_of_that_step(tmp_path):
    """With refresh 2 the second step trains on answers of the first step's model, so the runs part there."""
    settings = {"per_device_train_batch_size": 4, "max_steps": 2, "learning_rate": 2.0}
    on_policy, stale = (run(tmp_path, groups={**GROUPS, "refresh": refresh}, **settings) for refresh in (1, 2))
    first, second = ([log[f"own/{name}"] for log in one.state.log_history if "own/reward" in log]
                     for one, name in ((on_policy, "probability"), (stale, "probability")))  # fmt: skip
    assert first[0] == pytest.approx(second[0])
    assert first[1] != pytest.approx(second[1], rel=1e-3)


def test_lora_and_gradient_checkpointing(tmp_path):
    from peft import LoraConfig

    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.0)
    ends = []
    for checkpointing in (False, True):
        made = run(tmp_path, lora=lora, max_steps=3, learning_rate=5.0, gradient_checkpointing=checkpointing)
        assert all("lora" in name for name in weights(made))
        ends.append(weights(made))
    assert largest_difference(*ends) < 1e-9
    assert max(float(weight.abs().max()) for name, weight in ends[0].items() if "lora_B" in name) > 1e-4


def test_demonstrations_are_held_out_as_ever(tmp_path):
    from datasets import Dataset

    held_out = Dataset.from_list([{k: row[k] for k in ("prompt", "completion")} for row in prompts(12)[8:]])
    made = run(tmp_path, evaluation=held_out, eval_strategy="steps", eval_steps=1)
    log = next(log for log in made.state.log_history if "eval_loss" in log)
    assert log["eval_loss"] == pytest.approx(log["eval_nll"])
    assert log["eval_weight_mean"] == 1
    plain = ballast.Trainer(
        made.model, config(tmp_path), train_dataset=held_out, eval_dataset=held_out, processing_class=tokenizer()
    )
    assert made.evaluate()["eval_loss"] == pytest.approx(plain.evaluate()["eval_loss"])


def test_the_models_modes_and_the_process_random_state_are_left_alone(tmp_path):
    made = trainer(tmp_path)
    made.model.train()
    state, configuration = torch.get_rng_state(), made.model.generation_config.to_dict()
    made.groups.take(iter(made.get_train_dataloader()), 1, 0)
    drawn = torch.get_rng_state()
    made.groups.take(iter([{"row": torch.tensor([0, 1])}]), 1, 1)
    assert torch.equal(drawn, torch.get_rng_state())
    assert len(state) == len(drawn)
    assert made.model.training
    assert made.model.generation_config.to_dict() == configuration


def group(row: int, *rewards: float) -> Group:
    return Group(row, tuple(Member((1, 4, 5, 2), 2, "own", reward, "") for reward in rewards))


def test_micro_batches_are_laid_out_in_the_order_of_their_prompts():
    drawn = []

    def draw(rows, step):
        drawn.append((list(rows), step))
        return SampledGroups(tuple(group(row, 1.0, 0.0) for row in rows), cut_off=len(rows))

    queue = GroupBatches(draw, 2, ("origin", "group"), pad_token_id=0)
    source = iter({"row": torch.tensor(rows)} for rows in ([3, 1], [0, 3], [2, 4]))
    first, groups = queue.take(source, 1, 7)
    assert drawn == [([3, 1, 0], 7)]
    assert [one.row for one in groups] == [3, 1]
    assert first[0]["group"][:, -1].tolist() == [0, 0, 1, 1]
    assert first[0]["labels"].tolist() == [[-100, -100, 5, 2]] * 4
    assert queue.state()["waiting"] == [[0, 3]]
    queue.take(source, 1, 8)
    queue.take(source, 1, 9)
    assert drawn[1] == ([2, 4], 9)
    assert [one.cut_off for one in queue.rounds] == [3, 2]
    assert queue.take(source, 1, 10) == ([], [])


REFUSED = {
    "no groups": ({"groups": None}, "trains on groups of answers: say how"),
    "packing": ({"packing": True}, "training.packing does not go with groups"),
    "prompt tokens": ({"completion_only_loss": False}, "completion_only_loss does not go with groups"),
    "keep_end": ({"truncation_mode": "keep_end"}, "truncation_mode does not go with groups"),
    "no room": ({"max_length": 12}, "row 1: prompt of 4 tokens .* exceeds training.max_length 12"),
    "no room in the context": ({"groups": {**GROUPS, "max_new_tokens": 126}}, "exceeds the model's context 128"),
    "prompt alone too long": ({"max_length": 4, "groups": {**GROUPS, "own": 0}}, "row 1: prompt of 4 tokens leaves"),
    "no verifier": ({"groups": {"own": 2}}, "groups.verifier: is required and missing"),
    "no rows": ({"rows": []}, "no rows|train_dataset"),
    "cache": ({"reference": "cache"}, "which no cache holds"),
    "no expert": ({"rows": [{**prompts(1)[0], "completion": ""}]}, "row 1: no expert's answer"),
    "teachers as text": ({"rows": [{**prompts(2)[1], "teachers": "7"}]}, "row 1: 'teachers' is str, not a list"),
    "teacher of another kind": ({"rows": [{**prompts(1)[0], "teachers": [""]}]}, "row 1: 'teachers' holds ''"),
    "no prompt": ({"rows": [{"prompt": "", "completion": "1"}]}, "row 1: the prompt is empty"),
    "messages": ({"rows": [{"messages": "x"}]}, "no column 'prompt'"),
    "empty group": (
        {"groups": {**GROUPS, "expert": 0, "own": 0}, "rows": prompts(1)},
        "row 1: the group is empty: no expert, no teachers",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), list(REFUSED.values()), ids=list(REFUSED))
def test_refused_before_the_first_step(tmp_path, changes, message):
    from datasets import Dataset

    rows = changes.get("rows", prompts())
    options = {name: value for name, value in changes.items() if name not in ("groups", "rows", "reference")}
    with pytest.raises(ballast.BallastError, match=message) as caught:
        ballast.Trainer(
            model(),
            config(tmp_path, **options),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer(),
            objective="gft",
            groups=changes.get("groups", GROUPS),
            reference=str(tmp_path / "cache") if "reference" in changes else None,
        )
    assert "\n" not in str(caught.value)


def test_groups_for_an_objective_without_advantages_are_refused(tmp_path):
    with pytest.raises(ballast.BallastError, match="sft trains on demonstrations, so `groups` would be ignored"):
        trainer(tmp_path, objective="sft")


def test_the_arguments_serialise_with_their_groups(tmp_path):
    made = trainer(tmp_path)
    assert made.args.to_dict()["groups"] == GroupOptions.from_dict(GROUPS).to_dict()
    assert '"own": 3' in made.args.to_json_string()


# -- the objective's own laws --


def leaf(count: int = 40, vocab: int = 7) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(3)
    logits = (2 * torch.randn(count, vocab, generator=draw, dtype=torch.float64)).requires_grad_()
    return logits, torch.randint(vocab, (count,), generator=draw)


def gft_gradient(tau: float, advantage: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    logits, targets = leaf()
    logp = logits.log_softmax(-1).gather(1, targets[:, None]).flatten()
    losses = objective("gft", tau=tau).per_token_loss(TokenStats(logprob=logp, advantage=advantage))
    (gradient,) = torch.autograd.grad(losses.sum(), logits)
    return losses.detach(), gradient, logp.exp().detach()


def test_below_tau_the_gradient_is_that_of_the_probability():
    advantage = torch.linspace(-2, 2, 40, dtype=torch.float64)
    _, gradient, p = gft_gradient(0.3, advantage)
    logits, targets = leaf()
    step = 1e-6
    for token in range(40):
        for place in range(7):
            nudge = torch.zeros(7, dtype=torch.float64)
            nudge[place] = step
            up, down = ((logits[token] + sign * nudge).softmax(-1)[targets[token]] for sign in (1, -1))
            slope = float((up - down) / (2 * step)) / (1.0 if p[token] < 0.3 else float(p[token]))
            assert float(gradient[token, place]) == pytest.approx(-float(advantage[token]) * slope, abs=1e-8)
    assert 5 < int((p < 0.3).sum()) < 35


def test_tau_zero_is_cross_entropy_weighted_by_advantage():
    advantage = torch.linspace(-2, 2, 40, dtype=torch.float64)
    losses, _, p = gft_gradient(0, advantage)
    torch.testing.assert_close(losses, -advantage * p.log(), rtol=1e-12, atol=1e-12)


def test_tau_above_one_with_advantage_one_is_dft():
    ones = torch.ones(40, dtype=torch.float64)
    losses, gradient, _ = gft_gradient(1.5, ones)
    logits, targets = leaf()
    logp = logits.log_softmax(-1).gather(1, targets[:, None]).flatten()
    dft = objective("dft").per_token_loss(TokenStats(logprob=logp))
    assert torch.equal(losses, dft.detach())
    assert torch.equal(gradient, torch.autograd.grad(dft.sum(), logits)[0])


def test_the_gradient_of_an_unlikely_token_to_be_unlearnt_is_bounded():
    logits = torch.tensor([[-30.0, 0.0]], dtype=torch.float64, requires_grad=True)
    for tau, bound in ((0.7, 1e-12), (0, 0.5)):
        logp = logits.log_softmax(-1)[:, 0]
        stats = TokenStats(logprob=logp, advantage=torch.tensor([-1.0], dtype=torch.float64))
        (gradient,) = torch.autograd.grad(objective("gft", tau=tau).per_token_loss(stats).sum(), logits)
        assert (float(gradient.abs().max()) < bound) == (tau == 0.7)


@pytest.mark.parametrize("rewards", [[1, 0], [1, 1, 0, 0, 1], [0.1, 0.2, 0.7], [0.0] * 7 + [1.0]])
def test_advantages_are_standard_scores(rewards):
    mean = math.fsum(rewards) / len(rewards)
    deviation = math.sqrt(math.fsum((r - mean) ** 2 for r in rewards) / (len(rewards) - 1))
    expected = [(r - mean) / (deviation + 1e-6) for r in rewards]
    assert advantages(rewards) == pytest.approx(expected, rel=1e-12)


def test_groups_of_one_and_of_equals():
    assert advantages([0.3]) == [0.3]
    assert advantages([0.1] * 3) == [0.0] * 3
    assert advantages([1, 1]) == [0.0, 0.0]
    with pytest.raises(ValueError, match="without answers"):
        advantages([])
