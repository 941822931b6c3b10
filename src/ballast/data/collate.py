"""Batches: TRL's own collator for ids and labels, and float columns that stay in step with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ballast.errors import BallastError

if TYPE_CHECKING:
    import torch


@dataclass
class Collator:
    """Collate prepared (and packed) rows into tensors.

    ``input_ids``, ``labels``, ``attention_mask`` or ``position_ids``, ``seq_idx`` and the sequence lengths are those
    of TRL's collator; each name in ``columns`` becomes float32 ``[B, T]`` in step with ``labels``, NaN on padding and
    wherever the label is -100; so does each in ``own``, the data's, where the rows have it. With ``padding_free`` the
    batch is one row, a sequence's first label is -100, and ``row_ends`` says where each of the rows in it ends.

    Raises BallastError when a row lacks a column or a trained token has no value in it.
    """

    pad_token_id: int
    columns: tuple[str, ...] = ()
    padding_free: bool = False
    pad_to_multiple_of: int | None = None
    return_position_ids: bool = False
    own: tuple[str, ...] = ()

    @cached_property
    def _base(self) -> Any:
        from ballast.data.trl import trl_collator

        return trl_collator(
            self.pad_token_id,
            padding_free=self.padding_free,
            pad_to_multiple_of=self.pad_to_multiple_of,
            return_position_ids=self.return_position_ids,
        )

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        import torch

        batch = dict(self._base(list(examples)))
        if self.padding_free:
            batch["row_ends"] = torch.tensor([len(example["input_ids"]) for example in examples]).cumsum(0)
        own = (name for name in self.own if all(name in example for example in examples))
        for name in (*self.columns, *own):
            batch[name] = self._column(name, examples, batch["labels"])
        return batch

    def _column(self, name: str, examples: Sequence[Mapping[str, Any]], labels_BT: torch.Tensor) -> torch.Tensor:
        import torch

        if any(name not in example for example in examples):
            raise BallastError(f"a row has no column {name!r}: attach it before training, or keep it when packing")
        rows = [torch.as_tensor(example[name], dtype=torch.float32) for example in examples]
        if self.padding_free:
            rows = [torch.cat(rows)]
        column_BT = torch.full(labels_BT.shape, float("nan"))
        for target, row in zip(column_BT, rows, strict=True):
            target[: len(row)] = row
        trained = labels_BT != -100
        column_BT[~trained] = float("nan")
        # Position 0 of a padded row may carry a label, but nothing predicts it.
        if torch.isnan(column_BT[:, 1:][trained[:, 1:]]).any():
            raise BallastError(
                f"column {name!r} has no value for a trained token, so its weight would be NaN; prepare or score the "
                "rows again"
            )
        return column_BT
