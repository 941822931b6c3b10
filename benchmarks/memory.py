"""Peak memory and time of the chunked backend against the dense one, forward and backward.

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

FIELDS = ("logprob", "logprob,entropy,mass", "logprob,entropy,kl")
DIFFERENTIABLE = ("logprob", "entropy", "kl")


def measure(backend: str, fields: tuple[str, ...], rows: int, hidden: int, vocab: int) -> dict[str, float]:
    """Run one forward and backward in this process; return seconds and bytes above what was held before."""
    from ballast import token_stats

    torch.manual_seed(0)
    states = torch.randn(rows, hidden, requires_grad=True)
    weight = (torch.randn(vocab, hidden) * 0.05).requires_grad_()
    targets = torch.randint(0, vocab, (rows,))
    reference = (torch.randn(rows, hidden), torch.randn(vocab, hidden) * 0.05) if "kl" in fields else None
    # The libraries' own buffers are there before the first look.
    token_stats(states[:2], weight[:64], targets[:2] % 64, backend=backend).logprob.sum().backward()
    states.grad = weight.grad = None
    before, started, processor = resident_bytes(), time.perf_counter(), time.process_time()
    stats = token_stats(states, weight, targets, fields=fields, reference=reference, backend=backend)
    torch.stack([getattr(stats, name).sum() for name in fields if name in DIFFERENTIABLE]).sum().backward()
    processor, wall = time.process_time() - processor, time.perf_counter() - started
    return {"wall": wall, "processor": processor, "extra": peak_bytes() - before, "gradient": weight.nbytes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--hidden", type=int, default=896)
    parser.add_argument("--vocab", type=int, default=151_936)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--fields", nargs="+", default=[*FIELDS])
    parser.add_argument("--backend", choices=["dense", "chunked"], help="measure once in this process, as JSON")
    parser.add_argument("--out", type=Path, help="write the record here, as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    shape = (arguments.rows, arguments.hidden, arguments.vocab)
    if arguments.backend:
        print(json.dumps(measure(arguments.backend, tuple(arguments.fields[0].split(",")), *shape)))
        return
    lines, results = [], {}
    options = [f"--{name}={getattr(arguments, name)}" for name in ("rows", "hidden", "vocab", "threads")]
    for fields in arguments.fields:
        runs: dict[str, list[Any]] = {"dense": [], "chunked": []}
        for _ in range(arguments.rounds):
            for backend, taken in runs.items():
                taken.append(child(__file__, *options, f"--backend={backend}", "--fields", fields))
        extra = {name: statistics.median(run["extra"] for run in taken) / 2**20 for name, taken in runs.items()}
        times = ratio(*([run["processor"] for run in runs[name]] for name in ("chunked", "dense")))
        results[fields] = {"runs": runs, "extra_mib": extra, "processor_time": times}
        share = f"{extra['chunked'] / extra['dense']:.2f}×"
        lines.append([fields, f"{extra['dense']:.0f}", f"{extra['chunked']:.0f}", share, spread(times)])
        print(lines[-1], flush=True)
    logits, head = (size * arguments.vocab * 4 / 2**20 for size in (arguments.rows, arguments.hidden))
    print(f"\nall logits: {logits:.0f} MiB; gradient of the head: {head:.0f} MiB\n")
    print(table(["fields", "dense, MiB", "chunked, MiB", "memory", "processor time"], lines))
    record("memory", vars(arguments), results, arguments.out)


if __name__ == "__main__":
    main()
