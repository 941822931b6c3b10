"""The re-weighting rules, each written once; live model or reference is the caller's choice.

A rule reads statistics by their live names; `read` looks them up under the chosen signal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ballast.objectives._rule import Rule

if TYPE_CHECKING:
    from torch import Tensor

    from ballast.objectives._rule import Read


def _probability(read: Read, options: dict[str, Any]) -> Tensor:
    return read("logprob").exp()


def _power(read: Read, options: dict[str, Any]) -> Tensor:
    return (options["alpha"] * read("logprob")).exp()


def _threshold(read: Read, options: dict[str, Any]) -> Tensor:
    logprob = read("logprob")
    return (logprob.exp() >= options["threshold"]).to(logprob.dtype)


def _mass(read: Read, options: dict[str, Any]) -> Tensor:
    mass = read("mass") + read("tied") if options["ties"] == "inclusive" else read("mass")
    return (mass >= options["threshold"]).to(mass.dtype)


def _entropy(read: Read, options: dict[str, Any]) -> Tensor:
    entropy = read("entropy")
    return (entropy <= options["max_entropy"]).to(entropy.dtype)


RULES = {
    "probability": Rule(lambda _: ("logprob",), _probability, {}),
    "power": Rule(lambda _: ("logprob",), _power, {"alpha": None}),
    "threshold": Rule(lambda _: ("logprob",), _threshold, {"threshold": None, "keep_end": False}),
    "mass": Rule(
        lambda options: ("mass", "tied") if options["ties"] == "inclusive" else ("mass",),
        _mass,
        {"threshold": 0.5, "ties": "strict", "keep_end": False},
    ),
    "entropy": Rule(lambda _: ("entropy",), _entropy, {"max_entropy": None, "keep_end": False}),
}
