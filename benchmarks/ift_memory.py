"""Peak memory and time of the greedy tokens of IFT's first pass: a chunk of logits at a time against all of them.

Each measurement is a process of its own: its peak of resident memory less what it held before the call.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from harness import child, peak_bytes, ratio, record, resident_bytes, spread, table

WAYS = ("all logits", "greedy")


def measure(way: str, rows: int, hidden: int, vocab: int) -> dict[str, Any]:
    """Find the likeliest tokens once in this process; return seconds, bytes above what was held before, a checksum."""
    from ballast.head import LMHead, greedy

    torch.manual_seed(0)
    states, head = torch.randn(rows, hidden), LMHead(torch.randn(vocab, hidden).mul_(0.05))
    ways = {"all logits": lambda states, head: head.logits(states).argmax(-1), "greedy": greedy}
    # The libraries' own buffers are there before the first look.
    ways[way](states[:2], LMHead(head.weight[:64]))
    before, started, processor = resident_bytes(), time.perf_counter(), time.process_time()
    found = ways[way](states, head)
    processor, wall = time.process_time() - processor, time.perf_counter() - started
    return {"wall": wall, "processor": processor, "extra": peak_bytes() - before, "sum": int(found.sum())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--hidden", type=int, default=896)
    parser.add_argument("--vocab", type=int, default=151_936)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--way", choices=WAYS, help="measure once in this process, as JSON")
    parser.add_argument("--out", type=Path, help="write the record here, as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.way:
        print(json.dumps(measure(arguments.way, arguments.rows, arguments.hidden, arguments.vocab)))
        return
    options = [f"--{name}={getattr(arguments, name)}" for name in ("rows", "hidden", "vocab", "threads")]
    runs: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for _ in range(arguments.rounds):
        for way, taken in runs.items():
            taken.append(child(__file__, *options, "--way", way))
    if len({run["sum"] for taken in runs.values() for run in taken}) != 1:
        raise SystemExit("the two ways found different tokens")
    extra = {way: statistics.median(run["extra"] for run in taken) / 2**20 for way, taken in runs.items()}
    lines = []
    for way, taken in runs.items():
        times = ratio([run["processor"] for run in taken], [run["processor"] for run in runs["all logits"]])
        lines.append([way, f"{extra[way]:.0f}", f"{extra[way] / extra['all logits']:.3f}×", spread(times)])
    print(f"all logits: {arguments.rows * arguments.vocab * 4 / 2**20:.0f} MiB\n")
    print(table(["way", "peak, MiB above the start", "memory", "processor time"], lines))
    record("ift_memory", vars(arguments), {"runs": runs, "extra_mib": extra}, arguments.out)


if __name__ == "__main__":
    main()
