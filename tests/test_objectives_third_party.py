"""Objectives of other packages: what their classes may get wrong is said in one line, before anything loads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest

from ballast import BallastError, objective
from ballast.objectives import Objective


@dataclass(frozen=True)
class Unnamed(Objective):
    """Has no name."""


@dataclass(frozen=True)
class Misspelt(Objective):
    """Needs a statistic that there is not."""

    name: ClassVar[str] = "misspelt"
    source: ClassVar[str] = "a test"
    needs = ("logprob", "ref_logprb")


@dataclass(frozen=True)
class NoDefault(Objective):
    """Has an option without a default."""

    name: ClassVar[str] = "no-default"
    source: ClassVar[str] = "a test"
    strength: float


@pytest.mark.parametrize(
    ("cls", "said"),
    [(Unnamed, "no 'name'"), (Misspelt, "did you mean 'ref_logprob'"), (NoDefault, "strength")],
)
def test_what_a_class_gets_wrong_is_said(cls, said):
    with pytest.raises(BallastError, match=said) as caught:
        objective(f"{__name__}:{cls.__name__}")
    assert "\n" not in str(caught.value)
