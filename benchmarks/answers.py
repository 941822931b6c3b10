"""Statistics of several answers to a prompt: the prompt read once, read for each answer, and from whole logits.

    python benchmarks/answers.py models/smollm2

Entropy and log-probability of every token; answers of 1 to 2·N − 1 tokens, 4 prompts.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from harness import interleaved, ratios, record, spread, table

FIELDS = ("logprob", "entropy")
PROMPTS, ROWS = 4, 16


def make_cases(model: Any, prompt: int, answer: int, samples: int) -> dict[str, Callable[[], Any]]:
    """Return the cases; all score the same sequences."""
    from ballast.evaluation import packing
    from ballast.evaluation.scoring import ScoredSequence, sequence_statistics

    draw = random.Random(0)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(draw.randrange(3, model.config.vocab_size) for _ in range(count))

    prompts = [ids(draw.randint(prompt - prompt // 4, prompt + prompt // 4)) for _ in range(PROMPTS)]
    sequences = [
        ScoredSequence(one + ids(draw.randint(1, 2 * answer - 1)), len(one)) for one in prompts for _ in range(samples)
    ]

    def ours() -> Any:
        return sequence_statistics(model, sequences, FIELDS)

    def alone() -> Any:
        with mock.patch.object(packing, "together", lambda cut, most: packing.alone(cut)):
            return ours()

    return {"ours": ours, "alone": alone, "logits": lambda: whole(model, sequences)}


def whole(model: Any, sequences: Sequence[Any]) -> list[torch.Tensor]:
    """Return the entropies from whole logits, 16 sequences of about a length at a time."""
    found, pad = [], torch.nn.utils.rnn.pad_sequence
    order = sorted(sequences, key=lambda one: len(one.ids))
    for start in range(0, len(order), ROWS):
        rows = [torch.tensor(one.ids) for one in order[start : start + ROWS]]
        mask = pad([torch.ones_like(row) for row in rows], batch_first=True)
        with torch.no_grad():
            logp = model(pad(rows, batch_first=True), attention_mask=mask, use_cache=False).logits.log_softmax(-1)
        found.append(-(logp.exp() * logp).sum(-1))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--shapes", nargs="+", default=["48:8:8", "48:24:8", "128:64:8", "256:4:4"])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="write the record here, as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).eval()
    lines, results = [], {}
    for shape in arguments.shapes:
        prompt, answer, samples = map(int, shape.split(":"))
        times = interleaved(make_cases(model, prompt, answer, samples), arguments.rounds)
        against = {case: ratios(times[case], times["ours"])["processor"] for case in ("alone", "logits")}
        results[shape] = {"seconds": times, "ratios": against}
        seconds = f"{sum(times['ours'].processor) / len(times['ours'].processor):.1f}"
        lines.append([str(prompt), str(answer), str(samples), seconds, *map(spread, against.values())])
        print(lines[-1], flush=True)
    header = ["prompt, tokens", "answer", "answers", "ours, s", "prompt read each time / ours", "whole logits / ours"]
    print(f"\n{table(header, lines)}")
    record("answers", vars(arguments), results, arguments.out)


if __name__ == "__main__":
    main()
