"""The prompts that answers are sampled to: checked before weights are read, in an order that is fixed by the seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ballast.data.prompts import left_out_of_prompts
from ballast.data.render import render_prompt
from ballast.errors import BallastError
from ballast.evaluation.generation import check_room, encode_rows
from ballast.rl.options import RLOptions
from ballast.verifiers.registry import Verifier, check_rows

if TYPE_CHECKING:
    from datasets import Dataset

    from ballast.protocols import Tokenizer


@dataclass(frozen=True)
class Prompts:
    """Rows as the verifier reads them, and each one's prompt as text and as ids.

    Attributes:
        notes: what the chat template leaves out of them, as lines to print.
    """

    rows: tuple[Mapping[str, Any], ...]
    texts: tuple[str, ...]
    ids: tuple[tuple[int, ...], ...]
    notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        dataset: Dataset,
        tokenizer: Tokenizer,
        options: RLOptions,
        verify: Verifier | None,
        context: int | None = None,
    ) -> Prompts:
        """Return the prompts of raw rows.

        Args:
            dataset: rows with ``prompt`` (text or messages) and what the verifier reads.
            tokenizer: of the model.
            options: how many of them a step takes, and how long an answer may be.
            verify: checks the rows; None takes them as they are.
            context: positions that the model was built for; None is without bound.

        Raises:
            BallastError: naming the first row that cannot be used.
        """
        from ballast.data.exact import as_stored

        rows = tuple(as_stored(dataset.with_format(None)))
        _check(rows, options)
        if verify is not None:
            check_rows(verify, rows)
        ids = tuple(encode_rows(tokenizer, rows))
        check_room([len(sequence) for sequence in ids], options.max_new_tokens, context, option="rl.max_new_tokens")
        texts = tuple(render_prompt(row, tokenizer).text for row in rows)
        return cls(rows, texts, ids, left_out_of_prompts(rows, tokenizer))

    def __len__(self) -> int:
        return len(self.rows)

    def followed(self, row: int, ids: Sequence[int]) -> tuple[int, ...]:
        """Return a prompt's ids with those of an answer."""
        return (*self.ids[row], *ids)

    def dataset(self, order: Sequence[int]) -> Dataset:
        """Return the prompts in this order, each with the place of its ``row``: columns of a row stay with us."""
        from datasets import Dataset

        columns = {"prompt": list(self.texts), "row": list(range(len(self.rows)))}
        return Dataset.from_dict(columns).select(order)


def order(rows: int, count: int, seed: int) -> list[int]:
    """Return the places of `count` prompts: every row once in random order, then again in another.

    A longer run begins with the order of a shorter one.
    """
    epochs = range(-(-count // rows))
    drawn = [np.random.default_rng((seed, epoch)).permutation(rows) for epoch in epochs]
    return np.concatenate(drawn)[:count].tolist() if drawn else []


def _check(rows: Sequence[Mapping[str, Any]], options: RLOptions) -> None:
    if not rows:
        raise BallastError("there are no rows")
    if "prompt" not in rows[0]:
        raise BallastError(
            f"no column 'prompt' (columns: {', '.join(rows[0])}): an answer needs something to answer; give prompt and "
            "what the verifier reads, or rename with columns"
        )
    for place, row in enumerate(rows):
        if not isinstance(row["prompt"], (str, list)) or not row["prompt"]:
            raise BallastError(f"row {place + 1}: the prompt is empty, or neither text nor messages")
    if len(rows) < options.prompts:
        raise BallastError(
            f"{len(rows)} prompts for rl.prompts {options.prompts}: a step would take some of them twice; lower "
            "rl.prompts, or give more rows"
        )
