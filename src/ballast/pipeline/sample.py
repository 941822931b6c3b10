"""`ballast sample`: every prompt's group, once, by the model that training starts from."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from ballast import models
from ballast.config.recipe import Recipe
from ballast.errors import BallastError
from ballast.groups.options import GroupOptions, RowsOptions
from ballast.pipeline import engines, sources
from ballast.pipeline.inputs import Ready, ready, silent
from ballast.progress import on_stderr
from ballast.protocols import Model, Say
from ballast.ranks import join
from ballast.records.write import disk_full_as_error

if TYPE_CHECKING:
    from ballast.evaluation.generation import Sampler
    from ballast.groups import GroupRows, SampledGroups
    from ballast.groups.store import GroupFolder, Part, StoreSettings

COUNTS = ("cut_off", "errors", "timeouts")


@sources.read_once()
def run_sample(recipe: Recipe, *, say: Say = print) -> dict[str, Any]:
    """Sample and judge the group of every prompt into ``groups.file``, and return what is in it.

    A run that was stopped goes on with the parts that are missing. The recipe's ``rows`` says where the right own
    answers go as rows to train on. Ranks that a launcher started share the parts; the first returns what is in the
    folder, the others nothing.

    Raises:
        BallastError: the input cannot be used, or the folder holds something else.
    """
    from ballast.data import PrepareOptions
    from ballast.evaluation.generation import end_ids
    from ballast.groups import GroupRows
    from ballast.groups.store import GroupFolder, stored_engine
    from ballast.limits import context_length

    options = recipe.groups
    if options is None or len(options.file) != 1:
        raise BallastError("groups.file: name the folder to fill")
    started = time.monotonic()
    ranks = join()
    say = say if ranks.main else silent
    made = ready(_without_file(recipe), say)
    model = models.load_model(made.model, device=made.args.device)
    assert made.prompts is not None
    prepared = PrepareOptions.from_training_args(made.args, context=context_length(model))
    rows = GroupRows(made.prompts, made.tokenizer, options, prepared)
    rows.check_ends(end_ids(model, rows.tokenizer))
    for line in rows.lines():
        say(line)
    there = ranks.first(lambda: stored_engine(options.file[0], len(rows)))
    with engines.filling(recipe.engine, model, rows.tokenizer, made.model, there) as engine:
        settings = ranks.first(lambda: _settings(made, model, rows, options, engine.identity))
        folder = GroupFolder(options.file[0], settings)
        with disk_full_as_error(folder.path), folder.filling(ranks) as missing:
            seconds = _longest(ranks.gather(_fill(folder, missing, made, model, rows, engine.generate)))
            if not ranks.main:
                return {}
        if told := engines.line(engine.record()):
            say(told)
    with disk_full_as_error(folder.path), folder.filling():
        parts = list(folder.read())
        found = _summary(parts, rows) | _rows(recipe.rows, parts, rows, say)
    found |= {**seconds, "seconds": round(time.monotonic() - started, 3)}
    say(_line(options.file[0], found))
    return found


def _without_file(recipe: Recipe) -> Recipe:
    """Return the recipe of what is sampled: its prompts, not what a folder may hold already, nor held-out rows."""
    groups = (recipe.groups or GroupOptions()).changed({"file": ()})
    return recipe.model_copy(update={"groups": groups, "data": recipe.data.model_copy(update={"eval": ()})})


def _settings(made: Ready, model: Model, rows: GroupRows, options: GroupOptions, engine: str) -> StoreSettings:
    from ballast.evaluation.generation import end_ids
    from ballast.groups.store import StoreSettings, data_digest, stored_options
    from ballast.reference import CacheKey
    from ballast.training.config import autocast_dtype

    key = CacheKey.of(model, rows.tokenizer, autocast=autocast_dtype(made.args))
    return StoreSettings(
        model=key.model,
        dtype=key.dtype,
        tokenizer=key.tokenizer,
        ends=tuple(sorted(end_ids(model, rows.tokenizer))),
        data=data_digest(rows.rows),
        rows=len(rows),
        seed=made.recipe.seed,
        max_length=made.args.max_length,
        groups=stored_options(options),
        engine=engine,
    )


def _longest(seconds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return what ranks took that worked side by side."""
    return {name: max(one[name] for one in seconds) for name in seconds[0]}


def _fill(
    folder: GroupFolder, numbers: Sequence[int], made: Ready, model: Model, rows: GroupRows, sampler: Sampler | None
) -> dict[str, float]:
    """Sample parts; return the seconds that took."""
    from ballast.groups import sample_groups
    from ballast.groups.sampler import scored_groups
    from ballast.groups.store import Part

    seconds = {"sampling": 0.0, "scoring": 0.0}
    missing = {part: folder.rows(part) for part in numbers}
    done, total = 0, sum(map(len, missing.values()))
    with on_stderr("prompts") as tell, _autocast(made):
        for part, places in missing.items():
            sampled: SampledGroups = sample_groups(model, rows, places, seed=made.recipe.seed, step=0, sampler=sampler)
            sampled = scored_groups(model, sampled, batch_tokens=rows.options.batch_tokens)
            prompts = tuple(rows.rows[row]["prompt"] for row in places)
            folder.write(part, Part(sampled.groups, prompts, {name: getattr(sampled, name) for name in COUNTS}))
            seconds = {name: value + getattr(sampled, name) for name, value in seconds.items()}
            done += len(places)
            tell("sampling", done, total)
    return {name: round(value, 3) for name, value in seconds.items()}


def _autocast(made: Ready) -> Any:
    """Return the arithmetic that the trainer samples in."""
    import torch

    from ballast.training.config import autocast_dtype

    dtype = autocast_dtype(made.args)
    return nullcontext() if dtype is None else torch.autocast(made.args.device.type, dtype)


def _rows(options: RowsOptions | None, parts: Sequence[Part], rows: GroupRows, say: Say) -> dict[str, Any]:
    """Write the rows of rejection sampling, where they are wanted."""
    from ballast.groups.rows import rejection_rows, rows_problem, write_rows

    if options is None:
        return {}
    if problem := rows_problem(options):
        raise BallastError(f"rows.file: {problem}")
    found = rejection_rows(rows.rows, [group for part in parts for group in part.groups], options.most)
    write_rows(options.file, found.rows)
    say(
        f"{options.file}: {len(found.rows):,} rows, {found.own:,} of them right own answers, to {found.prompts:,} of "
        f"{len(rows):,} prompts"
    )
    return {"rows": len(found.rows), "rows_own": found.own, "rows_prompts": found.prompts}


def _summary(parts: list[Part], rows: GroupRows) -> dict[str, Any]:
    groups = [group for part in parts for group in part.groups]
    members = [member for group in groups for member in group.members]
    answers = Counter(member.origin for member in members)
    rewards: dict[str, list[float]] = {}
    for member in members:
        if member.reward is not None:
            rewards.setdefault(member.origin, []).append(member.reward)
    counts = {name: sum(part.counts.get(name, 0) for part in parts) for name in COUNTS}
    return {
        "prompts": len(groups),
        "answers": dict(answers),
        "reward": {origin: sum(found) / len(found) for origin, found in rewards.items()},
        "mixed": sum(len({member.reward for member in group.members}) > 1 for group in groups) / len(groups),
        "cut_off": counts["cut_off"],
        "verifier_errors": counts["errors"] + rows.errors,
        "verifier_timeouts": counts["timeouts"] + rows.timeouts,
    }


def _line(file: str, found: dict[str, Any]) -> str:
    reward = found["reward"]
    origins = ", ".join(
        f"{size:,} {origin} answers" + (f" (mean reward {reward[origin]:.3f})" if origin in reward else "")
        for origin, size in found["answers"].items()
    )
    mixed = f"{found['mixed']:.0%} of the groups have mixed rewards" if reward else "nobody judged them"
    return (
        f"{file}: {found['prompts']:,} prompts; {origins}; {mixed}; "
        f"{found['cut_off']:,} own answers cut off, {found['verifier_errors']:,} verifier errors, "
        f"{found['verifier_timeouts']:,} time-outs ({found['seconds']:.1f} s: sampling {found['sampling']:.1f}, "
        f"scoring {found['scoring']:.1f})"
    )
