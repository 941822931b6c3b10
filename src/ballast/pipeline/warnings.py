"""What makes a run worth nothing although it came to its end, read off its log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ballast.rl.options import RLOptions

Lines = Sequence[Mapping[str, Any]]


def of_reinforcement(lines: Lines, options: RLOptions) -> list[str]:
    """Return what a log of RL warns of: steps without a gradient, answers without an end."""
    found = []
    mixed, cut_off = _values(lines, "mixed"), _values(lines, "cut_off")
    if cut_off and min(cut_off) >= 1 and options.reward != "model":
        found.append(
            f"all answers of all {len(cut_off):,} steps were cut off at rl.max_new_tokens={options.max_new_tokens} and "
            "got no reward: raise it, or start from a model that ends its answers"
        )
    if mixed and max(mixed) <= 0:
        found.append(
            f"the answers to every prompt had equal rewards in all {len(mixed):,} steps, so no reward moved the model: "
            "take prompts that are answered rightly sometimes, a larger rl.group, or another verifier"
        )
    return found


def of_groups(lines: Lines) -> list[str]:
    """Return what a log of training on groups warns of: groups without an advantage, own answers without an end."""
    found = []
    equal = _values(lines, "groups/zero_advantage")
    own, cut_off = (sum(_values(lines, f"groups/{name}")) for name in ("own", "cut_off"))
    if own and cut_off >= own:
        lost = "got no reward" if equal else "have no end"
        found.append(
            f"all {own:,.0f} own answers were cut off and {lost}: raise groups.max_new_tokens, or start from a model "
            "that ends its answers"
        )
    if equal and min(equal) >= 1:
        found.append(
            "the answers of every group had equal rewards throughout, so there was no gradient: add teachers or "
            "demonstrations, take prompts that are answered rightly sometimes, or another verifier"
        )
    return found


def _values(lines: Lines, name: str) -> list[float]:
    return [float(line[name]) for line in lines if line.get(name) is not None]
