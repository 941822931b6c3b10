"""Where a batch's trained tokens stand, and what is counted of them."""

import pytest
import torch

from ballast.data import Collator
from ballast.training.reduction import count, token_layout


def row(*trained: int) -> dict[str, list[int]]:
    """Return a row in which each 1 is trained."""
    return {"input_ids": list(range(len(trained))), "labels": [7 if one else -100 for one in trained]}


TURNS = row(0, 0, 1, 1, 0, 0, 0, 1, 1)
"""A prompt, a turn, another's turn, a last turn."""
PLAIN = row(0, 1, 1, 1)
FIRST = row(1, 1)
"""Nothing predicts the first token of a row."""
NONE = row(0, 0, 0)


@pytest.mark.parametrize("padding_free", [False, True])
def test_positions_count_all_tokens_of_the_own_sequence(padding_free):
    batch = Collator(pad_token_id=0, padding_free=padding_free)([TURNS, PLAIN, NONE, FIRST])
    sequence, position = token_layout(batch)
    assert sequence.tolist() == [0, 0, 0, 0, 1, 1, 1, 3]
    assert position.tolist() == [2, 3, 7, 8, 1, 2, 3, 1]
    assert {sequence.dtype, position.dtype} == {torch.int64}


def test_a_packed_row_holds_sequences_with_positions_of_their_own():
    whole = {name: TURNS[name] + PLAIN[name] + NONE[name] + FIRST[name] for name in TURNS}
    batch = Collator(pad_token_id=0, padding_free=True)(
        [{**whole, "seq_lengths": [9, 4, 3, 2]}, PLAIN | {"seq_lengths": [4]}]
    )
    sequence, position = token_layout(batch)
    assert sequence.tolist() == [0, 0, 0, 0, 1, 1, 1, 3, 4, 4, 4]
    assert position.tolist() == [2, 3, 7, 8, 1, 2, 3, 1, 1, 2, 3]


@pytest.mark.parametrize("padding_free", [False, True])
def test_sequences_are_counted_however_many_turns_they_have(padding_free):
    collate = Collator(pad_token_id=0, padding_free=padding_free)
    batches = [collate([TURNS, PLAIN, NONE]), collate([NONE]), collate([FIRST, TURNS])]
    assert int(count("sequences", batches)) == 4
    assert int(count("tokens", batches)) == 12
    assert int(count("sequences", [collate([NONE])])) == 0
