"""Objectives as research code computes them: a second model that runs at every step, and all logits of both."""

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


LOSSES = {"prift-mass": prift_mass, "eksft": eksft}


class PlainTrainer(SFTTrainer):
    """TRL's trainer with one of these losses."""

    def __init__(self, model: Any, args: Any, *, objective: str, **parts: Any) -> None:
        # Before TRL changes the model's forward.
        self.second = copy.deepcopy(model).eval()
        self.loss_of = LOSSES[objective]
        super().__init__(model, args, **parts)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        labels = inputs.pop("labels")
        logits = model(**inputs).logits
        with torch.no_grad():
            reference = self.second(**inputs).logits
        mask = labels[:, 1:] != -100
        logp, logq = (all_of[:, :-1].float().log_softmax(-1)[mask] for all_of in (logits, reference))
        return self.loss_of(logp, logq, labels[:, 1:][mask])
