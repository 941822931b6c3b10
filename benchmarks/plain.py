"""Objectives as their authors' and other libraries' code computes them: all logits at once, of a second model too."""

from __future__ import annotations

import copy
from typing import Any

import torch
from trl import SFTTrainer


def prift_mass(logp: torch.Tensor, logq: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the mean of the losses of the tokens that stand high enough in the reference's ranking."""
    at_target = logq.gather(-1, targets[:, None])
    mass = (logq.exp() * (logq < at_target)).sum(-1) + at_target[:, 0].exp()
    nll = -logp.gather(-1, targets[:, None])[:, 0]
    return ((mass >= 0.5) * nll).mean()


def eksft(logp: torch.Tensor, logq: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the loss with selection over the whole batch."""
    entropy = -(logp.exp() * logp).sum(-1)
    kl = (logp.exp() * (logp - logq)).sum(-1)
    count = max(1, int(0.2 * len(targets)))
    uncertain, moved = (torch.zeros(len(targets), dtype=torch.bool) for _ in range(2))
    uncertain[entropy.detach().topk(count).indices] = True
    moved[kl.detach().topk(count).indices] = True
    nll = -logp.gather(-1, targets[:, None])[:, 0]
    kept = nll[~(uncertain | moved)].mean()
    return kept - 0.05 * entropy[uncertain].mean() + 0.05 * kl[moved].mean()


def eaft(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the mean of the losses weighed by the entropy of the twenty likeliest tokens, as LlamaFactory has it."""
    # The labels are moved, not the logits, so that nothing of the vocabulary's size is copied.
    logits, targets = logits.flatten(0, 1), torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100).flatten()
    nll = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    with torch.no_grad():
        top = logits.topk(20, dim=-1).values.softmax(-1)
        entropy = -(top * (top + 1e-10).log()).sum(-1)
    return (nll * entropy / 3.0).sum() / (targets != -100).sum()


def gem(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the mean of how far the target is below what is drawn at temperature .7, each token by its weight."""
    mask = labels[:, 1:] != -100
    logits, targets = logits[:, :-1][mask], labels[:, 1:][mask]
    logp = logits.log_softmax(-1)
    drawn = (logits / 0.7).log_softmax(-1).exp().detach()
    weight = torch.ones_like(drawn)
    return -(drawn * weight * (logp.gather(-1, targets[:, None]) - logp)).sum(-1).mean()


ALONE = {"eaft": eaft, "gem": gem}
"""Losses of logits ``[B, T, V]`` and labels ``[B, T]``."""

BESIDE = {"prift-mass": prift_mass, "eksft": eksft}
"""Losses of log-probabilities of model and second model ``[N, V]`` and targets ``[N]``."""


class PlainTrainer(SFTTrainer):
    """TRL's trainer with one of these losses."""

    def __init__(self, model: Any, args: Any, *, objective: str, **parts: Any) -> None:
        # Before TRL changes the model's forward.
        self.second = copy.deepcopy(model).eval() if objective in BESIDE else None
        self.objective = objective
        super().__init__(model, args, **parts)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        labels = inputs.pop("labels")
        logits = model(**inputs).logits
        if self.second is None:
            return ALONE[self.objective](logits, labels)
        with torch.no_grad():
            reference = self.second(**inputs).logits
        mask = labels[:, 1:] != -100
        logp, logq = (all_of[:, :-1].float().log_softmax(-1)[mask] for all_of in (logits, reference))
        return BESIDE[self.objective](logp, logq, labels[:, 1:][mask])
