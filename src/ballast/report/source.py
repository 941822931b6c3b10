"""What a report is made from: a comparison, or single runs of `ballast train`, under one summary."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ballast.compare.results import against_base
from ballast.compare.run import load_plan
from ballast.compare.summary import BASE_ROW, summarise, tabulate
from ballast.errors import BallastError
from ballast.records.folder import BASE, BEFORE, CELLS, PLAN, RL, TOKENS, TUNING, Store
from ballast.records.read import read
from ballast.records.runs import Measured, Run, base_run, is_run, read_comparison, read_runs
from ballast.records.schema import CellRecord, PlanRecord, RunRecord, Values
from ballast.records.summary import Difference, Row, SeedsSummary, Summary
from ballast.records.tokens import TokensRecord
from ballast.records.write import RUN

OWN_TO_A_RUN = ("output", "seed", "compare")
"""Sections in which the seeds of one setting differ."""


@dataclass(frozen=True)
class Source:
    """Everything that a report is a view of.

    Attributes:
        folders: where it was read.
        summary: what ``docs/compare.md`` describes.
        runs: every run with its log; unfinished and failed ones too.
        base: the measurements of the model that all runs start from, None where it was not measured.
        plan: of a comparison, None for single runs.
        tokens: record of `ballast inspect`, where there is one.
    """

    folders: tuple[Path, ...]
    summary: Summary = field(repr=False)
    runs: tuple[Run, ...]
    base: Measured | None = field(repr=False, default=None)
    plan: PlanRecord | None = field(repr=False, default=None)
    tokens: TokensRecord | None = field(repr=False, default=None)

    def reported(self, stage: str) -> list[Run]:
        """Return the runs of a stage that the summary's figures are of; of single runs, also unfinished ones."""
        order = {row.label: place for place, row in enumerate(self.summary.rows)}
        runs = sorted(
            (run for run in self.runs if run.stage == stage), key=lambda run: order.get(run.label, len(order))
        )
        if self.plan is None:
            return runs
        listed = {path for row in self.summary.rows for one in row.stages.values() for path in one.runs}
        return [run for run in runs if run.path in listed]

    def against_base(self, stage: str, task: str, metric: str) -> dict[str, Difference]:
        """Return every method's difference to the base model at a stage, after RL to RL from the base model."""
        return against_base(self.summary, self.reported(stage), stage, task, metric)


def load(folders: Sequence[Path]) -> Source:
    """Read a comparison, or one or several runs; a folder of runs, such as the quickstart's, stands for its runs.

    Raises:
        BallastError: there is nothing to report on, or a record cannot be used; the file is named.
    """
    folders = tuple(folders)
    for place, folder in enumerate(folders):
        if not folder.is_dir():
            what = "is a file; name the folder it is in" if folder.exists() else "no such folder"
            raise BallastError(f"{folder}: {what}")
        if folder.resolve() in {other.resolve() for other in folders[:place]}:
            raise BallastError(f"{folder}: is named twice, so its run would count twice; name it once")
    compared = [folder for folder in folders if (folder / PLAN).is_file()]
    if compared and len(folders) > 1:
        raise BallastError(
            f"{compared[0]}: is a comparison, with a base, seeds and items of its own, and cannot share a table with "
            "other folders; make a report of it alone"
        )
    return _comparison(compared[0]) if compared else _single_runs(folders)


def _comparison(folder: Path) -> Source:
    store = Store(folder)
    plan = read(store.plan, PlanRecord)
    base, runs = _split(read_comparison(store))
    summary = read(store.summary, Summary) if store.summary.is_file() else None
    if summary is None or not _covers(summary, runs):
        summary = summarise(load_plan(folder), [*base, *runs])
    return Source((folder,), summary, runs, base[0].result if base else None, plan, _tokens(folder))


def _split(runs: Iterable[Run]) -> tuple[tuple[Run, ...], tuple[Run, ...]]:
    """Return the base model, where it was measured, and the runs of training."""
    runs = tuple(runs)
    return tuple(run for run in runs if run.is_base), tuple(run for run in runs if not run.is_base)


def _covers(summary: Summary, runs: Sequence[Run]) -> bool:
    """Whether the summary is of the runs in the folder: some may have been copied in or taken away since.

    Without any it is all that is left.
    """
    known = {path for row in summary.rows for stage in row.stages.values() for path in stage.runs}
    known |= {
        f"{CELLS}/{CellRecord(label=row.label, rate=point.rate, seed=seed, role=TUNING).name}"
        for row in summary.rows
        for point in row.tuning
        for seed in point.seeds
    }
    known |= {f"{CELLS}/{cell.name}" for row in summary.rows for cell in _short_cells(summary, row)}
    return not runs or {run.path for run in runs if run.done} == known - {BASE}


def _short_cells(summary: Summary, row: Row) -> list[CellRecord]:
    """Return the runs of a row in the rungs of a halving, as far as they have a score."""
    seed = summary.seeds.tuning[:1]
    return [
        CellRecord(label=row.label, rate=point.rate, seed=first, role=TUNING, steps=point.steps)
        for point in row.rungs
        for first in seed
        if point.score is not None
    ]


def _single_runs(folders: tuple[Path, ...]) -> Source:
    paths = [path for folder in folders for path in _run_folders(folder)]
    runs = _labelled([run for path in paths for run in read_runs(path)])
    base = next((base_run(run.measured[BASE], run.record, run.folder) for run in runs if BASE in run.measured), None)
    tokens = next((record for folder in folders if (record := _tokens(folder)) is not None), None)
    summary = _summary(runs, [] if base is None else [base])
    return Source(folders, summary, tuple(runs), None if base is None else base.result, None, tokens)


def _run_folders(folder: Path) -> list[Path]:
    """Return the folder itself if it holds a run, else the runs one level below it, the earlier first."""
    if is_run(folder):
        return [folder]
    inside = [path for path in folder.glob("*/") if is_run(path)]
    if not inside:
        raise BallastError(
            f"{folder}: holds no records of runs ({PLAN}, {RUN}, or folders with {RUN}), so there is nothing to report "
            "on; name the output of `ballast compare` or `ballast train`"
        )
    return sorted(inside, key=lambda path: (read(path / RUN, RunRecord).started, path.name))


def _tokens(folder: Path) -> TokensRecord | None:
    path = folder / TOKENS
    return read(path, TokensRecord) if path.is_file() else None


def _labelled(runs: Sequence[Run]) -> list[Run]:
    """Return the runs under labels that differ: the objective's name, or the folder's where several settings share it.

    Runs that differ in their seed alone keep one label: they are seeds of one setting.

    Raises:
        BallastError: two runs of one setting have the same seed too.
    """
    settings: dict[str, set[str]] = {}
    for run in runs:
        settings.setdefault(run.label, set()).add(_setting(run))
    labelled = [run if len(settings[run.label]) == 1 else replace(run, label=_folder_label(run)) for run in runs]
    seen: dict[tuple[str, int, str], Run] = {}
    for run in labelled:
        other = seen.setdefault((run.label, run.seed, run.stage), run)
        if other is not run:
            raise BallastError(
                f"{run.folder}: is the same setting with the same seed as {other.folder}, which would count as two "
                "seeds; name one of them"
            )
    return labelled


def _folder_label(run: Run) -> str:
    return run.folder.name if run.stage == BEFORE or run.folder.name != RL else run.folder.parent.name


def _setting(run: Run) -> str:
    recipe: Values = {key: value for key, value in run.record.recipe.items() if key not in OWN_TO_A_RUN}
    # Only some runs measure the base model, and samples have a seed of their own for every run.
    evaluation = recipe.pop("evaluation", None)
    tasks = evaluation.get("tasks") if isinstance(evaluation, dict) else None
    plain = [_of_measuring(task) for task in tasks if isinstance(task, dict)] if isinstance(tasks, list) else []
    return json.dumps([recipe, plain, run.stage], sort_keys=True)


def _of_measuring(settings: Mapping[str, object]) -> dict[str, object]:
    """Return the settings of a task but for its seed and what it is called."""
    return {key: value for key, value in settings.items() if key not in ("seed", "title")}


def _summary(runs: Sequence[Run], base: Sequence[Run]) -> Summary:
    """Return a summary of single runs; differences are to ``sft``, else to the first label.

    Raises:
        BallastError: a task was measured with other settings, or on other items, in one run than in another.
    """
    done = [run for run in runs if run.done]
    _check_settings([*base, *done])
    by_label: dict[str, list[Run]] = {}
    for run in runs:
        by_label.setdefault(run.label, []).append(run)
    measured = [run.result for run in (*base, *runs) if run.result is not None]
    return tabulate(
        [BASE_ROW, *(_row(label, own) for label, own in by_label.items())],
        sorted((*base, *done), key=lambda run: run.seed),
        baseline=next((run.label for run in runs if (run.record.objective or {}).get("name") == "sft"), runs[0].label),
        tasks=list(dict.fromkeys(name for one in measured for name in one.tasks)),
        seeds=SeedsSummary(report=tuple(sorted({run.seed for run in runs})), tuning=()),
        missing=[run.folder.name for run in runs if not run.done],
    )


def _row(label: str, runs: Sequence[Run]) -> Row:
    resolved = (run.record.objective for run in runs if run.done)
    objective: Values = next((one for one in resolved if one), {"name": label})
    return Row(label=label, kind="method", objective=objective, rate=runs[0].rate, edge=None, tuning=(), stages={})


def _check_settings(runs: Sequence[Run]) -> None:
    """Refuse to put figures of different tasks into one column because the tasks share a name."""
    first: dict[str, tuple[Run, dict[str, object]]] = {}
    for run in runs:
        for name, task in (run.result.tasks if run.result is not None else {}).items():
            settings = _of_measuring(task.settings)
            other, its_settings = first.setdefault(name, (run, settings))
            if settings != its_settings:
                raise BallastError(
                    f"{run.folder}: task {name!r} was measured with other settings than in {other.folder}, so the "
                    "figures answer different questions; measure them alike with `ballast evaluate`"
                )
