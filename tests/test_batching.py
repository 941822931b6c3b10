"""Rows of one forward: within the budget, each once, and not more padding than another forward costs."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as some

from ballast.batching import batches, bearable


def padded(lengths, batch):
    return sum(lengths[batch[0]] - lengths[place] for place in batch)


@given(some.lists(some.integers(1, 60), max_size=40), some.integers(1, 200), some.none() | some.integers(0, 50))
def test_every_row_is_in_one_batch_within_its_bounds(lengths, budget, padding):
    cut = list(batches(lengths, budget, padding=padding))
    assert sorted(place for batch in cut for place in batch) == list(range(len(lengths)))
    assert [lengths[place] for batch in cut for place in batch] == sorted(lengths, reverse=True)
    for batch in cut:
        assert len(batch) == 1 or len(batch) * lengths[batch[0]] <= budget
        assert padding is None or padded(lengths, batch) <= padding
    for batch, (after, *_) in pairwise(cut):  # the next row would have been too much
        assert (len(batch) + 1) * lengths[batch[0]] > budget or (
            padding is not None and padded(lengths, [*batch, after]) > padding
        )


def test_unlike_rows_are_not_padded_to_the_longest():
    lengths = [400, 390, 60, 50, 50]
    assert list(batches(lengths, 16384, padding=bearable("cpu"))) == [[0, 1], [2, 3, 4]]
    assert list(batches(lengths, 16384, padding=bearable("cuda"))) == [[0, 1, 2, 3, 4]]
