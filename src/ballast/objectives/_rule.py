"""What a re-weighting rule is: a weight that follows from the statistics of one distribution, and its options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ballast.objectives.base import OptionError

if TYPE_CHECKING:
    from torch import Tensor

    Read = Callable[[str], Tensor]


@dataclass(frozen=True)
class Rule:
    """A weight as a function of one distribution's statistics.

    Attributes:
        fields: the statistics read, given the options.
        weight: ``(read, options) -> [N]``.
        options: the options that the rule has, with the value that None stands for; None is one that must be given.
    """

    fields: Callable[[dict[str, Any]], tuple[str, ...]]
    weight: Callable[[Read, dict[str, Any]], Tensor]
    options: dict[str, Any]

    @property
    def gate(self) -> bool:
        """Whether the weight is 0 or 1."""
        return "keep_end" in self.options

    def settled(self, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the value of each of the rule's options, None being one that was not given.

        Raises:
            OptionError: for one that the rule does not have, or one that is missing.
        """
        for key, value in given.items():
            if value is not None and key not in self.options:
                raise OptionError("reweight", key, f"rule {name!r} has no {key!r}, it would be ignored")
            if value is None and key in self.options and self.options[key] is None:
                raise OptionError("reweight", "rule", f"rule {name!r} needs the option {key!r}")
        return {key: default if given[key] is None else given[key] for key, default in self.options.items()}
