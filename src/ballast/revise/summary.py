"""What a folder of revised rows holds, in numbers and in lines to print."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ballast.revise.options import LABELS

Row = Mapping[str, Any]


def summary(rows: Sequence[Row], counts: Sequence[Mapping[str, int]]) -> dict[str, Any]:
    """Return what a full folder holds, by name: labels, scores and lengths of drafts and answers, what it cost."""
    drafts, answers = [row["versions"][0] for row in rows], [row["versions"][row["answer_version"]] for row in rows]
    judged = [(a["reward"], b["reward"]) for a, b in zip(drafts, answers, strict=True) if a["reward"] is not None]
    labels = Counter(row["label"] for row in rows)
    return {
        "rows": len(rows),
        "kept": sum(row["kept"] for row in rows),
        "changed": sum(a["text"] != b["text"] for a, b in zip(drafts, answers, strict=True)),
        "labels": {label: labels[label] for label in LABELS if sum(labels.values()) - labels[None]},
        "reward": {"draft": _mean(a for a, _ in judged), "answer": _mean(b for _, b in judged)} if judged else {},
        "right_to_wrong": sum(a >= 1 > b for a, b in judged),
        "wrong_to_right": sum(b >= 1 > a for a, b in judged),
        "characters": {
            "draft": _mean(len(a["text"]) for a in drafts),
            "answer": _mean(len(b["text"]) for b in answers),
        },
        "no_room": sum(row["no_room"] for row in rows),
        "cut_off": sum(not answer["ended"] for answer in answers),
        "spent_tokens": sum(row["spent"] for row in rows),
        "verifier_errors": sum(one.get("errors", 0) for one in counts),
        "verifier_timeouts": sum(one.get("timeouts", 0) for one in counts),
    }


def lines(file: str, found: Mapping[str, Any]) -> list[str]:
    """Return a summary as lines to print."""
    size = found["rows"]
    first = (
        f"{file}: {size:,} rows, {found['kept']:,} to train on, {found['changed']:,} changed; "
        f"{found['characters']['draft']:.0f} characters a draft, {found['characters']['answer']:.0f} an answer; "
        f"{found['spent_tokens']:,} tokens sampled ({found['seconds']:.1f} s)"
    )
    told = [first]
    if found["labels"]:
        shares = ", ".join(f"{label} {count / size:.0%}" for label, count in found["labels"].items())
        told.append(f"labels: {shares}")
    if found["reward"]:
        told.append(
            f"mean score: drafts {found['reward']['draft']:.3f}, answers {found['reward']['answer']:.3f}; "
            f"{found['right_to_wrong']:,} went from right to wrong, {found['wrong_to_right']:,} from wrong to right"
        )
    told.append(
        f"{found['no_room']:,} rows without room for a text kept what they had; {found['cut_off']:,} answers cut off; "
        f"{found['verifier_errors']:,} verifier errors, {found['verifier_timeouts']:,} time-outs"
    )
    return told


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed)
