"""Work that is split over ranks: processor time of the slowest of two against one process; what batches do to numbers.

    python benchmarks/ranks.py MODEL [--rounds 3]

Scores rows into a cache, samples answers and measures likelihood, on a model in a folder. Wall clocks say little where
other work shares the cores, so the time is that of the processor of each rank, after the model is loaded.
"""

from __future__ import annotations

import argparse
import atexit
import hashlib
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np

WORK = ("score", "sample", "likelihood")
LENGTH, NEW, SAMPLES = 200, 64, 4


def sequences(count: int, vocabulary: int) -> list[list[int]]:
    """Return random token ids of many lengths."""
    random = np.random.default_rng(0)
    return [random.integers(3, vocabulary, random.integers(LENGTH // 4, LENGTH)).tolist() for _ in range(count)]


def work(model: Any, tokenizer: Any, ranks: Any, rows: int, batch_tokens: int) -> dict[str, Callable[[], Any]]:
    """Return each kind of work; what it gives is the same on all ranks."""
    from datasets import Dataset

    from ballast.data import row_digest
    from ballast.evaluation.generation import GenerationOptions, generate
    from ballast.evaluation.scoring import ScoredSequence, sequence_statistics
    from ballast.reference import CacheKey, score_rows

    ids = sequences(rows, model.config.vocab_size)
    prepared = Dataset.from_list([{"input_ids": one, "labels": one, "digest": row_digest(one, one)} for one in ids])
    prompts = [tokenizer.decode(one[:8]) for one in ids[: rows // 4]]
    options = GenerationOptions(max_new_tokens=NEW, samples=SAMPLES, temperature=1.0, batch_tokens=batch_tokens)
    key = ranks.first(lambda: CacheKey.of(model, tokenizer))
    folder = ranks.first(tempfile.mkdtemp)
    if ranks.main:
        atexit.register(shutil.rmtree, folder, ignore_errors=True)

    def score() -> Any:
        settings: dict[str, Any] = {"tokens_per_batch": batch_tokens, "progress": False, "ranks": ranks}
        cache = score_rows(model, prepared, f"{folder}/cache", key, **settings)
        return [cache.lookup(digest)["ref_logprob"].tobytes() for digest in prepared["digest"]]

    def likelihood() -> Any:
        asked = [ScoredSequence(tuple(one), 1) for one in ids]
        found = sequence_statistics(model, asked, ("logprob",), batch_tokens=batch_tokens, ranks=ranks)
        return [one["logprob"].tobytes() for one in found]

    def sample() -> Any:
        answers = generate(model, tokenizer, prompts, options, ranks=ranks)
        return [one.ids for some in answers for one in some]

    return dict(zip(WORK, (score, sample, likelihood), strict=True))


def loaded(path: str) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)


def be_rank(path: str, rows: int, batch_tokens: int) -> None:
    """Do all work once and print, on rank 0, the slowest rank's seconds and a digest of what came of it."""
    import torch

    from ballast.ranks import join, leave

    torch.set_num_threads(1)
    model, tokenizer = loaded(path)
    ranks, told = join(), {}
    for name, do in work(model, tokenizer, ranks, rows, batch_tokens).items():
        start = time.process_time()
        found = do()
        seconds = max(ranks.gather(time.process_time() - start))
        told[name] = (seconds, hashlib.sha256(repr(found).encode()).hexdigest())
    if ranks.main:
        print("TOLD", json.dumps(told), flush=True)
    leave()


def launch(processes: int, arguments: list[str]) -> dict[str, tuple[float, str]]:
    command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", __file__, *arguments]
    done = subprocess.run([sys.executable, *command, "--rank"], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("TOLD")).removeprefix("TOLD"))


def split(arguments: list[str], rounds: int) -> None:
    """Print the ratio of two ranks to one, and whether they give the same."""
    pairs = [(launch(1, arguments), launch(2, arguments)) for _ in range(rounds)]
    for name in WORK:
        ratios = sorted(two[name][0] / one[name][0] for one, two in pairs)
        same = len({end[name][1] for pair in pairs for end in pair}) == 1
        seconds = statistics.median(one[name][0] for one, _ in pairs)
        spread = f"{statistics.median(ratios):.2f}× ({ratios[0]:.2f}–{ratios[-1]:.2f})"
        print(f"| {name} | {seconds:.2f} | {spread} | {'the same bytes' if same else 'DIFFERENT'} |", flush=True)


def compositions(path: str, rows: int, batch_tokens: int) -> None:
    """Print what other batches and threads change in one process."""
    import torch

    from ballast.ranks import ALONE

    model, tokenizer = loaded(path)

    def outcome(tokens: int, threads: int) -> tuple[list[Any], np.ndarray]:
        torch.set_num_threads(threads)
        do = work(model, tokenizer, ALONE, rows, tokens)
        return do["sample"](), np.concatenate([np.frombuffer(one, np.float32) for one in do["likelihood"]()])

    answers, logprobs = outcome(batch_tokens, 1)
    for label, tokens, threads in (
        ("the same again", batch_tokens, 1),
        ("a quarter of the batch", batch_tokens // 4, 1),
        ("one sequence a batch", 1, 1),
        ("two threads", batch_tokens, 2),
    ):
        others, values = outcome(tokens, threads)
        changed = sum(one != other for one, other in zip(answers, others, strict=True))
        worst = float(np.abs(values - logprobs).max())
        equal = float((values == logprobs).mean())
        print(f"| {label} | {worst:.1e} | {equal:.1%} | {changed} of {len(answers)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.rank:
        return be_rank(given.model, given.rows, given.batch_tokens)
    arguments = [given.model, f"--rows={given.rows}", f"--batch-tokens={given.batch_tokens}"]
    print("| work | one process, s | slowest of two ranks | result |\n| --- | ---: | ---: | --- |")
    split(arguments, given.rounds)
    print("\n| against it | largest change of log p, nats | equal bits | sampled answers that change |")
    print("| --- | ---: | ---: | ---: |")
    compositions(given.model, given.rows, given.batch_tokens)
    return None


if __name__ == "__main__":
    main()
