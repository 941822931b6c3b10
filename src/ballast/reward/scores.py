"""Scores of answers: a classifier's one number for each token, what is read of them, and its losses over pairs.

Shapes: ``B`` answers (the first half preferred over the second), ``T`` positions, ``P`` pairs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ballast.batching import batches, bearable
from ballast.errors import BallastError
from ballast.evaluation.scoring import inference

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ballast.protocols import Tokenizer

HEAD = "score"
"""The module of a sequence classifier that reads the last hidden states."""
KIND = "ForSequenceClassification"


def token_scores(model: Any, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Return the score that each position would have as the last one, ``[B, T]``, at least float32.

    By itself a classifier reads its score where it finds the last token that is not padding: a token too early where
    padding is the end token.
    """
    hidden_BTH = model.base_model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).last_hidden_state
    scores: Tensor = getattr(model, HEAD)(hidden_BTH)[..., 0]
    return scores.float() if scores.dtype.itemsize < 4 else scores


def last(scores_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Return the score at each answer's last token, ``[B]``; padding stands on the right."""
    return scores_BT.gather(1, mask_BT.sum(1, keepdim=True).long() - 1)[:, 0]


def last_token_loss(scores_BT: Tensor, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Return −log σ(r⁺ − r⁻) of each pair, ``[P]`` in nats, of the scores at the last tokens (Bradley–Terry)."""
    import torch

    chosen, rejected = last(scores_BT, mask_BT).chunk(2)
    return -torch.nn.functional.logsigmoid(chosen - rejected)


def per_token_loss(scores_BT: Tensor, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Return the mean of −log σ(r⁺_t − r⁻_t) over places from the first that differs to the longer end, ``[P]``.

    Equal answers have their last place. Source: RFT's released code (Reward_learning_SFT, reward_model_RLHF.py).
    """
    import torch

    chosen, rejected = scores_BT.chunk(2)
    ids, others = ids_BT.chunk(2)
    mask, other_mask = mask_BT.chunk(2)
    end = torch.maximum(mask.sum(1), other_mask.sum(1))[:, None]
    place = torch.arange(ids.shape[1], device=ids.device)
    differs = ((ids != others) | (mask != other_mask)) & (place < end)
    begin = torch.where(differs.any(1, keepdim=True), differs.long().argmax(1, keepdim=True), end - 1)
    counted = (place >= begin) & (place < end)
    loss = -torch.nn.functional.logsigmoid(chosen - rejected)
    return (loss * counted).sum(1) / counted.sum(1)


Loss = Callable[["Tensor", "Tensor", "Tensor"], "Tensor"]
LOSSES: dict[str, Loss] = {"last-token": last_token_loss, "per-token": per_token_loss}


def padded(sequences: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return ids and mask, ``[B, T]``, padded on the right."""
    import torch

    size = max(map(len, sequences))
    ids = torch.tensor([[*one, *[0] * (size - len(one))] for one in sequences], device=device)
    mask = torch.tensor([[1] * len(one) + [0] * (size - len(one)) for one in sequences], device=device)
    return ids, mask


class Scorer:
    """A classifier that scores answers given as token ids, prompt included, at their last token."""

    def __init__(self, model: Any, batch_tokens: int = 16384) -> None:
        self.model, self.batch_tokens = model, batch_tokens

    def __call__(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        """Return the score of each sequence."""
        found = [0.0] * len(sequences)
        with inference(self.model):
            padding = bearable(self.model.device.type)
            for rows in batches([len(one) for one in sequences], self.batch_tokens, padding=padding):
                ids, mask = padded([sequences[row] for row in rows], self.model.device)
                values = last(token_scores(self.model, ids, mask), mask).tolist()
                for row, value in zip(rows, values, strict=True):
                    found[row] = value
        return found


def folder_problem(folder: str | Path) -> str | None:
    """Return what keeps a folder from being a reward, as far as its files tell; None where nothing does."""
    path = Path(folder)
    if not path.is_dir():
        return f"{folder}: no such folder; `ballast reward` makes one"
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        # Two labels are what transformers takes where nothing is written.
        kind, labels = str((config.get("architectures") or ["?"])[0]), len(config.get("id2label") or "ab")
    except (OSError, ValueError, AttributeError) as error:
        return f"{folder}: has no config.json that can be read ({error.__class__.__name__}), so it is no model"
    if not kind.endswith(KIND):
        return f"{folder}: holds a {kind}, which is no classifier and scores nothing; take a folder of `ballast reward`"
    if labels != 1:
        return f"{folder}: a classifier with {labels} labels has no one score; take a folder of `ballast reward`"
    if not any(path.glob("*.safetensors")):
        return f"{folder}: has no *.safetensors; weights are read from safetensors alone"
    return None


def tokenizer_problem(folder: str | Path, tokenizer: Tokenizer) -> str | None:
    """Return that a reward's tokens are not those of a tokenizer, None where they are."""
    from transformers import AutoTokenizer

    if AutoTokenizer.from_pretrained(str(folder)).get_vocab() == tokenizer.get_vocab():
        return None
    return (
        f"{folder}: was trained with another tokenizer, so the ids that are scored would mean other words; learn the "
        "reward from this model's own answers"
    )


def load_classifier(path: str | Path, **options: Any) -> tuple[Any, frozenset[str]]:
    """Return a model with one score, in eval mode, and the names of the weights that its folder lacks.

    Raises:
        BallastError: if it cannot be loaded, or its class has no head that scores every position.
    """
    from transformers import AutoModelForSequenceClassification

    try:
        model, info = AutoModelForSequenceClassification.from_pretrained(
            str(path), num_labels=1, use_safetensors=True, output_loading_info=True, **options
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BallastError(f"{path}: cannot be loaded as a sequence classifier: {reason}") from error
    if not hasattr(model, HEAD) or model.base_model is model:
        raise BallastError(f"{path}: {type(model).__name__} has no head named {HEAD!r}, so tokens have no score")
    return model.eval(), frozenset(info["missing_keys"])


def load_scorer(folder: str | Path, tokenizer: Tokenizer, device: torch.device | None = None) -> Scorer:
    """Return the scorer in a folder of `ballast reward`.

    Args:
        tokenizer: whose ids are scored.

    Raises:
        BallastError: if the folder is none, lacks weights, or its ids mean other words.
    """
    if problem := folder_problem(folder) or tokenizer_problem(folder, tokenizer):
        raise BallastError(problem)
    model, missing = load_classifier(folder)
    if missing:
        raise BallastError(f"{folder}: lacks the weights {', '.join(sorted(missing)[:3])}; learn the reward again")
    return Scorer(model if device is None else model.to(device))
