"""Throughput of scoring rows into a cache against a bare forward of the model, logits included, on the same batches."""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from harness import (
    SIZES,
    Size,
    Times,
    interleaved,
    make_model,
    make_rows,
    make_tokenizer,
    ratios,
    record,
    spread,
    table,
)
from profiles import operators, profiled, summary


def make_cases(size: Size, rows: int, tokens_per_batch: int, folder: Path) -> tuple[dict[str, Callable[[], Any]], int]:
    """Return the three cases, and the number of tokens that each goes through."""
    from ballast.data import PrepareOptions, prepare
    from ballast.reference import CacheKey, score_rows

    model, tokenizer = make_model(size).eval(), make_tokenizer(size.vocab)
    raw = make_rows(rows, lambda generator: int(generator.integers(size.tokens // 2, size.tokens + 1)), size.vocab)
    ready = prepare(raw, tokenizer, PrepareOptions()).dataset
    key = CacheKey.of(model, tokenizer)
    batches = _batches(raw["input_ids"], tokens_per_batch)
    runs = iter(range(10**6))

    def score(path: Path) -> None:
        score_rows(model, ready, path, key, tokens_per_batch=tokens_per_batch, progress=False)

    def forward() -> None:
        with torch.no_grad():
            for batch in batches:
                model(**batch, use_cache=False)

    cases = {
        "forward": forward,
        "scoring": lambda: score(folder / str(next(runs))),
        "scoring again": lambda: score(folder / "all"),
    }
    return cases, sum(map(len, raw["input_ids"]))


def _batches(ids: list[list[int]], tokens_per_batch: int) -> list[dict[str, torch.Tensor]]:
    """Cut rows, the longest first, into padded batches of a token budget, as scoring does."""
    order, batches = sorted(ids, key=len, reverse=True), []
    while order:
        rows = max(1, tokens_per_batch // len(order[0]))
        here, order = order[:rows], order[rows:]
        tensors = [torch.tensor(row) for row in here]
        pad = torch.nn.utils.rnn.pad_sequence
        batch = {"input_ids": pad(tensors, batch_first=True)}
        if len(here[-1]) < len(here[0]):
            batch["attention_mask"] = pad([torch.ones_like(row) for row in tensors], batch_first=True)
        batches.append(batch)
    return batches


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=[*SIZES], nargs="+", default=[*SIZES])
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--tokens-per-batch", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--profile", action="store_true", help="show where the time goes, operator by operator, instead"
    )
    parser.add_argument("--out", type=Path, help="write the record here, as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    lines, results = [], {}
    for name in arguments.size:
        with tempfile.TemporaryDirectory() as scratch:
            cases, tokens = make_cases(SIZES[name], arguments.rows, arguments.tokens_per_batch, Path(scratch))
            if arguments.profile:
                results[name] = {case: profiled(cases[case]) for case in ("forward", "scoring")}
                print(f"\n{name}\n\n{summary(results[name])}\n\n{operators(results[name])}", flush=True)
                continue
            times: dict[str, Times] = interleaved(cases, arguments.rounds)
        # Throughput is the inverse of time: the forward's time over scoring's.
        against = ratios(times["forward"], times["scoring"])
        again = statistics.median(times["scoring again"].processor)
        results[name] = {"size": SIZES[name], "tokens": tokens, "seconds": times, "throughput": against}
        speeds = [f"{tokens / statistics.median(times[case].processor):.0f}" for case in ("forward", "scoring")]
        shown = [spread(against[kind]) for kind in ("processor", "wall")]
        lines.append([name, *speeds, *shown, f"{1000 * again:.0f}"])
        print(lines[-1], flush=True)
    header = ["model", "forward, tokens/s", "scoring, tokens/s", "ratio, processor time", "wall time", "again, ms"]
    if lines:
        print(f"\n{table(header, lines)}")
    record("scoring", vars(arguments), results, arguments.out)


if __name__ == "__main__":
    main()
