"""What became of the rows, in figures and in lines to print."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ballast.data.chat_tokens import NO_END, OTHER_END, TEMPLATE, UNMARKED

if TYPE_CHECKING:
    from datasets import Dataset

UNTRAINED = "it is neither read nor trained"


@dataclass(frozen=True)
class PrepareReport:
    """What became of the rows. Counts are of rows, ``tokens`` and ``trained_tokens`` of tokens kept.

    ``left_out`` counts the rows whose chat template leaves out a kind of text.
    """

    name: str
    rows_in: int
    rows_out: int
    dropped_no_trained_token: int = 0
    truncated: int = 0
    added_by_split: int = 0
    prompt_not_prefix: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    notes: tuple[str, ...] = field(default=())
    left_out: Mapping[str, int] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """The report as lines to print; only what happened is named."""
        lines = [
            f"{self.name}: {self.rows_in:,} rows in, {self.rows_out:,} out; "
            f"{self.trained_tokens:,} of {self.tokens:,} tokens trained"
        ]
        told = (
            (self.truncated, "truncated to max_length"),
            (self.added_by_split, "more rows from splitting at max_length"),
            (self.dropped_no_trained_token, "dropped: no trained token"),
            (
                self.prompt_not_prefix,
                "whose prompt is no prefix of prompt+completion: training starts where they diverge",
            ),
        )
        lines += [f"{self.name}: {count:,} {what}" for count, what in told if count]
        return lines + [f"{self.name}: {note}" for note in self.notes]


@dataclass
class Counts:
    """What became of some rows, to be added up over batches.

    Attributes:
        read: rows that were looked at.
        whole: rows that had something to train before they were cut.
        pieces: what they were split into.
        kept: what is left of these with a trained token.
        earliest: place of the first trained token in any row that is gone, None where there is none.
        left_out: rows that lack a kind of text; `examples` has the first of each.
        by_role: tokens by whose they are.
    """

    read: int = 0
    whole: int = 0
    pieces: int = 0
    kept: int = 0
    truncated: int = 0
    prompt_not_prefix: int = 0
    tokens: int = 0
    trained: int = 0
    earliest: int | None = None
    left_out: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    by_role: Counter[str] = field(default_factory=Counter)

    def add(self, other: Counts) -> None:
        """Add what became of the rows that follow."""
        for name in ("read", "whole", "pieces", "kept", "truncated", "prompt_not_prefix", "tokens", "trained"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.earliest = min((one for one in (self.earliest, other.earliest) if one is not None), default=None)
        self.left_out.update(other.left_out)
        self.by_role.update(other.by_role)
        self.examples = other.examples | self.examples

    def lacks(self, found: Mapping[str, str]) -> None:
        """Count the kinds of text that a row lacks, each with an example."""
        self.left_out.update(found.keys())
        self.examples = {**found, **self.examples}

    def to_json(self) -> str:
        """Return the counts as text."""
        return json.dumps(vars(self))

    @classmethod
    def from_json(cls, text: str) -> Counts:
        """Return the counts that `to_json` wrote."""
        values = json.loads(text)
        return cls(**{**values, **{name: Counter(values[name]) for name in ("left_out", "by_role")}})

    def report(self, name: str, notes: Sequence[str], nulls: Sequence[str] = ()) -> PrepareReport:
        """Return the report of these rows.

        Args:
            name: what the data are called.
            notes: lines that come first.
            nulls: lines on keys without value.
        """
        return PrepareReport(
            name=name,
            rows_in=self.read,
            rows_out=self.kept,
            dropped_no_trained_token=self.read - self.whole + self.pieces - self.kept,
            truncated=self.truncated,
            added_by_split=self.pieces - self.whole,
            prompt_not_prefix=self.prompt_not_prefix,
            tokens=self.tokens,
            trained_tokens=self.trained,
            notes=(*notes, *nulls, *left_out(self.left_out, self.examples), *by_role(self.by_role)),
            left_out=dict(self.left_out),
        )


def dropped_nulls(dataset: Dataset) -> tuple[str, ...]:
    """Return a line on columns without the keys that were null in them."""
    columns = [name for name, feature in dataset.features.items() if getattr(feature, "nulls_dropped", False)]
    if not columns:
        return ()
    return (
        f"keys that are null are left out of {' and '.join(map(repr, columns))}: in tables they cannot be told from "
        "keys that a row does not have; give JSONL to keep them",
    )


def left_out(counts: Mapping[str, int], examples: Mapping[str, str], so: str = UNTRAINED) -> tuple[str, ...]:
    """Return a line on each kind of text that rows lack, with an example.

    Args:
        counts: how many rows lack which kind.
        examples: the first of each.
        so: what becomes of it.
    """
    return tuple(_line(what, count, examples[what], so) for what, count in counts.items())


def _line(what: str, count: int, example: str, so: str) -> str:
    rows = f"{count:,} row{'s' if count > 1 else ''}"
    if what == NO_END:
        return (
            f"{rows} whose answer ends without an end token ({example}): the model would not learn to stop; "
            "use a chat template that writes one (chat_template_path=your.jinja)"
        )
    if what == OTHER_END:
        return (
            f"{rows} whose answer ends with another token than the tokenizer's end token ({example}): sampling "
            "stops there only if the model's generation configuration names it; set eos_token to it"
        )
    if what == UNMARKED:
        return (
            f"{rows} with an answer that the chat template does not mark as the assistant's ({example}): it is not "
            "trained; put {% generation %}...{% endgeneration %} round every answer"
        )
    if what == "chat_template_kwargs":
        return f"{rows} with chat_template_kwargs that the chat template does not read ({example})"
    return (
        f"{rows} of which the chat template leaves out the {what} ({example}): {so}; "
        "use a template that writes it (chat_template_path=your.jinja)"
    )


def by_role(counts: Counter[str]) -> tuple[str, ...]:
    """Return a line on whose tokens are trained where all are; none where the rows say nothing of it.

    Args:
        counts: how many tokens are whose, see `tokens_by_role`.
    """
    others = {role: count for role, count in counts.items() if role not in ("assistant", TEMPLATE) and count}
    if not others:
        return ()
    total, told = counts.total(), ", ".join(f"{role} {count:,}" for role, count in others.items())
    return (
        f"all messages are trained: of {total:,} tokens {counts['assistant']:,} are the assistant's ({told}, template "
        f"{counts[TEMPLATE]:,}), so the model also learns to write prompts; set assistant_only_loss=True, or give "
        "prompt and completion, to train on answers alone",
    )
