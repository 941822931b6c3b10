"""`ballast revise`: every prompt's draft and its revisions, once, into a folder that training reads."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ballast import models
from ballast.config import training as settings
from ballast.config.recipe import ModelSection, Recipe
from ballast.engines.options import TransformersEngine
from ballast.errors import BallastError
from ballast.pipeline import engines, sources
from ballast.pipeline.drafts import check_room, drafting, given_drafts, read_rows
from ballast.pipeline.engines import Opened
from ballast.pipeline.inputs import silent
from ballast.pipeline.pairs import write_pairs
from ballast.progress import on_stderr
from ballast.protocols import Model, Say, Tokenizer
from ballast.ranks import join
from ballast.records.write import disk_full_as_error
from ballast.revise.options import ReviseOptions
from ballast.revise.summary import lines, summary
from ballast.revise.templates import Templates, load_templates

if TYPE_CHECKING:
    from ballast.evaluation.generation import Sampler
    from ballast.evaluation.revising import Judging, Writer
    from ballast.revise.loop import Revised, Version
    from ballast.revise.rows import RevisionFolder, Settings
    from ballast.training import TrainingConfig
    from ballast.verifiers.registry import Verifier

Row = Mapping[str, Any]


@sources.read_once()
def run_revise(recipe: Recipe, *, say: Say = print) -> dict[str, Any]:
    """Revise the draft of every prompt into ``revise.file``, and return what is in it; or write ``revise.pairs``.

    A run that was stopped goes on with the parts that are missing. Ranks that a launcher started share the parts; the
    first returns what is in the folder, the others nothing.

    Raises:
        BallastError: the input cannot be used, the folder holds something else, or a reviser says no label.
    """
    options = recipe.revise
    if options is None:
        raise BallastError("revise: is required and missing")
    ranks = join()
    say = say if ranks.main else silent
    if options.pairs is not None:
        return write_pairs(recipe, options, say) if ranks.main else {}
    from ballast.revise.rows import RevisionFolder, stored_engine

    assert options.file is not None
    started = time.monotonic()
    work = _ready(recipe, options, say)
    there = ranks.first(lambda: stored_engine(str(options.file), len(work.rows)))
    with _asked(work, there) as engine:
        folder = RevisionFolder(options.file, ranks.first(lambda: work.settings(engine.identity)))
        with disk_full_as_error(folder.path), folder.filling(ranks) as missing:
            _fill(folder, missing, replace(work, sampler=engine.generate))
            ranks.gather(None)
            if not ranks.main:
                return {}
        if told := engines.line(engine.record()):
            say(told)
    with disk_full_as_error(folder.path), folder.filling():
        parts = list(folder.read())
    found = summary([row for rows, _ in parts for row in rows], [counts for _, counts in parts])
    found["seconds"] = round(time.monotonic() - started, 3)
    for line in lines(options.file, found):
        say(line)
    return found


@dataclass(frozen=True)
class _Work:
    """Everything that revising takes."""

    recipe: Recipe
    options: ReviseOptions
    args: TrainingConfig
    rows: Sequence[Row]
    drafts: Sequence[str] | None
    templates: Templates
    verify: Verifier | None
    model: tuple[Model, Tokenizer] | None
    reviser: tuple[Model, Tokenizer] | None
    sampler: Sampler | None = None

    def settings(self, engine: str) -> Settings:
        """Return what the rows depend on."""
        from ballast.evaluation.generation import end_ids
        from ballast.groups.store import data_digest
        from ballast.reference import CacheKey
        from ballast.revise.rows import Settings, stored_options
        from ballast.training.config import autocast_dtype

        keys = [one and CacheKey.of(*one, autocast=autocast_dtype(self.args)) for one in (self.model, self.reviser)]
        given = "" if self.drafts is None else data_digest({"draft": draft} for draft in self.drafts)
        return Settings(
            model=keys[0].model if keys[0] else "",
            reviser=f"{keys[1].model} {keys[1].tokenizer}" if keys[1] else "",
            dtype=next(key.dtype for key in keys if key),
            tokenizer=keys[0].tokenizer if keys[0] else "",
            ends=tuple(sorted(end_ids(*self.model))) if self.model else (),
            data=data_digest(self.rows),
            drafts=given or self.options.draft,
            rows=len(self.rows),
            seed=self.recipe.seed,
            templates=self.templates.texts,
            options=stored_options(self.options),
            engine=engine,
        )

    def writer(self, model: tuple[Model, Tokenizer] | None, temperature: float) -> Writer:
        """Return the model as the loop asks it."""
        from ballast.evaluation.generation import GenerationOptions
        from ballast.evaluation.revising import Writer

        assert model is not None
        options = self.options
        return Writer(
            *model,
            GenerationOptions(
                max_new_tokens=options.max_new_tokens,
                temperature=temperature,
                top_p=options.top_p,
                seed=self.recipe.seed,
                batch_tokens=options.batch_tokens,
            ),
            generate=self.sampler,
        )

    def revised(self, places: Sequence[int], judging: Judging) -> list[Revised]:
        """Return what becomes of some rows."""
        from ballast.revise.loop import revise

        options, rows = self.options, [self.rows[place] for place in places]
        write = (
            self.writer(self.reviser or self.model, options.heat(options.temperature))
            if options.rounds
            else _write_nothing
        )
        drafts = self._drafts(places)
        return revise(rows, drafts, options, self.templates, write=write, judge=judging, places=places)

    def _drafts(self, places: Sequence[int]) -> list[Version]:
        from ballast.revise.loop import Version, sampled

        if self.drafts is not None:
            return [Version(self.drafts[place]) for place in places]
        write = self.writer(self.model, self.options.temperature)
        written = write([(place, drafting(self.rows[place], self.templates)) for place in places], 0)
        return [sampled(one) for one in written if one is not None]


@contextmanager
def _asked(work: _Work, there: str | None) -> Iterator[Opened]:
    """Give what samples, the recipe's engine where the model itself writes."""
    section = None if work.recipe.model is None else models.resolve(work.recipe.model)
    # A reviser is asked by our own loop, which needs no model of its own.
    options, model = (TransformersEngine(), work.reviser) if work.model is None else (work.recipe.engine, work.model)
    assert model is not None
    with engines.filling(options, *model, section, there) as engine:
        yield engine


def _write_nothing(asked: Sequence[tuple[int, Row]], step: int) -> list[None]:
    raise AssertionError("nothing is revised in 0 rounds")


def _ready(recipe: Recipe, options: ReviseOptions, say: Say) -> _Work:
    """Read and check everything, the weights last."""
    from ballast.verifiers import registry
    from ballast.verifiers.options import judge

    assert recipe.model is not None
    section, args = models.resolve(recipe.model), settings.training_config(recipe)
    templates = load_templates(options, hinted=options.hint == "completion")
    rows = read_rows(recipe, options)
    drafts = given_drafts(rows, options)
    verify = None if options.verifier is None else judge(options, options.seconds)
    if verify is not None:
        try:
            registry.check_rows(verify, rows)
        except BallastError as error:
            raise BallastError(f"data.train ({', '.join(recipe.data.train)}): {error}") from error
    needed = drafts is None or (bool(options.rounds) and options.reviser is None)
    tokenizer = _tokenizer(section, recipe, args)
    if drafts is None:
        check_room(recipe, rows, templates, tokenizer, models.load_config(section))
    if options.how == "self-refine" and options.rounds and not options.asks_verifier:
        say(
            "revise: nothing but the model itself says what is wrong, which tends to lower the accuracy of reasoning; "
            "measure it with a task's `revise`, or name a verifier"
        )
    model = (models.load_model(section, device=args.device), tokenizer) if needed else None
    reviser = None
    if options.reviser is not None and options.rounds:
        other = models.resolve(models.section_of(options.reviser, section))
        reviser = models.load_model(other, device=args.device), _tokenizer(other, recipe, args)
    if model is None and reviser is None:
        raise BallastError(f"revise.rounds: 0 with draft: {options.draft} has nothing to write; raise it")
    return _Work(recipe, options, args, rows, drafts, templates, verify, model, reviser)


def _tokenizer(section: ModelSection, recipe: Recipe, args: TrainingConfig) -> Tokenizer:
    from ballast.data import PrepareOptions, trl

    tokenizer = models.load_tokenizer(section, recipe.training)
    return trl.training_tokenizer(tokenizer, PrepareOptions.from_training_args(args))


def _fill(folder: RevisionFolder, numbers: Sequence[int], work: _Work) -> None:
    """Revise parts."""
    from contextlib import nullcontext

    import torch

    from ballast.evaluation.revising import Judging
    from ballast.revise.rows import record
    from ballast.training.config import autocast_dtype

    missing = {part: folder.rows(part) for part in numbers}
    done, total, dtype = 0, sum(map(len, missing.values())), autocast_dtype(work.args)
    with on_stderr("prompts") as tell, nullcontext() if dtype is None else torch.autocast(work.args.device.type, dtype):
        for part, places in missing.items():
            judging = Judging(work.verify)
            revised = work.revised(places, judging)
            if part == 0:
                _check_labels(revised, work)
            found = zip(places, revised, strict=True)
            rows = [record(place, work.rows[place], one, work.options) for place, one in found]
            folder.write(part, rows, {"errors": judging.errors, "timeouts": judging.timeouts})
            done += len(places)
            tell("revising", done, total)


def _check_labels(revised: Sequence[Revised], work: _Work) -> None:
    """Refuse a reviser that says no label in the whole first part."""
    said = [one for one in revised if one.label is not None]
    if said and all(one.label == "unparsed" for one in said):
        who = work.options.reviser or "the model itself"
        raise BallastError(
            f"revise.reviser: {who} says none of the labels {', '.join(map(repr, work.templates.labels.values()))} in "
            f"its first {len(said)} replies, so every draft would be kept as it is; train one on rows of revise.pairs, "
            "with the same templates"
        )
