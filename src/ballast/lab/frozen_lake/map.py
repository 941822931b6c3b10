"""The lakes of `ballast lab frozen-lake`: maps with two ways to the goal, and the optimal policy by shortest path.

Imports gymnasium and numpy, no torch. Shape suffixes: ``S`` states (cells, row by row), ``A`` actions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import gymnasium
import numpy as np
from gymnasium.envs.toy_text.frozen_lake import FrozenLakeEnv

ACTIONS = ("left", "down", "right", "up")
START, GOAL, HOLE = "S", "G", "H"

MAPS = {
    "fork-1": ("SFFF", "FHHF", "FHFF", "FFGH"),
    "fork-2": ("SFFF", "HFHF", "HFHF", "HFGF"),
}
"""Each has exactly two ways from start to goal that enter no cell twice, of 5 and of 7 steps; they part at the first
step and at the second."""


@dataclass(frozen=True)
class Trajectory:
    """A way from the start to the goal: ``actions[t]`` is taken in ``states[t]``; the goal is not among the states."""

    states: tuple[int, ...]
    actions: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.actions)


@dataclass(frozen=True)
class Lake:
    """A map that does not slip, with its two trajectories.

    Attributes:
        name: key of `MAPS`.
        rows: the map as gymnasium reads it.
        next_state: the state that each action leads to, ``[S][A]``, from gymnasium's transition table.
        optimal: the shorter way to the goal.
        suboptimal: the longer one.
    """

    name: str
    rows: tuple[str, ...]
    next_state: tuple[tuple[int, ...], ...]
    optimal: Trajectory
    suboptimal: Trajectory

    @property
    def cells(self) -> str:
        """The letters of all cells, by state."""
        return "".join(self.rows)

    @property
    def deciding(self) -> tuple[int, ...]:
        """States in which an action is taken: neither goal nor hole."""
        return tuple(state for state, cell in enumerate(self.cells) if cell not in (GOAL, HOLE))

    def optimal_policy(self) -> np.ndarray:
        """Return the optimal state-action matrix, ``[S, A]``; rows of holes and of the goal are zero.

        Every other cell, on a trajectory or not, takes the first action of a shortest way to the goal; where several
        are shortest they share the probability evenly.
        """
        steps_S = _steps_to_goal(self.cells, self.next_state)
        policy_SA = np.zeros((len(self.cells), len(ACTIONS)))
        for state in self.deciding:
            nearer = [steps_S[after] == steps_S[state] - 1 for after in self.next_state[state]]
            policy_SA[state] = np.array(nearer) / sum(nearer)
        return policy_SA


@lru_cache
def lake(name: str) -> Lake:
    """Build the map of that name in gymnasium and find its trajectories."""
    rows = MAPS[name]
    game = environment(name).unwrapped
    assert isinstance(game, FrozenLakeEnv)
    # Nothing slips, so each entry holds one outcome: (probability 1, next state, reward, end).
    next_state = tuple(
        tuple(int(game.P[state][action][0][1]) for action in range(len(ACTIONS))) for state in range(len("".join(rows)))
    )
    start = "".join(rows).index(START)
    optimal, suboptimal = sorted(trajectories("".join(rows), next_state, start), key=len)
    return Lake(name, rows, next_state, optimal, suboptimal)


def environment(name: str) -> gymnasium.Env:
    """Return the game itself."""
    return gymnasium.make("FrozenLake-v1", desc=list(MAPS[name]), is_slippery=False)


def trajectories(
    cells: str, next_state: tuple[tuple[int, ...], ...], state: int, seen: tuple[int, ...] = ()
) -> Iterator[Trajectory]:
    """Yield every way from a state to the goal that enters no cell twice."""
    for action, after in enumerate(next_state[state]):
        if cells[after] == GOAL:
            yield Trajectory((state,), (action,))
        elif cells[after] != HOLE and after not in (*seen, state):
            for rest in trajectories(cells, next_state, after, (*seen, state)):
                yield Trajectory((state, *rest.states), (action, *rest.actions))


def _steps_to_goal(cells: str, next_state: tuple[tuple[int, ...], ...]) -> list[float]:
    steps = [0.0 if cell == GOAL else float("inf") for cell in cells]
    for _ in cells:
        steps = [
            steps[state] if cell in (GOAL, HOLE) else min(steps[after] for after in next_state[state]) + 1
            for state, cell in enumerate(cells)
        ]
    return steps
