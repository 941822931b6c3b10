"""Time of a whole optimiser step of every objective of the package that reads demonstrations alone, against TRL's nll.

Objectives come in batches, each beside TRL's nll and ballast's sft and interleaved with them (see `step.py`), so that
few models are in memory at once; ratios are within a batch. Options are the defaults. What reads groups of answers is
measured by `groups.py`, and what reads columns of the data by nothing here: these are named and left out.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

import step
from ballast import list_objectives, objective
from ballast.stats import GROUP_FIELDS, PAIR_FIELDS, REFERENCE_FIELDS
from harness import SIZES, record, table

GOALS = {"policy": 0.9, "cache": 0.9, "live": 1.2}
"""Most that a step may take, as a multiple of TRL's nll, by what is read beside the model in training."""


def way(needs: tuple[str, ...]) -> str | None:
    """Return what an objective reads beside the model in training; None for what is not measured here."""
    if set(needs) & set(PAIR_FIELDS):
        return "live"
    if set(needs) & set(GROUP_FIELDS):
        return None
    return "cache" if set(needs) & set(REFERENCE_FIELDS) else "policy"


def cases() -> tuple[dict[str, dict[str, Any]], dict[str, str], list[str]]:
    """Return the case of each objective, what it reads, and the names of those left out."""
    found, read, left_out = {}, {}, []
    for info in list_objectives():
        reads = None if getattr(objective(info.name), "columns", None) else way(info.needs)
        if reads is None:
            left_out.append(info.name)
            continue
        reference = {"policy": {}, "cache": {"reference": "cache"}, "live": {"reference": "model"}}[reads]
        found[info.name], read[info.name] = {"objective": info.name, **reference}, reads
    return found, read, left_out


def batches(names: list[str], size: int) -> list[list[str]]:
    """Return the names in batches, each with TRL's nll and sft."""
    own = [name for name in names if name != step.OWN]
    return [[step.PLAIN, step.OWN, *own[start : start + size]] for start in range(0, len(own), size)]


def report(results: dict[str, Any], read: dict[str, str]) -> str:
    """Return the table, the fastest first, with the goal of each and whether its median keeps it."""
    lines = []
    for name, one in sorted(results.items(), key=lambda item: item[1]["ratio"]["processor"]["median"]):
        if name == step.PLAIN:
            continue
        middle = one["ratio"]["processor"]["median"]
        goal = GOALS[read[name]]
        shown = [step.spread(one[key]["processor"]) for key in ("ratio", "ratio_to_sft")]
        lines.append([name, read[name], *shown, f"{goal:g}× {'kept' if middle <= goal else 'missed'}"])
    return table(["objective", "reads", "ratio to TRL nll, processor time", "to sft, processor time", "goal"], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found, read, left_out = cases()
    parser.add_argument("--size", choices=[*SIZES], nargs="+", default=["small", "middle"])
    parser.add_argument("--objectives", choices=[*found], nargs="+", default=[*found])
    parser.add_argument("--batch", type=int, default=5, help="objectives interleaved at a time")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="write the record here, as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    step.CASES.update(found)
    results: dict[str, Any] = {"left_out": left_out}
    for name in arguments.size:
        measured: dict[str, Any] = {}
        for chosen in batches(arguments.objectives, arguments.batch):
            times = step.time_steps(chosen, SIZES[name], 1.0, arguments.rounds, arguments.warmup)
            measured = {**step.report_times(chosen, times)[1], **measured}
        results[name] = measured
        print(f"\n{name}: {SIZES[name]}\n\n{report(measured, read)}", flush=True)
    print(f"\nleft out: {', '.join(left_out)}")
    record(
        "objectives",
        {**vars(arguments), "sizes": {name: SIZES[name] for name in arguments.size}},
        results,
        arguments.out,
    )


if __name__ == "__main__":
    main()
