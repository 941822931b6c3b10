"""Objectives of another package, as a user would write them."""

from dataclasses import dataclass

from ballast.objectives import Objective, option


@dataclass(frozen=True)
class Focal(Objective):
    """Weigh hard tokens up: ``w_t = (1 − p_t)^gamma``."""

    name = "focal"
    source = "arXiv:1708.02002"

    gamma: float = option(2.0, "exponent", minimum=0)

    def weight(self, stats):
        return (1 - stats.require("logprob").exp()) ** self.gamma


class NotAnObjective:
    """Has the right neighbours only."""


@dataclass(frozen=True)
class OwnMass(Objective):
    """Reads where an answer comes from, and more of the reference than the probability of a token."""

    name = "own-mass"
    source = "a test"

    @property
    def needs(self):
        return ("logprob", "ref_mass", "origin")
