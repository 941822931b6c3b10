"""Scores and losses of a reward: TRL's loss, the authors' by hand, log 2 where nothing is preferred; and mutants."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ballast.errors import BallastError
from ballast.groups import Group, Member
from ballast.reward import RewardOptions, Scorer, pairs_of
from ballast.reward.scores import LOSSES, last, padded, token_scores
from tiny import CHARACTERS, char_tokenizer

Ids = tuple[int, ...]
PAIRS: list[tuple[Ids, Ids]] = [
    ((5, 6, 7, 8, 2), (5, 6, 9, 2)),
    ((5, 7, 2), (5, 7, 4, 4, 4, 2)),
    ((9, 8, 7, 2), (9, 8, 6, 2)),
    ((4, 2), (4, 2, 2)),
]


def classifier(seed: int = 0, **settings):
    """Return a tiny random classifier in float64, its head included."""
    from transformers import LlamaConfig, LlamaForSequenceClassification

    config = LlamaConfig(
        vocab_size=4 + len(dict.fromkeys(CHARACTERS)), hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.5, num_labels=1,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, **settings,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForSequenceClassification(config).double().eval()


def scored(model, pairs=PAIRS) -> tuple[Tensor, Tensor, Tensor]:
    ids, mask = padded([one for one, _ in pairs] + [other for _, other in pairs], model.device)
    return token_scores(model, ids, mask), ids, mask


def naive(model, chosen: Ids, rejected: Ids) -> float:
    """Return the authors' loss of one pair, position by position, padded as they are beside each other."""
    end = max(len(chosen), len(rejected))
    rows = []
    for ids in (chosen, rejected):
        known = torch.tensor([[*ids, *[0] * (end - len(ids))]])
        mask = torch.tensor([[1] * len(ids) + [0] * (end - len(ids))])
        hidden = model.model(input_ids=known, attention_mask=mask).last_hidden_state
        rows.append(model.score(hidden)[0, :, 0].tolist())
    begin = next((t for t in range(end) if chosen[t : t + 1] != rejected[t : t + 1]), end - 1)
    losses = [math.log1p(math.exp(rows[1][t] - rows[0][t])) for t in range(begin, end)]
    return sum(losses) / len(losses)


def test_the_per_token_loss_is_the_authors_by_hand():
    model = classifier()
    with torch.no_grad():
        found = LOSSES["per-token"](*scored(model))
        assert found.tolist() == pytest.approx([naive(model, *pair) for pair in PAIRS], rel=1e-9)


def trl_loss(model, pairs, tmp_path) -> Tensor:
    """Return TRL's loss over pairs, without its trainer's data."""
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer
    from trl.trainer.reward_trainer import DataCollatorForPreference

    rows = [{"chosen_ids": list(one), "rejected_ids": list(other)} for one, other in pairs]
    trainer = RewardTrainer(
        model,
        args=RewardConfig(output_dir=str(tmp_path), report_to=[], use_cpu=True, bf16=False, disable_dropout=False),
        train_dataset=Dataset.from_list(rows),
        processing_class=char_tokenizer(),
    )
    loss = trainer.compute_loss(trainer.model, DataCollatorForPreference(pad_token_id=0)(rows))
    assert isinstance(loss, Tensor)
    return loss


def test_the_last_token_loss_and_its_gradient_are_trls(tmp_path):
    theirs, ours = classifier(), classifier()
    wanted = trl_loss(theirs, PAIRS, tmp_path)
    wanted.backward()
    loss = LOSSES["last-token"](*scored(ours)).mean()
    loss.backward()
    assert float(loss) == pytest.approx(float(wanted), rel=1e-9)
    gradients = dict(theirs.named_parameters())
    assert max(float(weight.grad.abs().max()) for weight in gradients.values()) > 1e-3
    for name, weight in ours.named_parameters():
        torch.testing.assert_close(weight.grad, gradients[name].grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("loss", list(LOSSES))
def test_equal_answers_have_a_loss_of_log_2(loss):
    model = classifier()
    same = [(one, one) for one, _ in PAIRS]
    with torch.no_grad():
        assert LOSSES[loss](*scored(model, same)).tolist() == pytest.approx([math.log(2)] * 4, abs=1e-12)
        assert LOSSES[loss](*scored(model)).tolist() != pytest.approx([math.log(2)] * 4, abs=1e-2)


@pytest.mark.parametrize("loss", list(LOSSES))
def test_a_head_of_zeros_has_a_loss_of_log_2_on_every_pair(loss):
    model = classifier()
    torch.nn.init.zeros_(model.score.weight)
    with torch.no_grad():
        assert LOSSES[loss](*scored(model)).tolist() == [pytest.approx(math.log(2), abs=1e-12)] * 4


def _one_early(scores: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    chosen, rejected = scores.gather(1, mask.sum(1, keepdim=True) - 2)[:, 0].chunk(2)
    return -torch.nn.functional.logsigmoid(chosen - rejected)


def _at_the_width(scores: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    return LOSSES["last-token"](scores, ids, torch.ones_like(mask))


def _other_way(scores: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    return LOSSES["last-token"](-scores, ids, mask)


def _whole(scores: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    chosen, rejected = scores.chunk(2)
    return -torch.nn.functional.logsigmoid(chosen - rejected).mean(1)


def _to_the_shorter_end(scores: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    shorter = torch.minimum(*mask.chunk(2))
    return LOSSES["per-token"](scores, ids * torch.cat([shorter, shorter]), torch.cat([shorter, shorter]))


MUTANTS: dict[str, tuple[str, Callable[[Tensor, Tensor, Tensor], Tensor]]] = {
    "one token early": ("last-token", _one_early),
    "at the padding": ("last-token", _at_the_width),
    "own answers preferred": ("last-token", _other_way),
    "per token for last token": ("last-token", LOSSES["per-token"]),
    "last token for per token": ("per-token", LOSSES["last-token"]),
    "the prompt too": ("per-token", _whole),
    "to the shorter end": ("per-token", _to_the_shorter_end),
}


@pytest.mark.parametrize("mutant", list(MUTANTS))
def test_a_mutant_of_the_loss_is_another_number(mutant):
    name, wrong = MUTANTS[mutant]
    with torch.no_grad():
        found = scored(classifier())
        assert float((LOSSES[name](*found) - wrong(*found)).abs().max()) > 1e-3


def test_an_end_token_that_pads_is_scored_where_it_stands():
    """A classifier by itself takes it for padding, and reads the score of the token before it."""
    model = classifier()
    model.config.pad_token_id = 2
    answer = (5, 6, 7, 2)
    with torch.no_grad():
        scores = token_scores(model, *padded([answer], model.device))[0]
        by_itself = float(model(input_ids=torch.tensor([answer])).logits)
    assert Scorer(model)([answer]) == pytest.approx([float(scores[3])])
    assert by_itself == pytest.approx(float(scores[2]))
    assert float(scores[3]) != pytest.approx(float(scores[2]), abs=1e-3)


def test_scores_do_not_depend_on_the_batch():
    model = classifier()
    answers = [ids for pair in PAIRS for ids in pair]
    alone = [Scorer(model)([one])[0] for one in answers]
    assert Scorer(model)(answers) == pytest.approx(alone, abs=1e-9)
    assert Scorer(model, batch_tokens=8)(answers) == pytest.approx(alone, abs=1e-9)
    assert len({round(score, 6) for score in alone}) == len(answers)


def group(row: int, *answers: tuple[str, Ids]) -> Group:
    return Group(row, tuple(Member((4, *ids), 1, origin, None, "") for origin, ids in answers))


def test_pairs_are_every_given_answer_with_every_own_one_that_differs():
    found = pairs_of(
        [
            group(0, ("expert", (5, 2)), ("teacher", (6, 2)), ("own", (7, 2)), ("own", (5, 2))),
            group(1, ("expert", (8, 2)), ("own", (8, 2))),
        ]
    )
    assert [(pair.row, pair.chosen[1:], pair.rejected[1:]) for pair in found.train] == [
        (0, (5, 2), (7, 2)),
        (0, (6, 2), (7, 2)),
        (0, (6, 2), (5, 2)),
    ]
    assert found.equal == 2
    assert found.held_out == ()


def test_prompts_are_held_out_whole():
    groups = [group(row, ("expert", (5, 2)), ("own", (6, 2)), ("own", (7, 2))) for row in range(20)]
    found = pairs_of(groups, 0.1, seed=3)
    rows = {pair.row for pair in found.held_out}
    assert len(rows) == 2
    assert len(found.held_out) == 4
    assert rows.isdisjoint(pair.row for pair in found.train)
    assert {pair.row for pair in pairs_of(groups, 0.1, seed=4).held_out} != rows
    assert pairs_of(groups, 0.1, seed=3) == found
    assert len({pair.row for pair in pairs_of(groups[:2], 0.9).train}) == 1


def test_nothing_to_prefer_is_refused():
    with pytest.raises(BallastError, match="1 pairs of 1 prompts, in all of which the own answer is the demonstration"):
        pairs_of([group(0, ("expert", (5, 2)), ("own", (5, 2)))])


def test_last_reads_each_answers_own_end():
    scores = torch.arange(12.0).view(2, 6)
    mask = torch.tensor([[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1]])
    assert last(scores, mask).tolist() == [2, 11]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pairs": 6, "micro_batch": 4}, "reward.micro_batch: 4 does not divide the 6 pairs"),
        ({"loss": "pair"}, "reward.loss: 'pair' is not allowed"),
        ({"held_out": 1.0}, "reward.held_out: should be less than 1"),
        ({"center": -1.0}, "reward.center: should be greater than or equal to 0"),
        ({"epoch": 1.0}, "reward.epoch: unknown key; did you mean 'epochs'"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(BallastError, match=message):
        RewardOptions.from_dict(options)
