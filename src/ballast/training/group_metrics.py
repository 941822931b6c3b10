"""What a step's log says of groups: by origin of the answers, and of the rounds of sampling."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from ballast.groups import ORIGINS, Group, SampledGroups, advantages

if TYPE_CHECKING:
    from torch import Tensor

    from ballast.stats import TokenStats

ANSWERS = ("answers", "length", "judged", "reward")
ROUNDS = ("own", "cut_off", "errors", "timeouts", "sampling", "scoring")


class GroupSums:
    """Sums over trained tokens and answers by origin, over groups, and over rounds of sampling."""

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self._names: tuple[str, ...] = ()
        self._tokens: Tensor | None = None
        self._answers = torch.zeros(len(ANSWERS), len(ORIGINS), dtype=torch.float64)
        self._groups = torch.zeros(3, dtype=torch.float64)
        self._rounds = torch.zeros(len(ROUNDS), dtype=torch.float64)

    def add_tokens(self, stats: TokenStats, report: Mapping[str, Tensor]) -> None:
        """Add one micro-batch: its statistics and the objective's own quantities, ``[N]`` each."""
        with torch.no_grad():
            found = {"entropy": stats.entropy, **report}
            values = {name: value.detach() for name, value in found.items() if value is not None}
            self._names = ("tokens", *values)
            stacked = torch.stack([torch.ones_like(stats.require("logprob")), *values.values()]).double()
            sums = stacked.new_zeros(len(stacked), len(ORIGINS))
            sums.index_add_(1, stats.require("origin").long(), stacked)
        self._tokens = sums if self._tokens is None else self._tokens + sums

    def add_groups(self, groups: Sequence[Group]) -> None:
        """Add the groups of one optimiser step."""
        for group in groups:
            rewards = [member.reward for member in group.members if member.reward is not None]
            judged = len(rewards) == len(group.members)
            equal = judged and not any(advantages(rewards))
            self._groups += torch.tensor([1.0, float(judged), float(equal)], dtype=torch.float64)
            for member in group.members:
                length = len(member.ids) - member.start
                verdict = [0.0, 0.0] if member.reward is None else [1.0, member.reward]
                values = torch.tensor([1.0, length, *verdict], dtype=torch.float64)
                self._answers[:, ORIGINS.index(member.origin)] += values

    def add_rounds(self, rounds: Sequence[SampledGroups]) -> None:
        """Add rounds of sampling."""
        for one in rounds:
            self._rounds += torch.tensor([getattr(one, name) for name in ROUNDS], dtype=torch.float64)

    def read(self, reduce: Callable[[Tensor], Tensor], device: torch.device, ranks: int) -> dict[str, float]:
        """Return the metrics over what was added and forget it.

        Args:
            reduce: sums a tensor over ranks.
            device: where `reduce` wants its tensors.
            ranks: number of ranks; seconds are their mean, everything else is of all.

        Returns:
            For each origin present ``reward`` and ``length`` (tokens) per answer, ``entropy`` (nats) and the
            objective's own quantities per token, where its tokens were measured; rewards and
            ``groups/zero_advantage``, a share of the groups, where answers are judged; ``groups/own``, a number of own
            answers, and of these ``groups/cut_off``, ``groups/verifier_errors`` and ``groups/verifier_timeouts``;
            ``seconds/sampling`` and ``seconds/scoring``.
        """
        names, tokens = self._names, self._tokens
        if tokens is None:
            return {}
        sums, answers = reduce(tokens).tolist(), reduce(self._answers.to(device)).tolist()
        counts, rounds = reduce(self._groups.to(device)).tolist(), reduce(self._rounds.to(device)).tolist()
        self._clear()
        metrics: dict[str, float] = {}
        for place, origin in enumerate(ORIGINS):
            size, length, judged, reward = (row[place] for row in answers)
            trained = sums[0][place]
            if not size:
                continue
            metrics |= {f"{origin}/reward": reward / judged} if judged else {}
            metrics[f"{origin}/length"] = length / size
            if not trained:
                # Answers are of all steps since the last log, tokens of the logged step alone, which may have none.
                continue
            metrics |= {f"{origin}/{name}": row[place] / trained for name, row in zip(names[1:], sums[1:], strict=True)}
        *counted, sampling, scoring = rounds
        seconds = {"seconds/sampling": sampling / ranks, "seconds/scoring": scoring / ranks}
        return {**metrics, **_of_groups(counts, counted), **seconds}

    def read_rest(self, reduce: Callable[[Tensor], Tensor], device: torch.device) -> dict[str, float]:
        """Return the ``groups/…`` metrics of the steps after the last log, whose tokens nobody counted; forget them."""
        counts, rounds = reduce(self._groups.to(device)).tolist(), reduce(self._rounds.to(device)).tolist()
        self._clear()
        return _of_groups(counts, rounds) if counts[0] else {}


def _of_groups(counts: Sequence[float], rounds: Sequence[float]) -> dict[str, float]:
    _, judged, equal = counts
    own, cut_off, errors, timeouts = rounds[:4]
    return {
        **({"groups/zero_advantage": equal / judged} if judged else {}),
        "groups/own": own,
        "groups/cut_off": cut_off,
        "groups/verifier_errors": errors,
        "groups/verifier_timeouts": timeouts,
    }
