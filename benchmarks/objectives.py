"""Time of a whole optimiser step of every objective of the package, against TRL's nll on the same tokens.

Objectives come in batches, each beside TRL's nll and ballast's sft and interleaved with them (see `step.py`), so that
few models are in memory at once; ratios are within a batch. Options are the defaults. What reads a column of the data
is given one; what trains on groups of answers is given the rows as answers, judged, so nothing is sampled. What
scores the rows of several steps at once (``old_logprob``) is compared by whole periods of steps.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

import step
from ballast import list_objectives, objective
from ballast.objectives import Objective
from ballast.stats import GROUP_FIELDS, OLD_FIELDS, PAIR_FIELDS, REFERENCE_FIELDS
from harness import SIZES, record, table

GOALS = {"policy": 0.9, "cache": 0.9, "live": 1.2}
"""Most that a step may take, as a multiple of TRL's nll, by what is read beside the model in training."""


def reads(one: Objective) -> str:
    """Return what an objective reads beside the model in training."""
    needs = set(one.needs)
    if needs & set(PAIR_FIELDS) or (needs & set(GROUP_FIELDS) and needs & set(REFERENCE_FIELDS)):
        return "live"
    return "cache" if needs & set(REFERENCE_FIELDS) else "policy"


def forwards(one: Objective) -> int:
    """Return how many forwards of the model in training each row takes."""
    return 1 + (one.scope == "step" or hasattr(one, "prepare_inputs")) + bool(set(one.needs) & set(OLD_FIELDS))


def case(one: Objective) -> dict[str, Any]:
    """Return how an objective is measured."""
    reference = {"policy": {}, "cache": {"reference": "cache"}, "live": {"reference": "model"}}[reads(one)]
    groups = {"groups": True} if set(one.needs) & set(GROUP_FIELDS) else {}
    period = getattr(one, "refresh", 1)
    return {"objective": one.name, "columns": tuple(one.columns.values()), "period": period, **reference, **groups}


def batches(names: list[str], size: int) -> list[list[str]]:
    """Return the names in batches, each with TRL's nll and sft."""
    own = [name for name in names if name != step.OWN]
    return [[step.PLAIN, step.OWN, *own[start : start + size]] for start in range(0, len(own), size)]


def report(results: dict[str, Any], built: dict[str, Objective]) -> str:
    """Return the table, the fastest first, with the goal of each and whether its median keeps it."""
    lines = []
    for name, one in sorted(results.items(), key=lambda item: item[1]["ratio"]["processor"]["median"]):
        if name == step.PLAIN:
            continue
        middle = one["ratio"]["processor"]["median"]
        read, own = reads(built[name]), forwards(built[name])
        shown = [step.spread(one[key]["processor"]) for key in ("ratio", "ratio_to_sft")]
        goal = GOALS[read]
        lines.append([name, read, own, *shown, f"{goal:g}× {'kept' if middle <= goal else 'missed'}"])
    head = ["objective", "reads", "own forwards", "ratio to TRL nll, processor time", "to sft, processor time", "goal"]
    return table(head, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    built = {info.name: objective(info.name) for info in list_objectives()}
    parser.add_argument("--size", choices=[*SIZES], nargs="+", default=["small", "middle"])
    parser.add_argument("--objectives", choices=[*built], nargs="+", default=[*built])
    parser.add_argument("--batch", type=int, default=5, help="objectives interleaved at a time")
    parser.add_argument("--rounds", type=int, default=16, help="a multiple of the longest period, that of psft is 8")
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--logging-steps", type=int, default=1, help="steps that are logged measure more")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="write the record here, as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    cases = {name: case(built[name]) for name in arguments.objectives}
    step.CASES.update(cases)
    period = max(one["period"] for one in cases.values())
    if arguments.rounds < period:
        parser.error(f"--rounds {arguments.rounds} is less than a period of {period} steps")
    results: dict[str, Any] = {}
    for name in arguments.size:
        measured: dict[str, Any] = {}
        for chosen in batches(arguments.objectives, arguments.batch):
            times = step.time_steps(
                chosen,
                SIZES[name],
                1.0,
                arguments.rounds,
                arguments.warmup,
                period=period,
                logging_steps=arguments.logging_steps,
            )
            measured = {**step.report_times(chosen, times)[1], **measured}
        results[name] = measured
        print(f"\n{name}: {SIZES[name]}\n\n{report(measured, built)}", flush=True)
    record(
        "objectives",
        {**vars(arguments), "sizes": {name: SIZES[name] for name in arguments.size}},
        results,
        arguments.out,
    )


if __name__ == "__main__":
    main()
