"""Short runs of IFT, and its step worked row by row from full logits with embeddings mixed by hand."""

from __future__ import annotations

from typing import Any

import torch

import ballast
from tiny import char_tokenizer, tiny_model
from training_tools import config, dataset, rows


def double(seed: int = 0, **changes: Any):
    return tiny_model(seed, dtype=torch.float64, **changes)


def trainer_of(tmp_path, options: dict[str, Any] | Any, *, model=None, data=None, reference=None, peft=None, **changes):
    """Return a trainer of IFT with these options, or of the objective given, on a tiny model in float64."""
    return ballast.Trainer(
        model if model is not None else double(tied=False),
        config(tmp_path, **changes),
        train_dataset=data if data is not None else dataset(),
        processing_class=char_tokenizer(),
        objective=ballast.objective("ift", **options) if isinstance(options, dict) else options,
        reference=reference,
        peft_config=peft,
    )


def trained(tmp_path, options: dict[str, Any] | Any, **settings):
    """Train IFT with these options and return the trainer."""
    trainer = trainer_of(tmp_path, options, **settings)
    trainer.train()
    return trainer


def tokens(row: dict[str, str]) -> tuple[list[int], int]:
    """Return the ids of a row and the place of the first trained one."""
    tokenizer = char_tokenizer()
    prompt = tokenizer(row["prompt"])["input_ids"]
    return prompt + tokenizer(row["completion"])["input_ids"] + [tokenizer.eos_token_id], len(prompt)


def losses_by_hand(model, row: dict[str, str], share: float, detached: bool) -> list[torch.Tensor]:
    """Return the negative log-likelihood of each trained token of a row, on inputs mixed one position at a time."""
    ids, start = tokens(row)
    embed = model.get_input_embeddings()
    with torch.no_grad():
        guesses = model(input_ids=torch.tensor([ids])).logits[0].argmax(-1).tolist()
    columns = []
    for place, token in enumerate(ids):
        gold = embed(torch.tensor(token))
        mixes = place >= max(start, 1)
        columns.append((1 - share) * gold + share * embed(torch.tensor(guesses[place - 1])) if mixes else gold)
    mixed = torch.stack(columns)[None]
    logp = model(inputs_embeds=mixed.detach() if detached else mixed).logits[0].log_softmax(-1)
    return [-logp[place - 1, ids[place]] for place in range(start, len(ids))]


def weights_by_hand(nll: list[torch.Tensor], variant: str, gamma: float) -> list[torch.Tensor]:
    """Return the weight of each token of one sequence, which carries gradient."""
    reach = [sum(gamma ** (i - t) * nll[i] for i in range(t, len(nll))) for t in range(len(nll))]
    return {
        "normalised": [c * len(nll) / sum(reach) if gamma else 1 for c in reach],
        "algorithm1": reach,
        "equation21": [t + 1 for t in range(len(nll))],
    }[variant]


def step_by_hand(
    model,
    *,
    variant: str = "normalised",
    lam: float = 0.2,
    gamma: float = 0.95,
    average: str = "sequence",
    embeddings: str = "detached",
    data: list[dict[str, str]] | None = None,
) -> float:
    """Return the loss of a step over all rows, and leave its gradients in the model."""
    data = data if data is not None else rows()
    total, count = 0.0, 0
    for row in data:
        nll = losses_by_hand(model, row, lam, embeddings == "detached")
        weight = weights_by_hand(nll, variant, gamma)
        share = 1 / len(nll) if average == "sequence" else 1
        total = total + share * sum(x * w for x, w in zip(nll, weight, strict=True))
        count += 1 if average == "sequence" else len(nll)
    loss = total / count
    loss.backward()
    return loss.item()


def stepped(model, rate: float = 0.1) -> dict[str, torch.Tensor]:
    """Return the weights after a step of plain gradient descent; those without gradient stay."""
    return {
        name: (weight if weight.grad is None else weight - rate * weight.grad).detach().clone()
        for name, weight in model.named_parameters()
    }


def all_weights(trainer) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}
