"""`ballast revise` with ``revise.pairs``: rows to train a reviser on, of groups or of preferences."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ballast import models
from ballast.config.recipe import Recipe
from ballast.errors import BallastError
from ballast.files import write_atomically
from ballast.pipeline import sources
from ballast.protocols import Say
from ballast.revise.options import ReviseOptions
from ballast.revise.templates import Templates, load_templates

if TYPE_CHECKING:
    from ballast.revise.pairs import Pair

SUMMARY = ".summary.json"
"""Ends the name of the file that keeps what the labels were made of, beside the rows."""


def write_pairs(recipe: Recipe, options: ReviseOptions, say: Say) -> dict[str, Any]:
    """Write the rows to ``revise.pairs``, and beside them what they were made of; return that.

    Raises:
        BallastError: the answers cannot be used, or no pair of them teaches anything.
    """
    from ballast.revise import pairs as making

    templates, source, path = load_templates(options), _source(recipe), Path(str(options.pairs))
    found = read_pairs(recipe, options)
    given = found if options.label == "verifier" else making.worse_drafts(found)
    difficulties, thresholds = [], None
    if options.label == "difficulty" and given:
        from ballast.revise.labels import thirds

        difficulties = measure_difficulty(recipe, options, given, templates)
        thresholds = thirds(difficulties)
    made = making.labelled(given, options.label, difficulties=difficulties, thresholds=thresholds or (0.0, 0.0))
    if not made:
        raise BallastError(
            f"{source}: none of {len(found):,} pairs teaches anything: no answer is better than another to the same "
            "prompt, or right; sample more answers, or of harder prompts"
        )
    labels = Counter(label or "none" for label, _ in made)
    summary = {
        "source": source,
        "label": options.label,
        "rows": len(made),
        "labels": dict(labels),
        "pairs": len(found),
        "dropped": len(found) - len(given) if options.label != "verifier" else len(found) - len(made),
        "thresholds": thresholds,
        "templates": dict(templates.texts),
    }
    rows = [making.reviser_row(label, pair, templates) for label, pair in made]
    write_atomically(path.with_suffix(SUMMARY), json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    shares = ", ".join(f"{label} {count / len(rows):.0%}" for label, count in sorted(labels.items()))
    say(f"{path}: {len(rows):,} rows of {len(found):,} pairs, {summary['dropped']:,} left out; labels: {shares}")
    return summary


def _source(recipe: Recipe) -> str:
    groups = recipe.groups.file if recipe.groups else ()
    return f"groups.file ({', '.join(groups)})" if groups else f"data.train ({', '.join(recipe.data.train)})"


def read_pairs(recipe: Recipe, options: ReviseOptions) -> list[Pair]:
    """Return pairs of answers: of ``groups.file``, else of ``data.train`` with ``chosen`` and ``rejected``.

    Raises:
        BallastError: naming what is missing, with its row.
    """
    files = recipe.groups.file if recipe.groups else ()
    found = [pair for file in files for pair in _of_groups(file)]
    return found if files else _of_preferences(recipe, options)


def _of_groups(file: str) -> list[Pair]:
    from ballast.groups.store import GroupFolder, is_sampled, read_settings
    from ballast.revise.pairs import Answer, best_pairs

    if not is_sampled(file):
        raise BallastError(f"groups.file: {file}: pairs are made of a folder of `ballast sample`; name one")
    found: list[Pair] = []
    for part in GroupFolder(file, read_settings(file)).read():
        for group, prompt in zip(part.groups, part.prompts, strict=True):
            answers = [Answer(member.text, member.reward, member.ended) for member in group.members]
            found += best_pairs(prompt, answers)
    return found


def _of_preferences(recipe: Recipe, options: ReviseOptions) -> list[Pair]:
    from ballast.data.exact import as_stored
    from ballast.data.messages import last_text, messages_problem
    from ballast.revise.pairs import Answer, Pair
    from ballast.verifiers import registry
    from ballast.verifiers.options import judge

    where = f"data.train ({', '.join(recipe.data.train)})"
    rows = list(as_stored(sources.load_train(recipe.data).with_format(None)))
    for number, row in enumerate(rows, start=1):
        for name in ("prompt", "chosen", "rejected"):
            if not row.get(name):
                raise BallastError(
                    f"{where}: row {number}: no {name!r} (columns: {', '.join(row)}): pairs are made of prompt, chosen "
                    "and rejected, or of groups.file"
                )
            if not isinstance(row[name], str) and (problem := messages_problem(row[name], name)):
                raise BallastError(f"{where}: row {number}: {problem}")
    texts = [[last_text(row[name]) for row in rows] for name in ("rejected", "chosen")]
    scores: list[Sequence[float | None]] = [[None] * len(rows)] * 2
    if options.verifier is not None:
        verify = judge(options, options.seconds)
        registry.check_rows(verify, rows)
        scores = [registry.score_answers(verify, zip(some, rows, strict=True)).scores for some in texts]
    answers = [
        [Answer(text, score) for text, score in zip(some, given, strict=True)]
        for some, given in zip(texts, scores, strict=True)
    ]
    return [Pair(row["prompt"], draft, better) for row, draft, better in zip(rows, *answers, strict=True)]


def measure_difficulty(
    recipe: Recipe, options: ReviseOptions, pairs: Sequence[Pair], templates: Templates
) -> list[float]:
    """Return how much less likely than the draft ``revise.reviser`` finds each pair's better answer, nats per token."""
    from ballast.evaluation.likelihood import completion_sequences
    from ballast.evaluation.scoring import sequence_statistics
    from ballast.revise.pairs import asked
    from ballast.revise.rows import as_completion

    section = models.resolve(models.section_of(str(options.reviser), recipe.model))
    model = models.load_model(section, device=models.default_device())
    tokenizer = models.load_tokenizer(section, recipe.training)
    means = []
    for name in ("better", "draft"):
        rows: list[Mapping[str, Any]] = [
            {"prompt": asked(one, templates), "completion": as_completion(one.prompt, getattr(one, name).text)}
            for one in pairs
        ]
        values = sequence_statistics(
            model, completion_sequences(model, tokenizer, rows), batch_tokens=options.batch_tokens
        )
        means.append([-float(one["logprob"].mean(dtype="float64")) for one in values])
    return [better - draft for better, draft in zip(*means, strict=True)]
