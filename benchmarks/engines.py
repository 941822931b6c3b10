"""Answers a second of vLLM against those of our own loop, on the same items, in turns.

    python benchmarks/engines.py MODEL --command /path/to/vllm-env/bin/vllm serve --rounds 3

The server's processor time is that of all its processes. Prints medians over the rounds, and how many of the answers
are the same at temperature 0 and, of the engine alone, from the same seeds in two rounds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import psutil

from ballast.config.recipe import ModelSection
from ballast.engines.options import VllmEngine
from ballast.evaluation.generation import Completion, GenerationOptions, generate
from ballast.models import load_model, load_tokenizer
from ballast.pipeline import sources
from ballast.pipeline.engines import opened

Answers = list[list[Completion]]


def processor_seconds() -> tuple[float, float]:
    """Return the processor time of this process and of all that it has started."""
    times = [one.cpu_times() for one in psutil.Process().children(recursive=True)]
    return time.process_time(), sum(one.user + one.system for one in times)


def timed(work: Callable[[], Answers]) -> tuple[Answers, dict[str, float]]:
    """Return answers, and what they cost."""
    began, before = time.perf_counter(), processor_seconds()
    answers = work()
    own, others = (after - earlier for after, earlier in zip(processor_seconds(), before, strict=True))
    count = sum(map(len, answers))
    tokens = sum(one.tokens for some in answers for one in some)
    seconds = time.perf_counter() - began
    return answers, {
        "wall": count / seconds,
        "processor": count / (own + others),
        "tokens": tokens / (own + others),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--command", nargs="+", required=True)
    parser.add_argument("--arguments", nargs="*", default=["--max-model-len=512"])
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--new", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()

    section = ModelSection(path=given.model)
    model, tokenizer = load_model(section), load_tokenizer(section)
    rows = list(sources.load(("lab:test",), limit=given.prompts))
    sampled = GenerationOptions(max_new_tokens=given.new, samples=given.samples, temperature=1.0)
    greedy = GenerationOptions(max_new_tokens=given.new)
    options = VllmEngine(command=given.command, arguments=given.arguments, start_seconds=7200.0, timeout=1800.0)
    with opened(options, model, tokenizer, section) as engine:
        ways: dict[str, Any] = {"transformers": generate, "vllm": engine.generate}
        first = {name: way(model, tokenizer, rows, greedy) for name, way in ways.items()}  # warms both up
        rounds: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
        drawn: list[Answers] = []
        for _ in range(given.rounds):
            for name, way in ways.items():
                answers, cost = timed(lambda way=way: way(model, tokenizer, rows, sampled))
                rounds[name].append(cost)
                drawn += [answers] if name == "vllm" else []
        print(engine.record())
    for name, costs in rounds.items():
        figures = {key: statistics.median(one[key] for one in costs) for key in costs[0]}
        print(
            f"{name}: {figures['wall']:.2f} answers/s of wall clock, {figures['processor']:.2f} answers and "
            f"{figures['tokens']:.1f} tokens per second of processor time"
        )
    same = sum(one[0].ids == other[0].ids for one, other in zip(*first.values(), strict=True))
    print(f"greedy: {same} of {len(rows)} answers are the same tokens")
    if len(drawn) > 1:
        pairs = [(a.ids, b.ids) for x, y in zip(drawn[0], drawn[1], strict=True) for a, b in zip(x, y, strict=True)]
        print(
            f"sampled by vllm from the same seeds twice: {sum(a == b for a, b in pairs)} of {len(pairs)} are the same"
        )


if __name__ == "__main__":
    main()
