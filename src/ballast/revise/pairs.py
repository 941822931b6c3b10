"""Rows that teach a reviser: problem and answer, then a label and a better answer.

Source: SEFT, arXiv:2406.10813; how a label is found is ours, see `ballast.revise.labels`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ballast.revise.labels import by_difficulty, by_distance, by_scores, reply
from ballast.revise.options import Label
from ballast.revise.rows import as_completion
from ballast.revise.templates import Templates, asking, question


@dataclass(frozen=True)
class Answer:
    """One answer to a prompt: its text, its score 0 … 1 (None where nothing judged it), and whether it ended."""

    text: str
    reward: float | None
    ended: bool = True


@dataclass(frozen=True)
class Pair:
    """An answer and one at least as good to the same prompt, text or messages."""

    prompt: Any
    draft: Answer
    better: Answer


def best_pairs(prompt: Any, answers: Sequence[Answer]) -> Iterator[Pair]:
    """Yield each answer of a group with the group's best: that of the highest reward, the earliest of equals.

    An answer that was cut off is never the best; of equal texts the first counts.
    """
    ended = [one for one in answers if one.ended]
    if not ended:
        return
    best = max(ended, key=lambda one: one.reward or 0.0)
    seen = {best.text}
    for one in answers:
        if one.text not in seen:
            seen.add(one.text)
            yield Pair(prompt, one, best)


def labelled(
    pairs: Sequence[Pair], rule: str, *, difficulties: Sequence[float] = (), thresholds: tuple[float, float] = (0, 0)
) -> list[tuple[Label | None, Pair]]:
    """Return pairs with their labels by one rule, without those that teach nothing.

    Scores label right drafts too. The other rules look at worse drafts alone, so each pair brings another: its better
    answer, to be left as it is; ``none`` brings none, and no labels.

    Args:
        rule: ``verifier``, ``difficulty``, ``edit`` or ``none``.
        difficulties, thresholds: of `by_difficulty`, for its rule.
    """
    if rule == "verifier":
        found = [(by_scores(one.draft.reward or 0.0, one.better.reward or 0.0), one) for one in pairs]
        return [(label, one) for label, one in found if label is not None]
    if rule == "none":
        return [(None, one) for one in pairs]
    if rule == "edit":
        labels = [by_distance(one.draft.text, one.better.text) for one in pairs]
    else:
        labels = [by_difficulty(difficulty, thresholds) for difficulty in difficulties]
    made: list[tuple[Label | None, Pair]] = []
    for label, one in zip(labels, pairs, strict=True):
        made += [(label, one), ("no", Pair(one.prompt, one.better, one.better))]
    return made


def worse_drafts(pairs: Iterable[Pair]) -> list[Pair]:
    """Return the pairs whose draft scores less; where nothing was judged, all: they come as better and worse."""
    return [one for one in pairs if one.draft.reward is None or one.draft.reward < (one.better.reward or 0.0)]


def asked(pair: Pair, templates: Templates) -> Any:
    """Return what a reviser is asked of a pair's draft: text, or messages."""
    row = {"prompt": pair.prompt}
    return asking(row, templates.fill("reviser", prompt=question(row), draft=pair.draft.text))["prompt"]


def reviser_row(label: Label | None, pair: Pair, templates: Templates) -> Mapping[str, Any]:
    """Return the row that a reviser is trained on."""
    said = reply(label, pair.better.text, templates.labels)
    return {
        "prompt": asked(pair, templates),
        "completion": as_completion(pair.prompt, said),
        "label": label,
        "draft": pair.draft.text,
        "better": pair.better.text,
    }
