"""The rows that are revised, and their drafts where these are there already."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ballast.config.recipe import Recipe
from ballast.data.render import prompt_columns
from ballast.errors import BallastError
from ballast.pipeline import sources
from ballast.protocols import Tokenizer
from ballast.revise.options import ReviseOptions
from ballast.revise.templates import Templates, asking, question

Row = Mapping[str, Any]


def read_rows(recipe: Recipe, options: ReviseOptions) -> list[Row]:
    """Return the rows to revise, each of which can be."""
    from ballast.data.exact import as_stored
    from ballast.data.messages import messages_problem

    rows = list(as_stored(sources.load_train(recipe.data).with_format(None)))
    where = f"data.train ({', '.join(recipe.data.train)})"
    wanted = options.draft == "completion" or options.hint == "completion"
    for number, row in enumerate(rows, start=1):
        prompt, problem = row.get("prompt"), None
        if not isinstance(prompt, str | list) or not prompt:
            problem = f"no 'prompt' (columns: {', '.join(row)}); rename one with data.columns"
        elif isinstance(prompt, list):
            problem = messages_problem(prompt, "prompt")
        if problem is None and wanted and not row.get("completion"):
            asks = "revise.hint" if options.hint == "completion" else "revise.draft"
            problem = f"no completion, which {asks}: completion reads; fill it in, or set {asks} otherwise"
        if problem is not None:
            raise BallastError(f"{where}: row {number}: {problem}")
    return rows


def given_drafts(rows: Sequence[Row], options: ReviseOptions) -> list[str] | None:
    """Return the drafts that come with the rows or from elsewhere; None where the model writes them."""
    from ballast.data.messages import last_text

    if options.draft == "own":
        return None
    if options.draft == "completion":
        return [last_text(row["completion"]) for row in rows]
    found = _answers(options.draft)
    drafts = [found.get(_key(row)) for row in rows]
    if None in drafts:
        raise BallastError(
            f"revise.draft: {options.draft} has no answer to the prompt of row {drafts.index(None) + 1}; it must have "
            "one for each row of data.train"
        )
    return [str(one) for one in drafts]


def _answers(source: str) -> dict[str, str]:
    """Return the answers of a folder of groups, the first own one of each prompt, or of rows, by prompt."""
    from ballast.data.messages import last_text
    from ballast.groups.store import GroupFolder, is_sampled, read_settings

    found: dict[str, str] = {}
    if is_sampled(source):
        for part in GroupFolder(source, read_settings(source)).read():
            for group, prompt in zip(part.groups, part.prompts, strict=True):
                own = [member.text for member in group.members if member.origin == "own"]
                found.update({_key({"prompt": prompt}): text for text in own[:1]})
        return found
    for number, row in enumerate(sources.load(source), start=1):
        if not row.get("prompt") or row.get("completion") is None:
            raise BallastError(f"revise.draft: {source}: row {number}: a draft has 'prompt' and 'completion'")
        text = last_text(row["completion"])
        if found.setdefault(_key(row), text) != text:
            raise BallastError(
                f"revise.draft: {source}: row {number}: a second answer to its prompt, one would be lost; keep one"
            )
    return found


def _key(row: Row) -> str:
    return json.dumps(prompt_columns(row)["prompt"], sort_keys=True)


def drafting(row: Row, templates: Templates) -> Row:
    """Return the row that asks for a draft."""
    return asking(row, templates.fill("draft", prompt=question(row)))


def check_room(recipe: Recipe, rows: Sequence[Row], templates: Templates, tokenizer: Tokenizer, config: Any) -> None:
    """Refuse prompts that leave no room for a draft.

    Raises:
        BallastError: naming the first row.
    """
    from ballast.evaluation import generation
    from ballast.limits import positions

    assert recipe.revise is not None
    try:
        sizes = [len(ids) for ids in generation.encode_rows(tokenizer, [drafting(row, templates) for row in rows])]
        generation.check_room(sizes, recipe.revise.max_new_tokens, positions(config), option="revise.max_new_tokens")
    except BallastError as error:
        raise BallastError(f"data.train ({', '.join(recipe.data.train)}): {error}") from error
