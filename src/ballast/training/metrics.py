"""Sums over trained tokens from which a step's metrics follow, kept on the device until they are logged."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from ballast.stats import TokenStats

SUMS = (
    "tokens",
    "measured",
    "nll",
    "weight",
    "weight_squared",
    "weight_size",
    "weight_zero",
    "entropy",
    "kl",
    "log_ratio",
    "kl_tokens",
    "log_ratio_tokens",
    "seen",
)
MEANS = ("nll", "entropy", "kl", "log_ratio")
SOMETIMES = ("kl", "log_ratio")
"""What is measured at logged steps alone where the objective does not read it."""


class MetricSums:
    """Running sums over micro-batches; adding waits for no device, reading reduces over ranks once."""

    def __init__(self) -> None:
        self._total: Tensor | None = None
        self._has: set[str] = set()
        self._own: tuple[str, ...] = ()

    def add(
        self,
        stats: TokenStats,
        weight: Tensor,
        report: Mapping[str, Tensor],
        *,
        seen: Tensor | int,
        left_out: int = 0,
        measured: bool = True,
    ) -> None:
        """Add one micro-batch.

        Where tokens may be left out, known beforehand to have no loss, the statistics of the others alone would be of
        a chosen part: then only the weights are added, those of the tokens left out being 0.

        Args:
            stats: its statistics, ``[N]``.
            weight: its weights, ``[N]``.
            report: what the objective itself reports, ``[N]`` each; the same names every time.
            seen: its tokens including untrained ones.
            left_out: trained tokens that these statistics do not have.
            measured: whether none could be left out; micro-batches that happened to be whole would be a chosen part.
        """
        with torch.no_grad():
            logprob = stats.require("logprob").detach()
            sums = {
                "tokens": logprob.new_tensor(len(weight) + left_out),
                "weight": weight.sum(),
                "weight_squared": weight.square().sum(),
                "weight_size": weight.abs().sum(),
                "weight_zero": (weight == 0).sum() + left_out,
                "seen": torch.as_tensor(seen, device=logprob.device),
            }
            if measured:
                ratio = None if stats.ref_logprob is None else logprob - stats.ref_logprob
                found = {"nll": -logprob, "entropy": stats.entropy, "kl": stats.kl, "log_ratio": ratio, **report}
                sums["measured"] = logprob.new_tensor(len(logprob))
                sums |= {name: value.detach().sum() for name, value in found.items() if value is not None}
                sums |= {f"{name}_tokens": sums["measured"] for name in SOMETIMES if name in sums}
            zero = logprob.new_zeros(())
            vector = torch.stack([sums.get(name, zero).double() for name in (*SUMS, *report)])
        self._has |= set(sums)
        self._own = tuple(report)
        self._total = vector if self._total is None else self._total + vector

    def read(self, reduce: Callable[[Tensor], Tensor], steps: int) -> dict[str, float]:
        """Return the metrics over what was added and forget it; empty where no token was trained.

        Args:
            reduce: sums a tensor over ranks.
            steps: optimiser steps that were added up.

        Returns:
            ``nll``, ``entropy``, ``kl``, ``log_ratio`` in nats and what the objective reports, per token of the
            micro-batches that were measured whole; ``measured_share`` of the trained tokens, where that is not all;
            ``weight_mean``, ``weight_zero_share``, ``effective_tokens`` ((Σ|w|)²/Σw² per optimiser step) over all;
            ``tokens`` (trained) and ``seen`` (all), both summed.
        """
        if self._total is None:
            return {}
        sums = dict(zip((*SUMS, *self._own), reduce(self._total).tolist(), strict=True))
        has, self._total, self._has = self._has, None, set()
        if not sums["tokens"]:
            return {}
        whole = sums["measured"]
        over = {name: sums[f"{name}_tokens"] if name in SOMETIMES else whole for name in (*MEANS, *self._own)}
        means = {name: sums[name] / count for name, count in over.items() if name in has and count}
        squared = sums["weight_squared"]
        return {
            **means,
            **({"measured_share": whole / sums["tokens"]} if whole < sums["tokens"] else {}),
            "weight_mean": sums["weight"] / sums["tokens"],
            "weight_zero_share": sums["weight_zero"] / sums["tokens"],
            "effective_tokens": sums["weight_size"] ** 2 / squared / max(steps, 1) if squared else 0.0,
            "tokens": sums["tokens"],
            "seen": sums["seen"],
        }
