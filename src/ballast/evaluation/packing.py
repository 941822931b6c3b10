"""Sequences that begin alike in one row: what they share is read once, and no answer sees another.

Shapes: ``B`` rows, ``T`` positions, ``N`` scored tokens.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from ballast.protocols import Model

if TYPE_CHECKING:
    import torch
    from torch import Tensor

MOST = 1024
"""Tokens of a row of several answers: its mask has their square, and attention goes over all of it."""
PADDING = -1
WORTH = 2
"""An answer of more than so many times its prompt's tokens is read alone: little is saved, and attention costs more."""
MASKED = ("sdpa", "eager")
"""Kinds of attention that take a mask of their own for every row. FlashAttention would read it as padding."""


Cut = tuple[tuple[int, ...], int]
"""The ids of a sequence, and where scoring starts."""
REACH = re.compile("(window|window_size|chunk_size)$")
"""Names under which configurations say how far attention reaches (`max_window_layers` is none)."""


@dataclass(frozen=True)
class Row:
    """A prompt with what is scored behind it.

    Attributes:
        prompt: its ids, at least one.
        answers: the scored ids of each sequence.
        owners: places of these sequences.
    """

    prompt: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]
    owners: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.prompt) + sum(len(answer[:-1]) for answer in self.answers)

    @property
    def ids(self) -> list[int]:
        """Return what is read: of an answer all but its last token, which predicts nothing."""
        return [*self.prompt, *(one for answer in self.answers for one in answer[:-1])]

    @property
    def positions(self) -> list[int]:
        """Return the position of each id in its own sequence."""
        start = len(self.prompt)
        return [*range(start), *(start + place for answer in self.answers for place in range(len(answer) - 1))]

    @property
    def parts(self) -> list[int]:
        """Return what each id belongs to: 0 is the prompt, then come the answers."""
        own = (number for number, answer in enumerate(self.answers, start=1) for _ in answer[:-1])
        return [*(0 for _ in self.prompt), *own]

    @property
    def predicting(self) -> list[int]:
        """Return which id predicts each scored token, answer by answer."""
        found, end = [], len(self.prompt)
        for answer in self.answers:
            rest = len(answer[:-1])
            found += [len(self.prompt) - 1, *range(end, end + rest)][: len(answer)]
            end += rest
        return found


def alone(sequences: Sequence[Cut]) -> list[Row]:
    """Return a row for every sequence."""
    return [_row(sequences, [place]) for place in range(len(sequences))]


def together(sequences: Sequence[Cut], most: int) -> list[Row]:
    """Return rows in which sequences with the same prompt share it; those of several have at most `most` tokens."""
    rows: list[list[int]] = []
    lengths: list[int] = []
    newest: dict[tuple[int, ...], int] = {}
    for place, (ids, start) in enumerate(sequences):
        size = max(1, len(ids) - start - 1)
        worth = len(ids) - start <= WORTH * start
        row = newest.get(ids[:start]) if worth else None
        if row is None or lengths[row] + size > most:
            row = len(rows)
            rows.append([])
            lengths.append(start)
            newest |= {ids[:start]: row} if worth else {}
        rows[row].append(place)
        lengths[row] += size
    return [_row(sequences, places) for places in rows]


def _row(sequences: Sequence[Cut], places: Sequence[int]) -> Row:
    ids, start = sequences[places[0]]
    return Row(ids[:start], tuple(sequences[place][0][start:] for place in places), tuple(places))


def longest_shared(config: Any) -> int | None:
    """Return the tokens that a row of several answers may have in this model; None where nothing but `MOST` bounds it.

    Attention that reaches less far back counts places in the row, whatever it is called.
    """
    named = [value for name, value in config.to_dict().items() if REACH.search(name)]
    return min((value for value in named if type(value) is int and value > 0), default=None)


def inputs(rows: Sequence[Row], device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return a model's inputs for a batch of rows, padded at the right."""
    import torch

    width = max(map(len, rows))

    def padded(values: list[list[int]], fill: int) -> Tensor:
        return torch.tensor([[*some, *[fill] * (width - len(some))] for some in values], device=device)

    ids_BT = padded([row.ids for row in rows], 0)
    if all(len(row.answers) == 1 or len(row) == len(row.prompt) for row in rows):
        return {"input_ids": ids_BT, "attention_mask": padded([[1] * len(row) for row in rows], 0)}
    parts_BT = padded([row.parts for row in rows], PADDING)
    places_T = torch.arange(width, device=device)
    before_TT = places_T[:, None] >= places_T
    seen_BTT = (parts_BT[:, None, :] == 0) | (parts_BT[:, None, :] == parts_BT[:, :, None])
    mask_BTT = torch.zeros(seen_BTT.shape, dtype=dtype, device=device)
    mask_BTT.masked_fill_(~(seen_BTT & before_TT), torch.finfo(dtype).min)
    positions_BT = padded([row.positions for row in rows], 0)
    return {"input_ids": ids_BT, "attention_mask": mask_BTT[:, None], "position_ids": positions_BT}


def predicting(rows: Sequence[Row], hidden_BTH: Tensor) -> Tensor:
    """Return the hidden states that predict the scored tokens, ``[N, H]``, row by row and answer by answer."""
    import torch

    places = [(place, one) for place, row in enumerate(rows) for one in row.predicting]
    index_2N = torch.tensor(places, dtype=torch.long, device=hidden_BTH.device).reshape(-1, 2).T
    return hidden_BTH[index_2N[0], index_2N[1]]


_PROVED: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()


def can_share(model: Model, hidden: Callable[..., Tensor]) -> bool:
    """Return whether a model reads several answers in one row as it reads each alone, tried once on a few tokens.

    No list of names tells: a model may keep a state from token to token, or make its own mask.

    Args:
        model: to be asked.
        hidden: its last hidden states ``[B, T, H]`` for a model's inputs.
    """
    if model not in _PROVED:
        _PROVED[model] = _agrees(model, hidden)
    return _PROVED[model]


def _agrees(model: Model, hidden: Callable[..., Tensor]) -> bool:
    import torch

    from ballast.head import backbone, unwrapped

    if getattr(model.config.get_text_config(), "_attn_implementation", None) not in MASKED:
        return False
    if "position_ids" not in inspect.signature(backbone(unwrapped(model)).forward).parameters:
        return False  # it counts positions along the row
    prompt, last = (1, 0, 0, 1, 1), (1, 0, 1, 1, 0, 1)

    def read(*rows: Row) -> Tensor:
        return predicting(rows, hidden(**inputs(rows, model.device, model.dtype))).float()

    try:
        one_NH, other_NH = (read(Row(prompt, (first, last), (0, 1))) for first in ((0,) * 6, (1,) * 6))
        alone_NH = read(Row(prompt, (last,), (0,)))
    except torch.OutOfMemoryError:
        raise
    except Exception:
        return False
    # What stands before an answer must not change it by one bit: a state that leaks is small where weights are.
    if not one_NH[6:].equal(other_NH[6:]):
        return False
    apart = (alone_NH - one_NH[:6]).abs().max()
    return bool((one_NH[6:] - alone_NH).abs().max() <= 0.1 * apart + 1e-6 * alone_NH.abs().max())
