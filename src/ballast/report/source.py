"""What a report is made from: a comparison, or runs of `ballast train`, under one summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ballast.compare.plan import BASE, TUNING, Cell, Plan
from ballast.compare.summary import summarise
from ballast.config.recipe import Recipe
from ballast.errors import BallastError
from ballast.records import folder as store
from ballast.records.old_reading import REMEDY, read_object
from ballast.records.old_reading import field as at
from ballast.records.runs import read_runs as read_results
from ballast.report import loose
from ballast.report.runs import FINISHED, Measured, Run, check_estimate, is_run, read_measured, read_runs

TOKENS = "tokens.json"
"""Record of `ballast inspect`, shown in the report of the folder that it lies in."""


@dataclass(frozen=True)
class Source:
    """Everything that a report is a view of.

    Attributes:
        folders: where it was read.
        summary: what ``docs/compare.md`` describes.
        runs: every run with its curves; unfinished and failed ones too.
        start: the measurements of the model that all runs start from, None where nobody made them.
        plan: ``compare.json`` of a comparison, None for runs on their own.
        tokens: record of `ballast inspect`, where there is one.
    """

    folders: tuple[Path, ...]
    summary: Mapping[str, Any] = field(repr=False)
    runs: tuple[Run, ...]
    start: Measured | None = field(repr=False, default=None)
    plan: Mapping[str, Any] | None = field(repr=False, default=None)
    tokens: Mapping[str, Any] | None = field(repr=False, default=None)

    def reported(self, stage: str) -> list[Run]:
        """Return the runs of a stage that the summary's figures are of; of runs on their own, also unfinished ones."""
        order = {row["label"]: place for place, row in enumerate(self.summary["rows"])}
        runs = sorted(
            (run for run in self.runs if run.stage == stage), key=lambda run: order.get(run.label, len(order))
        )
        if self.plan is None:
            return runs
        listed = {path for row in self.summary["rows"] for found in row["stages"].values() for path in found["runs"]}
        return [run for run in runs if run.folder.relative_to(self.folders[0]).as_posix() in listed]


def load(folders: Sequence[Path]) -> Source:
    """Read a comparison, or one or several runs; a folder of runs, such as the quickstart's, stands for its runs.

    Raises:
        BallastError: there is nothing to report on, or a record cannot be used; the file is named.
    """
    folders = tuple(folders)
    for place, folder in enumerate(folders):
        if not folder.is_dir():
            what = "is a file; name the folder it lies in" if folder.exists() else "no such folder"
            raise BallastError(f"{folder}: {what}")
        if folder.resolve() in {other.resolve() for other in folders[:place]}:
            raise BallastError(f"{folder}: is named twice, so its run would count twice; name it once")
    compared = [folder for folder in folders if (folder / store.PLAN).is_file()]
    if compared and len(folders) > 1:
        raise BallastError(
            f"{compared[0]}: is a comparison, with a base, seeds and items of its own, and cannot share a table with "
            "other folders; make a report of it alone"
        )
    return _comparison(compared[0]) if compared else _runs(folders)


def _comparison(folder: Path) -> Source:
    place = store.Store(folder)
    plan = read_object(place.plan)
    at(plan, str(place.plan), "recipe", dict)
    cells = sorted(path for path in (folder / store.CELLS).glob("*/") if is_run(path))
    starts = sorted(path for path in (place.base / store.RL).glob("*/") if is_run(path))
    runs = [run for cell in cells for run in read_runs(cell)]
    runs += [run for cell in starts for run in read_runs(cell)]
    summary = read_object(place.summary) if place.summary.is_file() else None
    if summary is not None:
        check_summary(summary, str(place.summary))
    if summary is None or not _covers(summary, runs, folder):
        summary = summarise(_matrix(plan, place.plan), *read_results(place))
    measured = read_measured(place.base)
    return Source((folder,), summary, tuple(runs), measured.get(BASE), plan, _tokens(folder))


def _matrix(plan: Mapping[str, Any], path: Path) -> Plan:
    try:
        return Plan(Recipe.model_validate(plan["recipe"]))
    except ValueError as error:
        first = " ".join(str(error).split())
        raise BallastError(f"{path}: its recipe cannot be read ({first}); {REMEDY}") from error


def _covers(summary: Mapping[str, Any], runs: Sequence[Run], folder: Path) -> bool:
    """Whether the summary is of the runs that lie here: some may have been copied in or taken away since.

    Without any it is all that was kept.
    """
    known = {path for row in summary["rows"] for stage in row["stages"].values() for path in stage["runs"]}
    known |= {
        f"{store.CELLS}/{Cell(row['label'], tried['rate'], seed, TUNING).name}"
        for row in summary["rows"]
        for tried in row["tuning"]
        for seed in tried["seeds"]
    }
    done = {run.folder.relative_to(folder).as_posix() for run in runs if run.status == FINISHED}
    return not runs or done == known - {store.BASE}


def _runs(folders: tuple[Path, ...]) -> Source:
    found = [path for folder in folders for path in _run_folders(folder)]
    runs = loose.labelled([run for path in found for run in read_runs(path)])
    start = next((run.measured[BASE] for run in runs if BASE in run.measured), None)
    tokens = next((record for folder in folders if (record := _tokens(folder)) is not None), None)
    return Source(folders, loose.summary(runs, start), tuple(runs), start, None, tokens)


def _run_folders(folder: Path) -> list[Path]:
    """Return the folder itself if it holds a run, else the runs one level below it, the earlier first."""
    if is_run(folder):
        return [folder]
    inside = [path for path in folder.glob("*/") if is_run(path)]
    if not inside:
        raise BallastError(
            f"{folder}: holds no records of runs ({store.PLAN}, run.json, or folders with run.json), so there is "
            "nothing to report on; name the output of `ballast compare` or `ballast train`"
        )
    return sorted(inside, key=lambda path: (str(read_object(path / "run.json").get("started", "")), path.name))


def _tokens(folder: Path) -> dict[str, Any] | None:
    from ballast.report.tokens import check_record

    path = folder / TOKENS
    if not path.is_file():
        return None
    record = read_object(path)
    check_record(record, str(path))
    return record


def check_summary(summary: Mapping[str, Any], where: str) -> None:
    """Refuse a summary whose shape or figures a table cannot show.

    Raises:
        BallastError: naming the row and the figure.
    """
    for key, kind in (("rows", list), ("tasks", list), ("missing", list), ("seeds", dict), ("baseline", str)):
        at(summary, where, key, kind)
    for row in summary["rows"]:
        if not isinstance(row, dict):
            raise BallastError(f"{where}: a row that is no mapping; {REMEDY}")
        label = at(row, where, "label", str)
        for tried in at(row, f"{where}: {label}", "tuning", list):
            at(tried, f"{where}: {label}: tuning", "seeds", list)
        for stage, found in at(row, where, "stages", dict).items():
            at(found, f"{where}: {label}", "runs", list)
            for task, metrics in at(found, f"{where}: {label}", "tasks", dict).items():
                for metric, result in metrics.items():
                    _check_result(result, f"{where}: {label}: {stage}: {task}: {metric}")


def _check_result(result: Any, where: str) -> None:
    if not isinstance(result, dict):
        raise BallastError(f"{where} is {result!r}; {REMEDY}")
    differences = [result[key] for key in ("to_baseline", "to_start", "gain") if result.get(key) is not None]
    for holder in (result, *differences):
        for key in ("over_seeds", "over_items", "over_both"):
            if holder.get(key) is not None:
                check_estimate(holder[key], f"{where}: {key}")
