"""Groups of revised rows: a draft against the answer that it was revised to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ballast.data.render import prompt_columns
from ballast.evaluation.generation import encode_rows
from ballast.groups.members import Group, Member
from ballast.groups.tokenised import tokenise
from ballast.reference.fingerprint import tokenizer_fingerprint
from ballast.revise.rows import as_completion, read_kept, read_settings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def read_revised(path: str | Path, tokenizer: PreTrainedTokenizerBase, *, better: str = "teacher") -> list[Group]:
    """Return the groups of a folder of `ballast revise`: a prompt's draft, then its revised answer.

    A draft that the model sampled keeps its ids where the tokenizer is the one it was sampled with; it is the
    ``expert``'s where the row's completion was revised. Everything else is tokenised as a demonstration is.

    Args:
        better: origin of the revised answers.

    Raises:
        BallastError: naming what is missing or damaged.
    """
    rows = read_kept(path)
    flat = [
        {**prompt_columns(row), "response": answer}
        for row in rows
        for answer in (as_completion(row["prompt"], row["draft"]), row["completion"])
    ]
    tokenised = iter(tokenise(flat, tokenizer, path))
    same = read_settings(path)["tokenizer"] == tokenizer_fingerprint(tokenizer)
    prompts = encode_rows(tokenizer, rows)
    found = []
    for row, prompt in zip(rows, prompts, strict=True):
        draft, answer = row["versions"][0], row["versions"][row["answer_version"]]
        (ids, start), (better_ids, better_start) = next(tokenised), next(tokenised)
        if same and row["draft_ids"]:
            ids, start = (*prompt, *row["draft_ids"]), len(prompt)
        origin = "expert" if row["origin"] == "completion" else "own"
        members = (
            Member(ids, start, origin, draft["reward"], draft["text"], draft["ended"]),
            Member(better_ids, better_start, better, answer["reward"], answer["text"], answer["ended"]),
        )
        found.append(Group(row["row"], members))
    return found
