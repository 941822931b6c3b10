"""Policies on the lake as tiny language models, all seeds at once: SFT, IFT, ORPO and DPO.

The state is what a prefix gives a language model, the action is its next token, the start state is the prompt. Shape
suffixes: ``R`` runs (one for each seed, independent of each other), ``T`` steps of a trajectory, ``S`` states, ``A``
actions, ``D`` hidden size. Log-probabilities and losses are in nats and float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import log_softmax, logsigmoid, one_hot

import ballast
from ballast.lab.frozen_lake.map import ACTIONS, Lake, Trajectory
from ballast.objectives import Objective
from ballast.objectives.base import ChangesInputs
from ballast.objectives.ift import IFT
from ballast.stats import TokenStats

HIDDEN = 64
OPTIMISERS: dict[str, Callable[..., torch.optim.Optimizer]] = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}
OPTIMISER, RATE = "adam", 1e-3
STEPS = 400
BETA = 0.1
ODDS_WEIGHT = 0.1
KNOWN = 0.5
LONGEST_PRETRAINING = 5_000

STARTS: dict[str, float | None] = {"fresh": None, "pretrained": 0.5, "biased": 0.25}
"""Initial policies by the share of optimal trajectories among those that they imitated; None imitated nothing."""
VARIED = ("fork-1", "biased")
"""The map and the start on which optimisers, rates and options are varied; the figures show this map."""

Options = Mapping[str, Any]


@dataclass(frozen=True)
class Policies:
    """Two fully connected layers with a ReLU between them, once for each run."""

    weight_in_RSD: Tensor
    bias_in_R1D: Tensor
    weight_out_RDA: Tensor
    bias_out_R1A: Tensor

    @property
    def tensors(self) -> list[Tensor]:
        return [getattr(self, item.name) for item in fields(self)]

    @property
    def runs(self) -> int:
        return len(self.weight_in_RSD)

    def logprobs(self, inputs: Tensor) -> Tensor:
        """Return the log-probability of every action, ``[R, T, A]``, for encoded states ``[R, T, S]``."""
        hidden_RTD = torch.relu(inputs @ self.weight_in_RSD + self.bias_in_R1D)
        return log_softmax(hidden_RTD @ self.weight_out_RDA + self.bias_out_R1A, dim=-1)

    def matrix(self) -> Tensor:
        """Return the state-action matrices, ``[R, S, A]``."""
        states = self.weight_in_RSD.shape[1]
        with torch.no_grad():
            return self.logprobs(encode(range(states), states).expand(self.runs, -1, -1)).exp()

    def copy(self) -> Policies:
        """Return the same policies as new leaves that take gradients."""
        return Policies(*(tensor.detach().clone().requires_grad_() for tensor in self.tensors))


def fresh_policies(seed: int, runs: int, states: int) -> Policies:
    """Draw the weights as PyTorch's `Linear` does; run i depends on ``(seed, i)`` alone, not on how many there are."""

    def draw(generator: torch.Generator, *shape: int, fan_in: int) -> Tensor:
        return (2 * torch.rand(*shape, generator=generator, dtype=torch.float64) - 1) / fan_in**0.5

    drawn = []
    for run in range(runs):
        number = int(np.random.SeedSequence([seed, run]).generate_state(1)[0])
        generator = torch.Generator().manual_seed(number)
        drawn.append(
            (
                draw(generator, states, HIDDEN, fan_in=states),
                draw(generator, 1, HIDDEN, fan_in=states),
                draw(generator, HIDDEN, len(ACTIONS), fan_in=HIDDEN),
                draw(generator, 1, len(ACTIONS), fan_in=HIDDEN),
            )
        )
    return Policies(*(torch.stack(parts) for parts in zip(*drawn, strict=True)))


def encode(states: Trajectory | range | list[int], size: int) -> Tensor:
    """Return one-hot rows, ``[1, T, S]``."""
    numbers = states.states if isinstance(states, Trajectory) else states
    return one_hot(torch.tensor(list(numbers)), size).to(torch.float64)[None]


def action_logprobs(policies: Policies, way: Trajectory, inputs: Tensor | None = None) -> Tensor:
    """Return the log-probability of each action of a trajectory, ``[R, T]``, given its states or other inputs."""
    if inputs is None:
        inputs = encode(way, policies.weight_in_RSD.shape[1]).expand(policies.runs, -1, -1)
    return policies.logprobs(inputs)[:, range(len(way)), way.actions]


def objective_loss(objective: Objective, logprob_RT: Tensor) -> Tensor:
    """Return the loss of one of the library's objectives, ``[R]``: each run is a sequence of T trained tokens."""
    runs, steps = logprob_RT.shape
    stats = TokenStats(
        logprob=logprob_RT.flatten(),
        sequence=torch.arange(runs).repeat_interleave(steps),
        position=torch.arange(steps).repeat(runs),
    )
    count = {"tokens": steps, "sequences": 1}[objective.reduction]
    return objective.per_token_loss(stats).view(runs, steps).sum(1) / count


def dpo_loss(
    chosen_R: Tensor, rejected_R: Tensor, ref_chosen_R: Tensor, ref_rejected_R: Tensor, beta: float = BETA
) -> Tensor:
    """Return ``−log σ(β·[(log π − log π_ref)(chosen) − (log π − log π_ref)(rejected)])`` of log-probabilities ``[R]``.

    Source: Direct Preference Optimization, arXiv:2305.18290, equation 7.
    """
    return -logsigmoid(beta * ((chosen_R - ref_chosen_R) - (rejected_R - ref_rejected_R)))


def orpo_loss(chosen_RT: Tensor, rejected_RU: Tensor, weight: float = ODDS_WEIGHT) -> Tensor:
    """Return ``nll − weight·log σ(log odds(chosen) − log odds(rejected))``, ``[R]``; steps are ``[R, T]``, ``[R, U]``.

    The odds ``P/(1−P)`` are of the geometric mean P of a trajectory's action probabilities. Source: ORPO,
    arXiv:2403.07691, equations 3 to 7.
    """
    chosen_R, rejected_R = chosen_RT.mean(1), rejected_RU.mean(1)
    return -chosen_R - weight * logsigmoid(_log_odds(chosen_R) - _log_odds(rejected_R))


def _log_odds(logprob: Tensor) -> Tensor:
    return logprob - torch.log(-torch.expm1(logprob))


def residual_inputs(objective: ChangesInputs, policies: Policies, lake: Lake, progress: float) -> Tensor:
    """Return IFT's inputs, ``[R, T, S]``: states after the start, mixed with those that the greedy actions lead to.

    The encoding takes the place of the embeddings: the start is the prompt, each further state is what the token
    before it, the action, gives the model.
    """
    gold_RTS = encode(lake.optimal, len(lake.cells)).expand(policies.runs, -1, -1)
    with torch.no_grad():
        greedy_RT = policies.logprobs(gold_RTS).argmax(-1)
    states_T = torch.tensor(lake.optimal.states)
    reached_RT = torch.tensor(lake.next_state)[states_T, greedy_RT]
    labels_RT = torch.tensor([-100, *lake.optimal.actions[:-1]]).expand(policies.runs, -1)
    first_RT = states_T[:1].expand(policies.runs, 1)
    own_RTS = one_hot(torch.cat([first_RT, reached_RT[:, :-1]], 1), len(lake.cells)).to(gold_RTS.dtype)
    return objective.prepare_inputs(gold_RTS, own_RTS, labels_RT, progress=progress)


Loss = Callable[[Policies, float], Tensor]
"""Losses ``[R]`` of policies, and of the share of training done."""


def _sft(lake: Lake, start: Policies, options: Options) -> Loss:
    objective = ballast.objective("sft", **options)
    return lambda policies, progress: objective_loss(objective, action_logprobs(policies, lake.optimal))


def _ift(lake: Lake, start: Policies, options: Options) -> Loss:
    objective = IFT(**options)

    def loss(policies: Policies, progress: float) -> Tensor:
        inputs = residual_inputs(objective, policies, lake, progress)
        return objective_loss(objective, action_logprobs(policies, lake.optimal, inputs))

    return loss


def _orpo(lake: Lake, start: Policies, options: Options) -> Loss:
    return lambda policies, progress: orpo_loss(
        action_logprobs(policies, lake.optimal), action_logprobs(policies, lake.suboptimal), **options
    )


def _dpo(lake: Lake, start: Policies, options: Options) -> Loss:
    def both(policies: Policies) -> tuple[Tensor, Tensor]:
        chosen, rejected = action_logprobs(policies, lake.optimal), action_logprobs(policies, lake.suboptimal)
        return chosen.sum(1), rejected.sum(1)

    with torch.no_grad():
        reference = both(start)
    return lambda policies, progress: dpo_loss(*both(policies), *reference, **options)


METHODS: dict[str, Callable[[Lake, Policies, Options], Loss]] = {"sft": _sft, "orpo": _orpo, "ift": _ift, "dpo": _dpo}


@dataclass(frozen=True)
class Trained:
    """Runs of one method.

    Attributes:
        matrix: state-action matrices at the end, ``[R, S, A]``.
        on_way: distance on the states of the optimal trajectory before each step and at the end, ``[steps + 1, R]``.
        on_map: the same on every state in which an action is taken.
        strayed: steps before which the greedy action was not the optimal one in a state of the optimal trajectory but
            the last, ``[R]``: the steps in which IFT's inputs differ from SFT's.
    """

    matrix: Tensor
    on_way: Tensor
    on_map: Tensor
    strayed: Tensor


def distance(matrix_RSA: Tensor, optimal_SA: Tensor, states: tuple[int, ...]) -> Tensor:
    """Return the mean squared error between state-action matrices over some states and all actions, ``[R]``."""
    rows = list(states)
    return (matrix_RSA[:, rows] - optimal_SA[rows]).square().mean((1, 2))


def train(
    method: str,
    lake: Lake,
    start: Policies,
    *,
    steps: int = STEPS,
    optimiser: str = OPTIMISER,
    rate: float = RATE,
    options: Options | None = None,
) -> Trained:
    """Train copies of the policies, every step on the whole data: one trajectory, or the pair.

    The losses of the runs are added up, so that each run gets its own gradient and the number of runs changes nothing.
    """
    policies, optimal_SA = start.copy(), torch.from_numpy(lake.optimal_policy())
    loss = METHODS[method](lake, start, options or {})
    optimizer = OPTIMISERS[optimiser](policies.tensors, lr=rate)
    matrices = [policies.matrix()]
    for step in range(steps):
        optimizer.zero_grad()
        loss(policies, step / steps).sum().backward()
        optimizer.step()
        matrices.append(policies.matrix())
    on_way, on_map = (
        torch.stack([distance(matrix, optimal_SA, states) for matrix in matrices])
        for states in (lake.optimal.states, lake.deciding)
    )
    greedy_LRT = torch.stack(matrices[:-1])[:, :, lake.optimal.states[:-1]].argmax(-1)
    strayed = (greedy_LRT != torch.tensor(lake.optimal.actions[:-1])).any(-1).sum(0)
    return Trained(matrices[-1], on_way, on_map, strayed)


def way_probability(matrix_RSA: Tensor, way: Trajectory) -> Tensor:
    """Return the probability of taking a trajectory from the start, ``[R]``."""
    return matrix_RSA[:, way.states, way.actions].prod(1)


def pretrain(lake: Lake, start: Policies, share: float) -> Policies:
    """Imitate both trajectories until a run takes one or the other with a probability of `KNOWN`.

    Each run is taken at its own first step that gets there, so that all know the same. ``share`` of what is imitated is
    the optimal trajectory.
    """
    policies, ways = start.copy(), {lake.optimal: share, lake.suboptimal: 1 - share}
    optimizer = OPTIMISERS[OPTIMISER](policies.tensors, lr=RATE)
    reached = torch.zeros(start.runs, dtype=torch.bool)
    known = policies.copy()
    for _ in range(LONGEST_PRETRAINING):
        optimizer.zero_grad()
        torch.stack([-part * action_logprobs(policies, way).sum() for way, part in ways.items()]).sum().backward()
        optimizer.step()
        now = ~reached & (sum(way_probability(policies.matrix(), way) for way in ways) >= KNOWN)
        with torch.no_grad():
            for old, new in zip(known.tensors, policies.tensors, strict=True):
                old[now] = new[now]
        reached |= now
        if reached.all():
            return known
    raise RuntimeError(f"map {lake.name}: after {LONGEST_PRETRAINING} steps a run still does not know its ways")


def estimate(values: Sequence[float]) -> dict[str, float]:
    """Return the mean over seeds with its 95 % t interval: ``{"mean", "low", "high"}``."""
    from scipy.stats import t

    mean = float(np.mean(values))
    half = float(t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5)
    return {"mean": mean, "low": mean - half, "high": mean + half}
