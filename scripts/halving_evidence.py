"""Whether a halved comparison keeps the winner of the full sweep: stored comparisons, halved with their own figures.

    python scripts/halving_evidence.py run published runs/halving compare.budget.halving.eta=4   # the short runs
    python scripts/halving_evidence.py keep published runs/halving     # their scores into docs/evidence/halving
    python scripts/halving_evidence.py table                           # the table of docs/compare.md from these

Runs with the whole budget are those of docs/evidence: a halved comparison has the same ones.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import evidence

if TYPE_CHECKING:
    from ballast.compare.halving import Pair
    from ballast.compare.plan import Plan
    from ballast.records.summary import Row, Summary

KEPT = evidence.EVIDENCE / "halving"
PAGE = evidence.EVIDENCE.parent / "compare.md"
START = "<!-- tables: scripts/halving_evidence.py -->"
STEPS = 48
"""Of the budget of the stored comparisons."""


def run(name: str, output: Path, words: Sequence[str]) -> None:
    """Do the short runs of a recipe in recipes/lab, rung by rung, as `ballast compare` does."""
    from ballast.compare.halving import course, short_cells
    from ballast.compare.jobs import Job, JobContext, scoring
    from ballast.compare.worker import configure_process
    from ballast.records.folder import Store
    from ballast.records.runs import read_cells

    configure_process(1)
    plan = _plan(name, output, words)
    context = JobContext(plan, Store(output), STEPS)
    context.run(scoring(plan), print)
    while not (found := course(plan, read_cells(context.store, short_cells(plan)))).over:
        for cell in found.rungs[-1].cells.values():
            job = Job(kind="train", cell=cell)
            if not context.is_done(job):
                context.run(job, print)
                print(cell.name, flush=True)


def _plan(name: str, output: Path, words: Sequence[str]) -> Plan:
    from ballast.compare import COMPARE_CHECKS
    from ballast.compare.plan import Plan
    from ballast.config.recipe import load_recipe

    recipe = Path(__file__).parent.parent / "recipes" / "lab" / f"{name}.yaml"
    return Plan(load_recipe(recipe, [*words, f"output={output}"], checks=COMPARE_CHECKS))


def keep(name: str, output: Path, words: Sequence[str]) -> Path:
    """Put the scores of the short runs of an output into docs/evidence/halving, beside those of other rungs."""
    from ballast.compare.halving import course, short_cells
    from ballast.records.folder import Store
    from ballast.records.runs import read_cells

    plan = _plan(name, output, words)
    path = KEPT / f"{name}.json"
    known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for rung in course(plan, read_cells(Store(output), short_cells(plan))).rungs:
        scores = known.setdefault(str(rung.steps), {})
        for (label, rate), score in rung.scores.items():
            scores.setdefault(label, {})[repr(rate)] = score
    KEPT.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dict(sorted(known.items(), key=lambda one: int(one[0]))), indent=1) + "\n")
    return path


# What would have come of it.


@dataclass(frozen=True)
class Setting:
    """A stored comparison, and how it is halved.

    Attributes:
        smaller: whether the next smaller rate comes along.
        together: whether all rows are ranked together, or each by itself, so that none leaves.
    """

    name: str
    eta: int
    rungs: tuple[int, ...]
    smaller: bool = True
    together: bool = True

    @property
    def told(self) -> str:
        how = "" if self.smaller else ", without the rate below"
        return (
            f"{self.eta}, {' and '.join(map(str, self.rungs))} steps{how if self.together else ', each row by itself'}"
        )


SETTINGS = (
    Setting("published", 4, (12,)),
    Setting("weak-prior-noisy", 4, (12,)),
    Setting("published", 4, (12,), smaller=False),
    Setting("weak-prior-noisy", 4, (12,), smaller=False),
    Setting("published", 4, (12,), together=False),
    Setting("weak-prior-noisy", 4, (12,), together=False),
)


@dataclass(frozen=True)
class Outcome:
    """What a halving would have come to.

    Attributes:
        steps, full: of choosing rates and of what is reported, halved and in the full sweep.
        rates: of the rows that stay, as they would be chosen.
        wrong: rows that stay and would have another rate than by the full sweep.
        winner, kept: the best row of the full sweep by what chooses, and whether it stays at its rate.
        left: rows that leave.
        use, full_use: which row the verdict after fine-tuning says to use, halved (None: rates differ) and in full.
    """

    steps: int
    full: int
    rates: Mapping[str, float]
    wrong: tuple[str, ...]
    winner: str
    kept: bool
    left: tuple[str, ...]
    use: str | None
    full_use: str | None


def replay(setting: Setting, unknown: float | None = None) -> Outcome:
    """Halve a stored comparison with its own figures.

    Args:
        unknown: the score of a pair whose short run was not made; None has it leave.
    """
    summary, short = _summary(setting.name), json.loads((KEPT / f"{setting.name}.json").read_text())
    rows = {row.label: row for row in summary.rows if row.kind == "method"}
    values = {(label, one.rate): sum(one.values) / len(one.values) for label, row in rows.items() for one in row.tuning}
    length = {label: _length(row) for label, row in rows.items()}
    pairs, steps = list(values), 0
    for rung in setting.rungs:
        scores = {pair: short[str(rung)][pair[0]].get(repr(pair[1]), unknown) for pair in pairs}
        steps += sum(math.ceil(length[label] * rung / STEPS) for label, _ in pairs)
        pairs = _stay(scores, setting, summary.baseline)
    rates = {label: [rate for row, rate in pairs if row == label] for label in dict.fromkeys(row for row, _ in pairs)}
    choosing, reported = len(summary.seeds.tuning), len(summary.seeds.report)
    steps += sum(length[label] * (choosing * len(some) * (len(some) > 1) + reported) for label, some in rates.items())
    full = sum(length[label] * (choosing * len(row.tuning) + reported) for label, row in rows.items())
    chosen = {label: max(some, key=lambda rate: (values[label, rate], -rate)) for label, some in rates.items()}
    wrong = tuple(label for label, one in chosen.items() if one != rows[label].rate)
    winner, rate = max(values, key=lambda pair: values[pair])
    return Outcome(
        steps=steps,
        full=full,
        rates=chosen,
        wrong=wrong,
        winner=winner,
        kept=chosen.get(winner) == rate,
        left=tuple(label for label in rows if label not in rates),
        use=None if wrong else _use(summary, rates),
        full_use=_use(summary, rows),
    )


def _use(summary: Summary, labels: Container[str]) -> str | None:
    """Return which row the verdict after fine-tuning would name, of some rows at the rates they have."""
    from ballast.compare.figures import deciding
    from ballast.compare.summary import adjusted
    from ballast.compare.verdict import decide

    kept = adjusted([row for row in summary.rows if row.kind != "method" or row.label in labels])
    halved = summary.model_copy(update={"rows": kept})
    return decide(halved, evidence.BEFORE, deciding(halved)).winner


def _stay(scores: Mapping[Pair, float | None], setting: Setting, baseline: str) -> list[Pair]:
    from ballast.compare.halving import survivors

    if not setting.together:
        rows = dict.fromkeys(label for label, _ in scores)
        own = [{pair: score for pair, score in scores.items() if pair[0] == label} for label in rows]
        return [pair for one in own for pair in survivors(one, sign=1, eta=setting.eta, baseline=baseline)]
    if setting.smaller:
        return survivors(scores, sign=1, eta=setting.eta, baseline=baseline)
    # Each pair by itself, as if no row had a smaller rate.
    alone: dict[Pair, float | None] = {(f"{label} {rate!r}", rate): score for (label, rate), score in scores.items()}
    mine = [(label, rate) for label, rate in scores if label == baseline]
    best = max(mine, key=lambda pair: (scores[pair] or 0.0, -pair[1]))
    kept = survivors(alone, sign=1, eta=setting.eta, baseline=f"{best[0]} {best[1]!r}")
    return [pair for pair in scores if (f"{pair[0]} {pair[1]!r}", pair[1]) in kept]


def _summary(name: str) -> Summary:
    from ballast.records.read import read
    from ballast.records.summary import Summary

    return read(evidence.EVIDENCE / name / "summary.json", Summary)


def _length(row: Row) -> int:
    [steps] = {one for one in row.stages["before_rl"].budget.steps if one is not None}
    return int(steps)


def table() -> str:
    """Return the table of docs/compare.md."""
    lines = [
        "| comparison | eta, rungs | steps | best by `choose_by` | verdict | rows that stay | other rates |",
        "| --- | --- | ---: | --- | --- | --- | --- |",
    ]
    for setting in SETTINGS:
        found = replay(setting)
        use = "–" if found.use is None else f"`{found.use}`{' too' if found.use == found.full_use else ''}"
        kept = f"`{found.winner}` {'stays' if found.kept else '**is lost**'}"
        stay, wrong = len(found.rates), len(found.wrong)
        cost = f"{found.steps / found.full:.0%}"
        rows = f"{stay} of {stay + len(found.left)} | {wrong} of {stay}"
        lines.append(f"| {setting.name} | {setting.told} | {cost} | {kept} | {use} | {rows} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", choices=("run", "keep", "table"))
    parser.add_argument("name", nargs="?", help="of a recipe in recipes/lab")
    parser.add_argument("output", nargs="?", type=Path)
    parser.add_argument("words", nargs="*", help="settings laid over the recipe")
    given = parser.parse_args()
    if given.what == "table":
        PAGE.write_text(evidence.page_with(table(), PAGE.read_text(), START))
    elif given.what == "run":
        run(given.name, given.output, given.words)
    else:
        print(keep(given.name, given.output, given.words))


if __name__ == "__main__":
    main()
