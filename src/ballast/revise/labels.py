"""How much is to be done to an answer: what a reviser says of it, and what it is taught to say of pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ballast.revise.options import Label

NO, MINOR = 0.1, 0.5
"""Edit distances from which on an answer needs a minor, a major revision."""


def read_reply(text: str, labels: Mapping[str, str]) -> tuple[Label, str]:
    """Return the label that a reviser's reply begins with, and the revision behind it.

    The reply begins with exactly one label, by default a first line of its own. Of a reply that says to revise and
    gives no answer, or says no label, the label is ``unparsed``; the revision is then empty, as it is for ``no``.

    Args:
        labels: the text of ``major``, ``minor`` and ``no``.

    >>> read_reply("minor: 14", {"major": "major: ", "minor": "minor: ", "no": "no"})
    ('minor', '14')
    """
    if text.split("\n", 1)[0].strip() == labels["no"].strip():
        return "no", ""
    for label in ("major", "minor"):
        if text.startswith(labels[label]) and text[len(labels[label]) :].strip():
            return ("major" if label == "major" else "minor"), text[len(labels[label]) :]
    return "unparsed", ""


def reply(label: str | None, revision: str, labels: Mapping[str, str]) -> str:
    """Return what a reviser is taught to reply: label and revision, the label alone for ``no``, None being no label."""
    return revision if label is None else labels["no"] if label == "no" else labels[label] + revision


def by_scores(draft: float, better: float) -> Label | None:
    """Return the label of a pair by its verifier scores, 0 … 1; None where the pair teaches nothing.

    A right draft needs nothing, whatever stands beside it. A wrong one needs a major, one that is partly right a minor
    revision, if the other answer is better at all.
    """
    if draft >= 1:
        return "no"
    if better <= draft:
        return None
    return "major" if draft <= 0 else "minor"


def by_distance(draft: str, better: str) -> Label:
    """Return the label of a pair by its normalised edit distance: below .1 no, below .5 minor, else major."""
    distance = edit_distance(draft, better)
    return "no" if distance < NO else "minor" if distance < MINOR else "major"


def thirds(difficulties: Sequence[float]) -> tuple[float, float]:
    """Return the two thresholds that divide difficulties into thirds."""
    low, high = np.quantile(np.asarray(difficulties, dtype=np.float64), [1 / 3, 2 / 3])
    return float(low), float(high)


def by_difficulty(difficulty: float, thresholds: tuple[float, float]) -> Label:
    """Return the label of a pair by how much less likely than the draft a reviser finds the better answer.

    Args:
        difficulty: mean over the better answer's tokens of its negative log-likelihood given problem and draft, less
            that of the draft itself, in nats per token; high where the reviser would rather keep the draft.
        thresholds: of `thirds`.
    """
    low, high = thresholds
    return "major" if difficulty <= low else "minor" if difficulty <= high else "no"


def edit_distance(one: str, other: str) -> float:
    """Return Levenshtein's distance in characters divided by the longer text's length, 0 … 1; 0 for two empty texts.

    >>> edit_distance("kitten", "sitting")
    0.42857142857142855
    """
    if not one or not other:
        return float(bool(one or other))
    letters, places = np.array(list(other)), np.arange(len(other) + 1)
    row = places
    for count, letter in enumerate(one, start=1):
        best = np.minimum(row[1:] + 1, row[:-1] + (letters != letter))
        # Insertions run along the row: the least of the places before, one step each.
        row = np.minimum.accumulate(np.concatenate([[count], best]) - places) + places
    return float(row[-1]) / max(len(one), len(other))
