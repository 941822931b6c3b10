"""Sampling several answers of a prompt: ours against `generate` and `generate_batch`, and bare forwards.

First answers of a fixed length, of any model. Then the lab's base on its problems, where answers end by themselves: the
same answers, drawn with the same numbers, by our loop and inside of `generate`.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from harness import interleaved, ratios, record, spread, table

Cases = dict[str, Callable[[], Any]]


def fixed_cases(
    model: Any, prompt: tuple[int, ...], new: int, samples: int, batch: bool
) -> dict[str, Callable[[], Any]]:
    """Return the cases: answers of `new` tokens, whatever they hold."""
    from transformers import ContinuousBatchingConfig, DynamicCache, GenerationConfig

    from ballast.evaluation.decoding import Reader, write
    from ballast.evaluation.drawing import Draw

    ids = torch.tensor([prompt])
    sampled = {"max_new_tokens": new, "do_sample": True, "top_k": 0, "num_return_sequences": samples, "pad_token_id": 0}
    # What it would take otherwise is most of the machine's memory.
    paged = ContinuousBatchingConfig(
        num_blocks=samples * (len(prompt) + new) // 32 + 8, page_size=32, max_batch_tokens=max(256, len(prompt))
    )

    def generate() -> None:
        model.generation_config = GenerationConfig(**sampled)
        assert model.generate(input_ids=ids, attention_mask=torch.ones_like(ids)).shape[1] == len(prompt) + new

    def generate_batch() -> None:
        found = model.generate_batch(
            [list(prompt)],
            generation_config=GenerationConfig(**sampled, eos_token_id=-1),
            continuous_batching_config=paged,
        )
        assert sum(len(one.generated_tokens) for one in found.values()) == samples * new

    def ours() -> None:
        draw = Draw([(0, sample) for sample in range(samples)], new, 1.0, 1.0)
        with torch.no_grad():
            found = write(Reader(model, 0), [prompt] * samples, new, draw, lambda row, token: False)
        assert sum(map(len, found)) == samples * new

    def forwards() -> None:
        cache = DynamicCache(config=model.config)
        with torch.no_grad():
            model(ids, past_key_values=cache, logits_to_keep=1)
            cache.batch_repeat_interleave(samples)
            for _ in range(new - 1):
                model(ids[:, :1].expand(samples, 1), past_key_values=cache)

    cases = {"generate": generate, "ours": ours, "forwards": forwards}
    return {**cases, "generate_batch": generate_batch} if batch else cases


def step_cases(model: Any, prompt: tuple[int, ...], samples: int, room: int) -> Cases:
    """Return the cases: one more token of every row, with a cache of each kind; `room` calls of each at most."""
    from transformers import DynamicCache, StaticCache

    from ballast.evaluation.decoding import Reader

    ids, tokens = torch.tensor([prompt]), torch.full((samples,), 17)
    grown, fixed = DynamicCache(config=model.config), StaticCache(config=model.config, max_cache_len=len(prompt) + room)
    reader = Reader(model, 0)
    with torch.no_grad():
        model(ids, past_key_values=grown, logits_to_keep=1)
        grown.batch_repeat_interleave(samples)
        model(ids.expand(samples, -1), past_key_values=fixed, logits_to_keep=1)
        reader.read([prompt])
        reader.spread(torch.zeros(samples, dtype=torch.long), room)

    def step(cache: Any) -> None:
        with torch.no_grad():
            model(tokens[:, None], past_key_values=cache)

    def ours() -> None:
        with torch.no_grad():
            reader.step(tokens)

    return {"dynamic": lambda: step(grown), "static": lambda: step(fixed), "ours": ours}


def lab_cases(rows: int, samples: int) -> tuple[Cases, int]:
    """Return the cases where answers end by themselves, and their tokens in all."""
    from unittest import mock

    from transformers import AutoModelForCausalLM, AutoTokenizer

    from ballast.evaluation import GenerationOptions, decoding, generate
    from ballast.lab import base_path, problems

    model = AutoModelForCausalLM.from_pretrained(base_path(), dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(base_path())
    prompts = [row["prompt"] for row in problems(0, rows, terms=(2, 3, 4, 5, 6))]
    options = GenerationOptions(max_new_tokens=128, samples=samples, temperature=1.0 if samples > 1 else 0.0)

    def ours() -> list[list[tuple[int, ...]]]:
        return [[one.ids for one in some] for some in generate(model, tokenizer, prompts, options)]

    def theirs() -> list[list[tuple[int, ...]]]:
        with mock.patch.object(decoding, "spreads", return_value=False):
            return ours()

    answers = ours()
    if answers != theirs():
        raise SystemExit("our loop and `generate` give different answers")
    return {"generate": theirs, "ours": ours}, sum(len(ids) for some in answers for ids in some)


def fixed_table(model: Any, arguments: argparse.Namespace, results: dict[str, Any]) -> str:
    """Return the table of answers of a fixed length; every time goes into `results`."""
    others = ["generate", "forwards", *(["generate_batch"] if arguments.batch else [])]
    draw, lines = torch.Generator().manual_seed(0), []
    for length in arguments.lengths:
        prompt = tuple(torch.randint(10, model.config.vocab_size - 10, (length,), generator=draw).tolist())
        for samples in arguments.samples:
            cases = fixed_cases(model, prompt, arguments.new, samples, arguments.batch)
            times = interleaved(cases, arguments.rounds, warmup=arguments.warmup)
            against = {name: ratios(times[name], times["ours"])["processor"] for name in others}
            results[f"{length}, {samples}"] = {"seconds": times, "against": against}
            milliseconds = 1000 * statistics.median(times["ours"].processor)
            lines.append([length, samples, f"{milliseconds:.0f}", *(spread(against[name]) for name in others)])
            print(lines[-1], flush=True)
    return table(["prompt, tokens", "samples", "ours, ms", *(f"{name} / ours" for name in others)], lines)


def step_table(model: Any, arguments: argparse.Namespace, results: dict[str, Any]) -> str:
    """Return the table of single steps; every time goes into `results`."""
    lines = []
    for length in arguments.lengths:
        prompt = tuple(range(10, 110)) * (length // 100 + 1)
        for samples in arguments.samples:
            cases = step_cases(model, prompt[:length], samples, arguments.rounds + arguments.warmup)
            times = interleaved(cases, arguments.rounds, warmup=arguments.warmup)
            against = [spread(ratios(times[name], times["ours"])["processor"]) for name in ("dynamic", "static")]
            results[f"step {length}, {samples}"] = times
            lines.append([length, samples, f"{1000 * statistics.median(times['ours'].processor):.1f}", *against])
            print(lines[-1], flush=True)
    return table(["positions", "rows", "ours, ms", "dynamic / ours", "static / ours"], lines)


def lab_table(arguments: argparse.Namespace, results: dict[str, Any]) -> str:
    """Return the table of the lab's base; every time goes into `results`."""
    lines = []
    for samples in arguments.samples:
        cases, tokens = lab_cases(arguments.rows, samples)
        times = interleaved(cases, arguments.rounds, warmup=arguments.warmup)
        against = ratios(times["generate"], times["ours"])["processor"]
        results[f"lab, {samples}"] = {"seconds": times, "tokens": tokens, "against": against}
        lines.append([samples, tokens, f"{1000 * statistics.median(times['ours'].processor):.0f}", spread(against)])
        print(lines[-1], flush=True)
    return table([f"samples of {arguments.rows} problems", "tokens", "ours, ms", "generate / ours"], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", help="folder of a model; none: the lab alone")
    parser.add_argument("--lengths", type=int, nargs="+", default=[32, 128, 512], help="tokens of the prompt")
    parser.add_argument("--samples", type=int, nargs="+", default=[1, 8, 16])
    parser.add_argument("--new", type=int, default=32, help="tokens of an answer")
    parser.add_argument("--rows", type=int, default=32, help="problems of the lab")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warmup", type=int, default=0)
    parser.add_argument("--steps", action="store_true", help="single steps with caches of three kinds, instead")
    parser.add_argument("--batch", action="store_true", help="with `generate_batch`")
    parser.add_argument("--out", type=Path, help="write the record here, as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    if arguments.model is None:
        print(f"\n{lab_table(arguments, results)}")
    else:
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).eval()
        made = step_table if arguments.steps else fixed_table
        print(f"\n{made(model, arguments, results)}")
    record("sampling", vars(arguments), results, arguments.out)


if __name__ == "__main__":
    main()
