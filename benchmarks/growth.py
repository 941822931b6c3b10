"""How time and memory grow: with rows, cached tokens, the length of sequences and the vocabulary.

Each measurement is a process of its own: the processor time of it and its workers, and its peak of resident memory less
what it held when the libraries were loaded.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from harness import Size, child, make_model, make_rows, make_tokenizer, peak_bytes, record, resident_bytes, table

PARTS = ("rows", "tokens", "length", "vocabulary")
HIDDEN = 64


def processor_seconds() -> float:
    """Return the processor time of this process and of those that it has waited for."""
    return sum(os.times()[:4])


def write_rows(path: Path, count: int, kind: str) -> None:
    """Write short sums, as text or as chats."""
    with path.open("w") as file:
        for n in range(count):
            left, right = n * 7919 % 1000, n * 104_729 % 1000
            prompt: Any = f"{left}+{right}="
            completion: Any = f"{left + right}"
            if kind == "chat":
                prompt = [{"role": "user", "content": prompt}]
                completion = [{"role": "assistant", "content": completion}]
            file.write(json.dumps({"prompt": prompt, "completion": completion}) + "\n")


def prepare_rows(how: str, path: str, tokenizer: str, processes: int) -> dict[str, Any]:
    """Prepare rows as a table or as a stream; return rows, seconds and bytes."""
    from transformers import AutoTokenizer
    from trl.trainer import sft_trainer  # noqa: F401  # seconds that are not the rows'

    from ballast.data import PrepareOptions, load_rows, prepare

    tok = AutoTokenizer.from_pretrained(tokenizer)
    options = PrepareOptions(max_length=1024, num_proc=processes if processes > 1 else None)
    before, started, wall = resident_bytes(), processor_seconds(), time.perf_counter()
    if how == "stream":
        from ballast.data import prepare_stream, read_chunks

        made = prepare_stream(read_chunks(path), tok, options, buffer=10_000)
        rows = sum(1 for _ in zip(range(sum(1 for _ in open(path))), made.dataset, strict=False))  # noqa: SIM115
    else:
        loaded = load_rows(path)
        middle, middle_wall = processor_seconds(), time.perf_counter()
        rows = len(prepare(loaded, tok, options).dataset)
        return {
            "rows": rows,
            "load": middle - started,
            "seconds": processor_seconds() - middle,
            "wall": time.perf_counter() - middle_wall,
            "bytes": peak_bytes() - before,
        }
    return {
        "rows": rows,
        "load": 0.0,
        "seconds": processor_seconds() - started,
        "wall": time.perf_counter() - wall,
        "bytes": peak_bytes() - before,
    }


def write_cache(path: Path, tokens: int, row: int) -> None:
    """Write a cache of random values."""
    import numpy as np

    from ballast.reference import CacheKey
    from ballast.reference.writer import CacheWriter

    generator, key = np.random.default_rng(0), CacheKey(model="m", dtype="float32", tokenizer="t")
    with CacheWriter(path, key, shard_seconds=1e9) as writer:
        for _ in range(tokens // row):
            values = {name: generator.random(row, dtype=np.float32) for name in key.fields}
            writer.add(generator.bytes(16).hex(), values)


def open_cache(path: str) -> dict[str, Any]:
    """Open a cache, with and without its checksums."""
    from ballast.reference import ReferenceCache

    before, found = resident_bytes(), {}
    for name, verify in (("mapped", False), ("verified", True)):
        started = processor_seconds()
        cache = ReferenceCache.open(path, verify=verify)
        found[name] = processor_seconds() - started
        found[f"{name} bytes"] = peak_bytes() - before
    return {**found, "rows": len(cache), "tokens": cache.tokens}


def step(objective: str, length: int, vocab: int) -> dict[str, Any]:
    """Train on one sequence; return seconds and bytes of the second of two steps."""
    import ballast

    torch.set_num_threads(1)
    size = Size(hidden=HIDDEN, layers=2, heads=4, vocab=vocab, rows=1, tokens=length)
    folder = tempfile.mkdtemp()
    args = ballast.TrainingConfig(
        output_dir=folder,
        max_length=None,
        max_steps=1,
        per_device_train_batch_size=1,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        gradient_checkpointing=False,
    )
    trainer = ballast.Trainer(
        make_model(size),
        args,
        train_dataset=make_rows(2, lambda _: length, vocab),
        processing_class=make_tokenizer(vocab),
        objective=objective,
    )
    rows = [trainer.data_collator([dict(row)]) for row in trainer.train_dataset]
    trainer.model.train()
    short = {name: value[:, :64].clone() for name, value in rows[0].items()}
    trainer.compute_loss(trainer.model, short).backward()
    before, started = resident_bytes(), processor_seconds()
    trainer.compute_loss(trainer.model, rows[1]).backward()
    found = {"seconds": processor_seconds() - started, "bytes": peak_bytes() - before}
    shutil.rmtree(folder)
    return found


def run(*arguments: Any) -> dict[str, Any]:
    return child(__file__, "--one", *map(str, arguments))


def mib(count: float) -> str:
    return f"{count / 2**20:,.0f}"


def of_rows(counts: list[int], tokenizer: str, folder: Path) -> list[dict[str, Any]]:
    found = []
    for kind in ("text", "chat"):
        for count in counts:
            write_rows(folder / "rows.jsonl", count, kind)
            os.environ["BALLAST_CACHE"] = str(folder / f"cache-{kind}-{count}")
            for name, how, processes in (("prepared", "table", 2), ("again", "table", 1), ("stream", "stream", 1)):
                made = run("rows", how, folder / "rows.jsonl", tokenizer, processes)
                found.append({"kind": kind, "how": name, **made})
            shutil.rmtree(os.environ["BALLAST_CACHE"], ignore_errors=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=[*PARTS])
    parser.add_argument("--rows", nargs="+", type=int, default=[10_000, 100_000])
    parser.add_argument("--tokens", nargs="+", type=int, default=[1_000_000, 10_000_000])
    parser.add_argument("--lengths", nargs="+", type=int, default=[2048, 8192, 32_768])
    parser.add_argument("--vocabularies", nargs="+", type=int, default=[32_768, 151_936])
    parser.add_argument("--objectives", nargs="+", default=["sft", "prift-mass"])
    parser.add_argument("--tokenizer", help="a folder with a tokenizer that has a chat template")
    parser.add_argument("--one", nargs="+", help="measure once in this process, as JSON")
    parser.add_argument("--out", type=Path, help="write the record here, as JSON")
    given = parser.parse_args()
    if given.one:
        kinds = {"rows": prepare_rows, "tokens": open_cache, "step": step}
        values = [int(one) if one.isdecimal() else one for one in given.one[1:]]
        print(json.dumps(kinds[given.one[0]](*values)))
        return
    folder, results = Path(tempfile.mkdtemp()), {}
    if "rows" in given.parts:
        tokenizer = given.tokenizer or _chat_tokenizer(folder / "tokenizer")
        results["rows"] = of_rows(given.rows, tokenizer, folder)
        header = ["rows", "reading, s", "preparing, s", "rows a second and process", "memory, MiB"]
        lines = [
            [
                f"{one['rows']:,} {one['kind']}, {one['how']}",
                f"{one['load']:.1f}",
                f"{one['seconds']:.1f}",
                f"{one['rows'] / one['seconds']:,.0f}",
                mib(one["bytes"]),
            ]
            for one in results["rows"]
        ]
        print(table(header, lines), "\n")
    if "tokens" in given.parts:
        results["tokens"] = []
        for tokens in given.tokens:
            write_cache(folder / f"{tokens}", tokens, 20)
            results["tokens"].append(run("tokens", folder / f"{tokens}"))
        header = ["cached tokens", "rows", "mapped, s", "every byte verified, s", "memory, MiB", "verified, MiB"]
        lines = [
            [
                f"{one['tokens']:,}",
                f"{one['rows']:,}",
                f"{one['mapped']:.2f}",
                f"{one['verified']:.2f}",
                mib(one["mapped bytes"]),
                mib(one["verified bytes"]),
            ]
            for one in results["tokens"]
        ]
        print(table(header, lines), "\n")
    steps = [(length, given.vocabularies[0]) for length in given.lengths] if "length" in given.parts else []
    steps += [(given.lengths[0], vocab) for vocab in given.vocabularies] if "vocabulary" in given.parts else []
    if steps:
        results["steps"] = [
            {"objective": name, "length": length, "vocab": vocab, **run("step", name, length, vocab)}
            for name in given.objectives
            for length, vocab in dict.fromkeys(steps)
        ]
        header = ["objective, tokens × vocabulary", "step, s", "memory, MiB", "logits alone would be, MiB"]
        lines = [
            [
                f"`{one['objective']}`, {one['length']:,} × {one['vocab']:,}",
                f"{one['seconds']:.1f}",
                mib(one["bytes"]),
                mib(4 * one["length"] * one["vocab"]),
            ]
            for one in results["steps"]
        ]
        print(table(header, lines), "\n")
    record("growth", vars(given), results, given.out)
    shutil.rmtree(folder)


def _chat_tokenizer(folder: Path) -> str:
    """Save a tokenizer of characters with a plain chat template."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<eos>", "<unk>", *"0123456789+=<>abcdefghijklmnopqrstuvwxyz\n "]
    backend = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    made = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")
    made.chat_template = (
        "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}{{ eos_token }}\n{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    made.save_pretrained(folder)
    return str(folder)


if __name__ == "__main__":
    main()
