"""`TrainingConfig`: TRL's SFT arguments, and which objective and reference to train with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from ballast.groups import GroupOptions
from ballast.half import half_options
from ballast.objectives import Objective, objective
from ballast.training.trl import SFTConfig


@dataclass
class TrainingConfig(SFTConfig):
    """`trl.SFTConfig` plus `objective` and `reference`; on a machine without accelerator bf16 is off by default.

    Where it is set there, the CPU computes in it.

    Args:
        objective: name of an objective, ``package.module:Class``, a mapping with ``name`` and options, or an
            `Objective`; kept as a mapping so that the arguments serialise.
        reference: ``auto``, ``model`` (a frozen copy of the model as it starts), ``adapter-off``, a cache's folder,
            or with groups ``round``, the model as it was when the answers were sampled. ``auto`` takes the adapter
            switched off under PEFT, else a frozen copy, and only where the objective needs a reference.
        groups: fields of `ballast.groups.GroupOptions`, for objectives that train on groups of answers.
        half: fields of `ballast.half.HalfOptions`, or its fraction: train a random half of the weights.

    Raises:
        BallastError: if the objective, the groups, the half or one of its options is not known or not allowed.
    """

    _VALID_DICT_FIELDS = [*SFTConfig._VALID_DICT_FIELDS, "objective", "groups", "half"]  # noqa: RUF012

    objective: Any = field(default="sft", metadata={"help": "Objective: a name, or a mapping with options."})
    reference: str | None = field(
        default=None, metadata={"help": "auto, model, adapter-off, round, or a cache's folder."}
    )
    groups: dict[str, Any] | None = field(default=None, metadata={"help": "Groups of answers, for GFT."})
    half: Any = field(default=None, metadata={"help": "Half fine-tuning: a fraction, or a mapping with options."})

    def __post_init__(self) -> None:
        if not _has_accelerator(self):
            self.bf16 = bool(self.bf16)
            # transformers looks for a GPU that can do it unless it is told that there is none.
            self.use_cpu |= self.bf16
        super().__post_init__()  # type: ignore[no-untyped-call]  # of TRL
        self.objective = objective(self.objective).to_dict()
        if self.groups is not None:
            self.groups = GroupOptions.from_dict(self.groups).to_dict()
        if self.half is not None:
            self.half = half_options(self.half).to_dict()

    def build_objective(self) -> Objective:
        """Return the objective that these arguments name."""
        return objective(self.objective)


def _has_accelerator(args: SFTConfig) -> bool:
    return not args.use_cpu and torch.accelerator.is_available() and torch.accelerator.current_accelerator() is not None


def autocast_dtype(args: TrainingConfig) -> torch.dtype | None:
    """Return the dtype that training computes in, None where it is that of the weights."""
    return torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
