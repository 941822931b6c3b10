"""What the benchmarks share: models and rows of random content, interleaved timing, tables and records."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from datasets import disable_progress_bars

disable_progress_bars()


@dataclass(frozen=True)
class Size:
    """A Llama of random weights, and the batches it is measured with."""

    hidden: int
    layers: int
    heads: int
    vocab: int
    rows: int
    tokens: int
    tied: bool = True


SIZES = {
    # The size of stories260K: Python and dispatch are most of a step.
    "small": Size(hidden=64, layers=5, heads=8, vocab=512, rows=8, tokens=128),
    # The LM head is most of the arithmetic, as with the small models of today's vocabularies.
    "middle": Size(hidden=256, layers=4, heads=4, vocab=32_000, rows=8, tokens=128),
}


def make_model(size: Size, seed: int = 0) -> Any:
    """Return a randomly initialised Llama in float32; the same weights for the same seed."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=size.vocab,
        hidden_size=size.hidden,
        intermediate_size=size.hidden * 8 // 3,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        max_position_embeddings=2 * size.tokens,
        tie_word_embeddings=size.tied,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(seed)
    return LlamaForCausalLM(config)


def make_tokenizer(vocab: int) -> Any:
    """Return a tokenizer with one word per id; the rows are tokenised already, it only names pad and end."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<bos>", "<eos>", "<unk>", *(f"w{index}" for index in range(4, vocab))]
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )


def make_rows(count: int, length: Callable[[Any], int], vocab: int, trained: float = 1.0, seed: int = 0) -> Any:
    """Return a data set of random tokens; `length(generator)` draws a row's length, its last share is trained."""
    import numpy as np
    from datasets import Dataset

    generator = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        ids = generator.integers(4, vocab, length(generator)).tolist()
        prompt = round(len(ids) * (1 - trained))
        rows.append({"input_ids": ids, "labels": [-100] * prompt + ids[prompt:]})
    return Dataset.from_list(rows)


@dataclass(frozen=True)
class Times:
    """Seconds of each round: by the clock on the wall, and of processor time."""

    wall: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)


def summed(times: Times, period: int) -> Times:
    """Return the sums over each full period of rounds, for cases that do the work of several rounds in one of them."""
    starts = range(0, len(times.processor) - period + 1, period)
    return Times(*([sum(one[start : start + period]) for start in starts] for one in (times.wall, times.processor)))


def interleaved(cases: Mapping[str, Callable[[], Any]], rounds: int, warmup: int = 1) -> dict[str, Times]:
    """Time every case once per round, in turn, so that a slow spell of the machine meets all of them.

    With one thread, processor time is the steadier of the two where other programs share the cores: it leaves out
    the time spent waiting for one. Warm-up rounds are left out.
    """
    times = {name: Times() for name in cases}
    for turn in range(warmup + rounds):
        for name, case in cases.items():
            started = time.perf_counter(), time.process_time()
            case()
            ended = time.perf_counter(), time.process_time()
            if turn >= warmup:
                times[name].wall.append(ended[0] - started[0])
                times[name].processor.append(ended[1] - started[1])
    return times


def ratio(numerator: list[float], denominator: list[float]) -> dict[str, float]:
    """Return the median, least and greatest of the ratios within each round."""
    ratios = [above / below for above, below in zip(numerator, denominator, strict=True)]
    return {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}


def ratios(above: Times, below: Times) -> dict[str, dict[str, float]]:
    """Return the ratios of wall time and of processor time."""
    return {"wall": ratio(above.wall, below.wall), "processor": ratio(above.processor, below.processor)}


def spread(value: Mapping[str, float]) -> str:
    """Return a ratio for a table: median (least–greatest)."""
    return f"{value['median']:.2f}× ({value['min']:.2f}–{value['max']:.2f})"


def table(header: list[str], rows: list[list[Any]]) -> str:
    """Return a Markdown table; every column but the first is aligned to the right."""
    lines = [header, ["---", *("---:" for _ in header[1:])], *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def child(script: str, *arguments: str) -> dict[str, Any]:
    """Run a script in a process of its own and return the JSON object that its last line holds."""
    command = [sys.executable, script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command[1:])} failed:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def peak_bytes() -> int:
    """Return the greatest resident memory of this process so far.

    Linux's own mark begins with the program; the one of `getrusage` is handed down by the process that started it.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def resident_bytes() -> int:
    """Return the resident memory of this process now; Linux alone knows it, elsewhere it is the peak."""
    status = Path("/proc/self/statm")
    if not status.exists():
        return peak_bytes()
    return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def record(name: str, settings: Mapping[str, Any], results: Any, path: Path | None) -> None:
    """Write a run's record as JSON: what was measured, with which versions, and the figures."""
    packages = ("torch", "transformers", "trl", "peft", "accelerate", "datasets")
    content = {
        "benchmark": name,
        "versions": {"python": sys.version.split()[0], **{package: version(package) for package in packages}},
        "machine": {"threads": torch.get_num_threads(), "cores": os.cpu_count(), "device": "cpu"},
        "dtype": "float32",
        "bf16": False,
        "gradient_checkpointing": False,
        "settings": dict(settings),
        "results": results,
    }
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=2, ensure_ascii=False, default=_plain) + "\n")


def _plain(value: Any) -> Any:
    return asdict(value) if is_dataclass(value) else str(value)
