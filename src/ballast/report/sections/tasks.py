"""What tasks measure, in words, and a section for each with all its metrics but the deciding one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ballast.compare.figures import SIGNS, STAGES, Metric, result, rows, stages, starred
from ballast.compare.numbers import counted, percentage
from ballast.records.folder import BEFORE
from ballast.records.summary import Answers, Row, Summary, TaskSummary
from ballast.report.charts.data import MISSING, Cell, Section, Table
from ballast.report.sections.rows import metric_chart, result_cell

KINDS = {
    "generate": "answers judged by a verifier",
    "choice": "options ranked by their likelihood",
    "code": "programs judged by their tests",
    "nll": "likelihood of given text",
    "readiness": "sampled answers judged by a verifier, read as the start of RL",
    "lm-eval": "a task of lm-evaluation-harness",
}
UNITS = {
    "answer_tokens": "tokens",
    "entropy": "nats per token",
    "base_kl": "nats per token",
    "nll": "nats per token",
    "forgetting": "nats per token",
    "demonstrations_nll": "nats per token",
    "demonstrations_kl": "nats per token",
    "mixed": "share of prompts",
}
"""What a metric counts, by its name before an @, where the name does not say it."""
CUT_OFF = "answers cut off"


def heading(task: TaskSummary) -> str:
    """Return what a task is called in headings: its title, else its name."""
    return str(task.settings.get("title") or task.name)


def title_of(summary: Summary, metric: Metric) -> str:
    """Return a metric with its task's heading."""
    known = {task.name: heading(task) for task in summary.tasks}
    return f"{known.get(metric.task, metric.task)}: {metric.name}"


def describes(task: TaskSummary) -> str:
    """Return what a task measures, in a sentence."""
    settings = task.settings
    how = KINDS.get(task.kind, task.kind)
    verifier = settings.get("verifier") if "verifier" in how else None
    samples = settings.get("samples")
    facts = [
        f"{how}{f' ({verifier})' if verifier else ''}",
        f"{counted(task.n, 'item')} of {settings['data']}" if settings.get("data") else counted(task.n, "item"),
        f"{counted(samples, 'sample')} of each" if isinstance(samples, int) and samples > 1 else "",
        f"temperature {_plain(settings['temperature'])}" if settings.get("temperature") is not None else "",
        f"up to {settings['max_new_tokens']} tokens" if settings.get("max_new_tokens") else "",
    ]
    return f"Task {task.name}: {', '.join(fact for fact in facts if fact)}."


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def described(summary: Summary, name: str) -> str:
    """Return `describes` of the task of a name, nothing where it was not measured."""
    return next((describes(task) for task in summary.tasks if task.name == name), "")


def task_sections(summary: Summary, deciding: Metric | None) -> tuple[Section, ...]:
    """Return a section for each task that measured more than the deciding metric."""
    found = []
    for place, task in enumerate(summary.tasks, start=1):
        listed = [Metric(task.name, name, SIGNS[about.better]) for name, about in task.metrics.items()]
        others = _by_rising_k([metric for metric in listed if metric != deciding])
        counted_answers = any(row.answers(stage, task.name) for row in summary.rows for stage in STAGES)
        if others or counted_answers:
            found.append(_section(summary, place, task, others, deciding))
    return tuple(found)


def _section(
    summary: Summary, place: int, task: TaskSummary, listed: Sequence[Metric], deciding: Metric | None
) -> Section:
    here = deciding is not None and deciding.task == task.name
    tables = tuple(
        table for stage in stages(summary) or [BEFORE] if (table := _table(summary, stage, task, listed)) is not None
    )
    main = None if here else next((metric for metric in listed if metric.sign), None)
    chart = None if main is None else metric_chart(summary, main, title_of(summary, main))
    arrows = [f"{metric.arrow} {word} is better" for metric, word in _directions(listed)]
    lead = " ".join([describes(task), *([f"{', '.join(arrows)}; ★ marks the best objective."] if arrows else [])])
    title = f"{heading(task)}: {'other' if here else 'all'} metrics"
    return Section(f"task-{place}", title, lead, tables=tables, charts=(chart,) if chart else ())


def _directions(listed: Sequence[Metric]) -> Iterator[tuple[Metric, str]]:
    for sign, word in ((1, "higher"), (-1, "lower")):
        if found := next((metric for metric in listed if metric.sign == sign), None):
            yield found, word


def _by_rising_k(listed: Sequence[Metric]) -> list[Metric]:
    """Return the metrics with pass@1, pass@2, … by rising k, where the first of them stood."""
    first = {_family(metric): place for place, metric in reversed(list(enumerate(listed)))}
    return sorted(listed, key=lambda metric: (first[_family(metric)], _k(metric)))


def _family(metric: Metric) -> str:
    return metric.name.partition("@")[0]


def _k(metric: Metric) -> int:
    k = metric.name.partition("@")[2]
    return int(k) if k.isdecimal() else 0


def _table(summary: Summary, stage: str, task: TaskSummary, listed: Sequence[Metric]) -> Table | None:
    """Return the metrics and cut-off answers of a stage, the longer side down the page; None where there are none."""
    measured = [row for row in rows(summary) if stage in row.stages or row.kind == "start"]
    lines = [_line(summary, stage, metric, measured) for metric in listed]
    if cut := _cut_off(stage, task.name, measured):
        lines.append(cut)
    if not any(cell != MISSING for line in lines for cell in line[1:]):
        return None
    heads = tuple(Cell(row.label) for row in measured)
    table = ((Cell(""), *heads), *lines)
    # By the rows of all stages, so that tables side by side lie the same way.
    if len(lines) < len(summary.rows):
        table = tuple(zip(*table, strict=True))
    first, *rest = table
    return Table(tuple(cell.text for cell in first), tuple(rest), STAGES[stage])


def _line(summary: Summary, stage: str, metric: Metric, measured: Sequence[Row]) -> tuple[Cell, ...]:
    best = starred(summary, stage, metric)
    cells = (
        MISSING if (one := result(row, stage, metric)) is None else result_cell(one, metric, row.label in best)
        for row in measured
    )
    return (Cell(f"{metric.name} {metric.arrow}".strip(), UNITS.get(_family(metric), "")), *cells)


def _cut_off(stage: str, task: str, measured: Sequence[Row]) -> tuple[Cell, ...] | None:
    answers = [row.answers(stage, task) for row in measured]
    if not any(answers):
        return None
    return (Cell(CUT_OFF, "before they ended"), *(MISSING if one is None else _share(one) for one in answers))


def _share(answers: Answers) -> Cell:
    share = answers.cut_off / answers.total if answers.total else 0.0
    return Cell(percentage(share), f"{answers.cut_off:,} of {answers.total:,}")
