"""Choose the next token of every row: the likeliest, or by inverting the cumulative distribution with a given number.

Shapes: ``R`` rows, ``N`` tokens of an answer, ``V`` vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers import LogitsProcessor, TemperatureLogitsWarper, TopPLogitsWarper

if TYPE_CHECKING:
    from torch import Tensor


LIKELY = 1024
"""Tokens among which the most likely ones up to a mass are looked for, before the whole vocabulary is sorted."""


def uniforms(seeds: Sequence[tuple[int, ...]], count: int) -> np.ndarray:
    """Return the uniform numbers of every row's own stream, ``[R, N]``."""
    return np.stack([np.random.default_rng(seed).random(count) for seed in seeds])


def warpers(temperature: float, top_p: float) -> list[LogitsProcessor]:
    """Return what turns a model's logits into those that are sampled from."""
    found: list[LogitsProcessor] = []
    if temperature != 1:
        found.append(TemperatureLogitsWarper(float(temperature)))
    if top_p < 1:
        found.append(Nucleus(top_p))
    return found


def invert(scores_RV: Tensor, uniform_R: np.ndarray) -> Tensor:
    """Return for every row the token where its number falls in the cumulative distribution, ``[R]``."""
    # MPS has no float64; elsewhere the float32 sum over a large vocabulary would bias the tail.
    precise = torch.float32 if scores_RV.device.type == "mps" else torch.float64
    cumulative_RV = scores_RV.to(precise).softmax(-1).cumsum(-1)
    uniform_R1 = torch.as_tensor(uniform_R[:, None]).to(scores_RV.device, precise)
    chosen_R1 = torch.searchsorted(cumulative_RV, uniform_R1 * cumulative_RV[:, -1:], right=True)
    # Rounding can put the product at the very end of the distribution, past the last token.
    beyond = chosen_R1 >= scores_RV.shape[-1]
    return torch.where(beyond, scores_RV.argmax(-1, keepdim=True), chosen_R1)[:, 0]


class Nucleus(TopPLogitsWarper):
    """Keeps the most likely tokens up to a mass; sorts the vocabulary only where its likeliest part has less."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores of which those outside are minus infinity, ``[R, V]``."""
        likely_RK, places_RK = scores.softmax(-1).topk(min(LIKELY, scores.shape[-1]))
        mass_RK = likely_RK.cumsum(-1)
        # With a margin far above rounding.
        if (mass_RK[:, -1] < self.top_p + 1e-3).any() and scores.shape[-1] > LIKELY:
            sorted_RV: Tensor = super().__call__(input_ids, scores)
            return sorted_RV
        kept_RV = torch.zeros_like(scores, dtype=torch.bool)
        kept_RV.scatter_(-1, places_RK, mass_RK - likely_RK < self.top_p)
        return scores.masked_fill(~kept_RV, -torch.inf)


class Draw:
    """Chooses tokens of a batch of answers."""

    def __init__(self, seeds: Sequence[tuple[int, ...]], count: int, temperature: float, top_p: float) -> None:
        """Lay out the numbers of all rows.

        Args:
            seeds: each row's own.
            count: tokens of the longest answer.
            temperature: 0 takes the likeliest token.
            top_p: see `GenerationOptions`.
        """
        self._uniform_RN = uniforms(seeds, count) if temperature else None
        self._warpers = warpers(temperature, top_p) if temperature else []

    def __call__(self, logits_RV: Tensor, rows: Sequence[int], step: int) -> Tensor:
        """Return the tokens of these rows, ``[R]``, `step` counted from 0."""
        scores_RV = logits_RV.float()
        if self._uniform_RN is None:
            return scores_RV.argmax(-1)
        for warper in self._warpers:
            scores_RV = warper(None, scores_RV)
        return invert(scores_RV, self._uniform_RN[rows, step])


class InverseSampler(LogitsProcessor):
    """Leaves one token of each row, the one that `invert` takes; for transformers' own `generate`."""

    def __init__(self, uniform_RN: np.ndarray, width: int) -> None:
        self.uniform_RN = uniform_RN
        self.width = width

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores of which one is finite, in every row."""
        chosen_R = invert(scores, self.uniform_RN[:, input_ids.shape[1] - self.width])
        return torch.full_like(scores, -torch.inf).scatter(-1, chosen_R[:, None], 0.0)
