"""Which token ends a turn, and that gates can be told to keep it."""

import pytest
import torch

import ballast
from ballast import TokenStats, objective
from ballast.objectives import turn_ends
from ballast.training.reduction import token_layout
from tiny import char_tokenizer, tiny_model
from training_tools import config, dataset


def layout(places: dict[int, list[int]], stops: tuple[tuple[int, int], ...] | None = ()) -> TokenStats:
    """Return statistics of tokens at these positions by sequence; generation stops at (sequence, position)."""
    tokens = [(sequence, place) for sequence, own in places.items() for place in own]
    end = None if stops is None else torch.tensor([token in stops for token in tokens], dtype=torch.bool)
    sequence, position = torch.tensor(tokens).T
    return TokenStats(logprob=torch.full((len(tokens),), -1.0), sequence=sequence, position=position, end=end)


def found(stats: TokenStats) -> list[tuple[int, int]]:
    ends = turn_ends(stats)
    return sorted(zip(stats.sequence[ends].tolist(), stats.position[ends].tolist(), strict=True))


TWO_TURNS = {4: [3, 4, 5, 9, 10], 2: [6, 7]}


def test_without_stops_the_last_token_before_a_gap_ends_a_turn():
    for stops in (None, ()):
        assert found(layout(TWO_TURNS, stops)) == [(2, 7), (4, 5), (4, 10)]


def test_a_line_break_after_the_stop_is_not_the_end():
    assert found(layout(TWO_TURNS, ((4, 4), (4, 10), (2, 6)))) == [(2, 6), (4, 4), (4, 10)]


def test_of_several_stops_the_last_is_the_end():
    assert found(layout({0: [1, 2, 3, 4]}, ((0, 1), (0, 3)))) == [(0, 3)]


def test_the_order_of_the_tokens_does_not_matter():
    stats = layout(TWO_TURNS, ((4, 4),))
    for seed in range(5):
        order = torch.randperm(7, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(turn_ends(stats.take(order)), turn_ends(stats)[order])


def test_without_positions_every_sequence_is_one_turn_in_the_order_given():
    stats = TokenStats(logprob=torch.full((5,), -1.0), sequence=torch.tensor([7, 3, 7, 3, 7]))
    assert turn_ends(stats).tolist() == [False, False, False, True, True]
    assert turn_ends(TokenStats(logprob=torch.full((3,), -1.0))).tolist() == [False, False, True]
    assert turn_ends(TokenStats(logprob=torch.zeros(0))).tolist() == []


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("prift-mass", {}),
        ("reweight", {"rule": "mass"}),
        ("reweight", {"rule": "threshold", "threshold": 0.5}),
        ("reweight", {"rule": "threshold", "threshold": 0.5, "signal": "live"}),
    ],
)
def test_a_gate_that_drops_everything_keeps_the_ends_if_told_to(name, options):
    stats = layout(TWO_TURNS, ((4, 4),))
    low = torch.full((7,), 0.01)
    stats = TokenStats(**{**vars(stats), "logprob": low.log(), "ref_mass": low, "ref_logprob": low.log()})
    assert objective(name, **options).weight(stats).tolist() == [0.0] * 7
    kept = objective(name, **options, keep_end=True)
    assert torch.equal(kept.weight(stats), turn_ends(stats).float())
    assert kept.active({"ref_mass": low, "ref_logprob": low.log(), "logprob": low.log()}) is None


def test_eksft_imitates_the_ends_that_it_would_spare():
    stats = layout({0: list(range(10))})
    entropy = torch.arange(10.0)
    stats = TokenStats(**{**vars(stats), "entropy": entropy, "kl": 0 * entropy})
    assert objective("eksft").weight(stats).tolist() == [10 / 8] * 8 + [0.0] * 2
    expected = torch.tensor([10 / 9] * 8 + [0.0, 10 / 9])
    torch.testing.assert_close(objective("eksft", keep_end=True).weight(stats), expected)


@pytest.mark.parametrize("settings", [{}, {"packing": True, "max_length": 512, "per_device_train_batch_size": 1}])
def test_a_training_step_keeps_the_end_token(tmp_path, settings):
    """A gate at 1 keeps nothing but certain tokens; what is left of the loss is that of the end tokens."""
    means = {}
    for keep in (False, True):
        trainer = ballast.Trainer(
            tiny_model(),
            config(tmp_path / str(keep), max_steps=1, logging_steps=1, **settings),
            train_dataset=dataset(),
            processing_class=char_tokenizer(),
            objective=objective("reweight", rule="threshold", threshold=1.0, keep_end=keep),
        )
        batch = next(iter(trainer.get_train_dataloader()))
        sequence, _ = token_layout(batch)
        share = len(sequence.unique()) / len(sequence)
        trainer.train()
        means[keep] = trainer.state.log_history[0]["weight_mean"]
    assert means == {False: 0.0, True: pytest.approx(share)}
