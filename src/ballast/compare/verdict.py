"""What to do, from a summary: which objective to use after a stage, or why nothing can be concluded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ballast.compare.figures import (
    BETTER,
    STAGES,
    Entry,
    Metric,
    base_result,
    best_of,
    contestants,
    deciding,
    entries,
    interval_of,
    mean,
    ranked,
    rows,
    verdict,
)
from ballast.compare.numbers import ROUNDING, counted, joined
from ballast.compare.results import against_base, leads
from ballast.records.folder import AFTER, BASE
from ballast.records.runs import Run
from ballast.records.summary import Answers, Difference, Result, Row, Summary, Verdict

MOST_CUT_OFF = 0.1
"""Share of answers that may be cut off before the figures say more of the limit than of the model."""
BEYOND, ONE_SEED, NO_SPREAD = "beyond noise", "one seed", "no spread"


def verdicts(summary: Summary, runs: Sequence[Run] = (), wanted: str | None = None) -> tuple[Verdict, ...]:
    """Return what to do after each stage, by the metric that decides (`wanted` as in `deciding`).

    Args:
        runs: those that the figures are of, as far as they are there: differences then have intervals over items.
    """
    metric = deciding(summary, wanted)
    return tuple(decide(summary, stage, metric, runs) for stage in STAGES)


def decide(summary: Summary, stage: str, metric: Metric | None, runs: Sequence[Run] = ()) -> Verdict:
    """Return what to do after a stage; a pure function of what was measured."""
    made = Verdict(
        stage=stage,
        task=metric.task if metric else "",
        metric=metric.name if metric else "",
        better=BETTER[metric.sign if metric else 0],
        kind="none",
        against=summary.baseline,
    )
    order = ranked(summary, stage, metric) if metric is not None else []
    if metric is None or not order:
        return made
    standing = _Standing(summary, stage, metric, runs, order)
    reasons = tuple(standing.reasons())
    found = _inconclusive(standing, reasons) if reasons else standing.found()
    return made.model_copy(update={**found, "cautions": tuple(standing.cautions(found.get("winner")))})


def _inconclusive(standing: _Standing, reasons: tuple[str, ...]) -> dict[str, object]:
    return {"kind": "open", "reasons": reasons, "against": standing.against}


@dataclass(frozen=True)
class _Standing:
    """The methods that were measured at a stage, the best mean first."""

    summary: Summary
    stage: str
    metric: Metric
    runs: Sequence[Run]
    order: Sequence[Entry]

    @property
    def alone(self) -> bool:
        """Whether there is no other objective to compare with, so that the base model is."""
        return len(contestants(self.summary)) == 1

    @property
    def against(self) -> str:
        """The label that differences are taken to."""
        return BASE if self.alone else self.summary.baseline

    @property
    def base(self) -> Result | None:
        """What the base model reached: after RL, RL from it."""
        return base_result(self.summary, self.stage, self.metric)

    @property
    def to_base(self) -> Mapping[str, Difference]:
        return against_base(self.summary, self.runs, self.stage, self.metric.task, self.metric.name)

    def differences(self) -> dict[str, Difference]:
        """Return every method's difference to the row that it is compared with."""
        if self.alone:
            return dict(self.to_base)
        return {row.label: one.to_baseline for row, one in self.order if one.to_baseline is not None}

    def is_better(self, difference: Difference) -> bool:
        return verdict(difference) == BEYOND and self.metric.sign * mean(difference) > 0

    def _excludes_zero(self, difference: Difference) -> bool:
        """Whether a gain that is the same on every seed, which no test can judge, is one over items."""
        value, _ = interval_of(difference)
        bound = value.low if self.metric.sign > 0 else value.high
        return verdict(difference) == NO_SPREAD and bound is not None and self.metric.sign * bound > 0

    def answers(self, row: Row) -> Answers | None:
        return row.answers(self.stage, self.metric.task)

    # What stops a conclusion.

    def reasons(self) -> Iterator[str]:
        """Yield why nothing can be concluded, with what to change."""
        yield from self._floor_or_ceiling()
        yield from self._cut_off()
        measured = [row.label for row, _ in self.order]
        if self.alone and self.base is None:
            yield f"{measured[0]} is the only objective and the base model was not measured; set evaluation.base: true"
        elif not self.alone and self.against not in measured:
            yield f"{self.against}, which differences are taken to, was not measured; finish its runs"
        elif len(measured) == 1 and not self.alone:
            yield f"of the objectives only {measured[0]} was measured; finish the runs of the others"
        else:
            yield from self._untested()

    def _floor_or_ceiling(self) -> Iterator[str]:
        """Nobody solved anything, or everybody everything: the figures cannot tell rows apart."""
        reached = [one for _, one in self.order] + [one for one in [self.base] if one is not None]
        methods = [one for _, one in self.order]
        if not self.metric.share or self.metric.sign < 1:
            return
        if all(value == 0 for one in reached for value in one.values):
            total = self._total()
            yield (
                f"{f'0 of {total:,} answers are' if total else 'no answer is'} right, whatever trained the model; read "
                f"some answers of task {self.metric.task!r} and check the verifier, or take easier rows"
            )
        elif len(methods) > 1 and all(value == 1 for one in methods for value in one.values):
            yield (
                f"every answer of every objective is right, so task {self.metric.task!r} cannot tell them apart; take "
                "harder rows"
            )

    def _total(self) -> int:
        known = [self.answers(row) for row, _ in entries(self.summary, self.stage, self.metric, "start", "method")]
        return sum(one.total for one in known if one is not None)

    def _cut_off(self) -> Iterator[str]:
        """Too many answers cut off in a row that would be, or could become, the best or what it is compared with."""
        top = mean(self.order[0][1])
        shares = {}
        for row, one in self.order:
            share = cut_off_share(self.answers(row))
            could_lead = mean(one) + share >= top - ROUNDING or row.label == self.summary.baseline
            if self.metric.sign > 0 and share > MOST_CUT_OFF and could_lead:
                shares[row.label] = share
        if shares:
            named = joined([f"{share:.0%} of the answers of {label}" for label, share in shares.items()])
            task = next(task for task in self.summary.tasks if task.name == self.metric.task)
            limit = task.settings.get("max_new_tokens")
            yield (
                f"{named} were cut off before they ended; raise max_new_tokens of task {task.name!r}"
                f"{f' ({limit})' if limit else ''}, or train on answers that end"
            )

    def _untested(self) -> Iterator[str]:
        """Differences that no test can judge, where the best one is among them."""
        differences = self.differences()
        best = [row.label for row, _ in best_of(self.order) if row.label in differences]
        others = [row.label for row, _ in self.order if row.label in differences]
        if not others:
            yield f"no seed was run both for {self.against} and for another objective; finish the missing runs"
            return
        told = {label: verdict(differences[label]) for label in best or others}
        if all(one == ONE_SEED for one in told.values()):
            yield "one seed cannot tell luck from a difference; set compare.seeds to 5 or more"
        elif best and all(told[label] == NO_SPREAD for label in best):
            yield (
                f"the difference of {joined(best)} to {self.against} is the same on every seed, so nothing says how "
                "far chance goes; check that seeds change the runs, or measure more items"
            )

    # What can be said.

    def found(self) -> dict[str, object]:
        """Return the fields of the verdict where something can be concluded."""
        top, differences = self.order[0], self.differences()
        if self.base is not None and self.metric.sign * (mean(self.base) - mean(top[1])) > ROUNDING:
            difference = self.to_base.get(top[0].label)
            return {"kind": "base", "against": BASE, "runner_up": top[0].label, "difference": difference}
        better = [
            row.label for row, _ in self.order if row.label in differences and self.is_better(differences[row.label])
        ]
        if better:
            others = [row.label for row, _ in self.order if row.label != better[0]]
            found = {"kind": "use", "against": self.against, "winner": better[0], "difference": differences[better[0]]}
            return found | self._lead(better[0], others[:1])
        runner_up = next((row.label for row, _ in self.order if row.label in differences), None)
        worse = any(verdict(one) == BEYOND for one in differences.values())
        kind: Literal["baseline", "same"] = "baseline" if worse and not self.alone else "same"
        difference = None if runner_up is None else differences[runner_up]
        winner = None if self.alone else self.summary.baseline
        return {
            "kind": kind,
            "against": self.against,
            "winner": winner,
            "runner_up": runner_up,
            "difference": difference,
        }

    def _lead(self, label: str, others: Sequence[str]) -> dict[str, object]:
        """Return the runner-up, and the winner's difference to it; the baseline's is the verdict's difference."""
        if not others:
            return {}
        [runner_up] = others
        if runner_up == self.against:
            return {"runner_up": runner_up}
        found = leads(self.summary, self.runs, self.stage, self.metric.task, self.metric.name, label)
        return {"runner_up": runner_up, "lead": found.get(runner_up)}

    # What limits it.

    def cautions(self, winner: object) -> Iterator[str]:
        """Yield what a reader of the verdict must know beside it."""
        measured = {row.label for row, _ in self.order}
        methods = contestants(self.summary)
        without = [row.label for row in methods if row.label not in measured]
        if without:
            yield f"{joined(without)} {'was' if len(without) == 1 else 'were'} not measured here"
        yield from left_out(self.summary)
        planned = len(self.summary.seeds.report)
        few = [row.label for row, one in self.order if len([v for v in one.values if v is not None]) < planned]
        if few and len(few) < len(methods):
            verb = "has" if len(few) == 1 else "have"
            yield f"{joined(few)} {verb} fewer than the {counted(planned, 'planned seed')}"
        base = next((row for row in rows(self.summary, "start")), None)
        share = cut_off_share(None if base is None else self.answers(base))
        if share > MOST_CUT_OFF:
            yield f"{share:.0%} of the base model's answers were cut off, so its figure may be too low"
        if isinstance(winner, str):
            yield from self._winner(winner)

    def _winner(self, winner: str) -> Iterator[str]:
        to_base = self.to_base.get(winner)
        if to_base is not None and not self.alone and not (self.is_better(to_base) or self._excludes_zero(to_base)):
            name = "RL from the base model" if self.stage == AFTER else "the base model"
            yield f"{winner} itself is no better than {name} beyond noise"
        for row, one in entries(self.summary, self.stage, self.metric, "random"):
            best = next(result for method, result in self.order if method.label == winner)
            if self.metric.sign * (mean(one) - mean(best)) >= -ROUNDING:
                yield f"{row.label} weights do as well, so the result says nothing about this base model"


def left_out(summary: Summary) -> Iterator[str]:
    """Yield which rows a halving left out after each rung: nothing is claimed of them."""
    gone: dict[int, list[str]] = {}
    for row in summary.rows:
        if row.left is not None:
            gone.setdefault(row.left.rung, []).append(row.label)
    by = summary.choose_by
    for steps, labels in sorted(gone.items()):
        chosen = "" if by is None else f" by {by.task} {by.metric}"
        yield f"{joined(labels)} left after runs of {counted(steps, 'step')}{chosen}, and nothing is claimed of them"


def cut_off_share(answers: Answers | None) -> float:
    """Return the share of answers that were cut off, 0 where none were counted."""
    return answers.cut_off / answers.total if answers is not None and answers.total else 0.0
