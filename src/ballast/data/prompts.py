"""What a chat template leaves out of prompts: of rows that are answered, as `tokenise` has it for those trained on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ballast.data import report
from ballast.data.audit import audit
from ballast.data.messages import flat
from ballast.data.render import Row, render_prompt, template_options
from ballast.protocols import Tokenizer

UNREAD = "the model answers without having read it"


def left_out_of_prompts(
    rows: Sequence[Row], tokenizer: Tokenizer, numbers: Sequence[int] | None = None
) -> tuple[str, ...]:
    """Return a line on each kind of text that the tokenizer's chat template leaves out, with the first example.

    Args:
        rows: with ``prompt``; plain text has no template.
        numbers: what the rows are called; None counts them from 1.

    Raises:
        BallastError: a prompt cannot be written.
    """
    counts = report.Counts()
    for found in _left_out(rows, tokenizer, numbers or range(1, len(rows) + 1)):
        counts.lacks(found)
    return report.left_out(counts.left_out, counts.examples, UNREAD)


def _left_out(rows: Sequence[Row], tokenizer: Tokenizer, numbers: Sequence[int]) -> Iterator[dict[str, str]]:
    template = str(getattr(tokenizer, "chat_template", ""))
    for number, row in zip(numbers, rows, strict=True):
        if isinstance(row["prompt"], str):
            continue
        found = audit(
            messages := flat(row["prompt"]),
            render_prompt(row, tokenizer).text,
            tools=template_options(row)["tools"],
            options=row.get("chat_template_kwargs"),
            template=template,
            trained_from=len(messages),
        )
        yield {what: f"row {number}: {text}" for what, text in found.left_out.items()}
