"""What the tests of the fused head need: objectives of token scope, their columns, and the ordinary way to the loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ballast import objective, token_stats
from ballast.objectives import Objective, option
from ballast.statistics import is_of_models
from head_inputs import leaves
from oracles.cases import CASES


@dataclass(frozen=True)
class Anchored(Objective):
    """Reads every statistic that the head computes, and has a gradient by each that has one."""

    name = "anchored"
    source = "these tests"

    entropy: float = option(0.3, "weight of the entropy")
    collision: float = option(0.4, "weight of the collision probability")
    kl: float = option(0.7, "weight of the KL")
    kl_forward: float = option(0.2, "weight of the KL the other way round")

    @property
    def needs(self):
        live = ("logprob", "entropy", "collision", "kl", "kl_forward", "mass", "tied")
        return (*live, "ref_logprob", "ref_entropy", "ref_mass")

    def weight(self, stats):
        return 0.1 + stats.require("mass") + stats.require("tied") * stats.require("ref_mass")

    def extra(self, stats):
        own = -self.entropy * stats.require("entropy") * stats.require("ref_entropy")
        own = own + self.collision * stats.require("collision") * stats.require("ref_mass")
        pulled = self.kl * stats.require("kl").square() + self.kl_forward * stats.require("kl_forward")
        return own + pulled * stats.require("ref_logprob").exp()


class Entropy(Anchored):
    """The negative log-likelihood less some entropy."""

    @property
    def needs(self):
        return ("logprob", "entropy")

    def weight(self, stats):
        return torch.ones_like(stats.require("logprob"))

    def extra(self, stats):
        return -0.3 * stats.require("entropy")


class Collision(Entropy):
    """The negative log-likelihood and some collision probability."""

    @property
    def needs(self):
        return ("logprob", "collision")

    def extra(self, stats):
        return 0.7 * stats.require("collision")


TOKEN_CASES = {
    "-".join([name, *(str(value) for value in options.values())]): objective(name, **options)
    for name, options in CASES
    if objective(name, **options).scope == "token"
}
TOKEN_CASES |= {"focal": objective("third_party:Focal"), "anchored": Anchored(), "entropy": Entropy()}
TOKEN_CASES |= {"collision": Collision()}


def advantages(targets, dtype=torch.float64):
    """Return an advantage per token, some of them 0."""
    return torch.tensor([1.0, -0.5, 0.0, 1.7, 0.0], dtype=dtype).repeat(len(targets) // 5 + 1)[: len(targets)]


def columns_of(built, targets, dtype=torch.float64):
    """Return the columns that only the rows can have."""
    count = range(len(targets))
    origin = torch.tensor([(0.0, 2.0, 1.0)[place % 3] for place in count], dtype=dtype)
    given = {name: advantages(targets, dtype) for name in ("advantage", *built.columns)}
    given |= {
        "origin": origin,
        "group": torch.zeros(len(targets), dtype=dtype),
        "reward": torch.tensor([float(place % 6 == 1) for place in count], dtype=dtype),
        "share": origin.new_tensor([1.5, 0.3, 0.8])[origin.long()],
        "old_logprob": -advantages(targets, dtype).abs(),
    }
    return {name: column for name, column in given.items() if name in built.needs}


def ordinary(given_inputs, per_token_loss, needs, columns, denominator=None, upstream=1.0, **options):
    """Return loss and gradients by full logits and autograd."""
    states, head, targets, reference = given_inputs
    fields = tuple(name for name in needs if name not in columns and is_of_models(name))
    options = {"backend": "dense", **options}
    stats = token_stats(states, head, targets, fields=fields, reference=reference, **options)
    losses = per_token_loss(stats.changed(columns))
    loss = losses.sum() / (max(len(targets), 1) if denominator is None else denominator)
    return loss.detach().reshape(()), gradients(loss.sum() * upstream, states, head)


def gradients(loss, states, head):
    """Return the gradient by every leaf that asks for one."""
    asking = [leaf for leaf in leaves(states, head) if leaf.requires_grad]
    return torch.autograd.grad(loss, asking, allow_unused=True)


def assert_same(ours, expected, **tolerance):
    """Compare (loss, gradients) pairs; a gradient that is None stands for zeros."""
    torch.testing.assert_close(ours[0].detach(), expected[0], **tolerance)
    for mine, theirs in zip(ours[1], expected[1], strict=True):
        assert mine is not None
        torch.testing.assert_close(mine, torch.zeros_like(mine) if theirs is None else theirs, **tolerance)
