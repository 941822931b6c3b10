"""Time and memory of a whole optimiser step: ballast's objectives against TRL's own losses.

Every trainer runs its own `.train()` in a thread and stops after each step until it is called again, so the steps are
interleaved: A B C A B C … A step's time is all of it: data, forward, loss, metrics, backward, clipping, optimiser, log.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import statistics
import tempfile
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, TrainerCallback

from harness import (
    SIZES,
    Size,
    Times,
    child,
    interleaved,
    make_model,
    make_rows,
    make_tokenizer,
    peak_bytes,
    ratios,
    record,
    resident_bytes,
    spread,
    summed,
    table,
)

CASES: dict[str, dict[str, Any]] = {
    "TRL nll": {"loss_type": "nll"},
    "TRL dft": {"loss_type": "dft"},
    "sft": {"objective": "sft"},
    "dft": {"objective": "dft"},
    "prift-mass, cache": {"objective": "prift-mass", "reference": "cache"},
    "prift-prob, cache": {"objective": "prift-prob", "reference": "cache"},
    "prift-mass, live": {"objective": "prift-mass", "reference": "model"},
    "eksft, live": {"objective": "eksft", "reference": "model"},
    "prift-mass, second model and all logits": {"plain": "prift-mass"},
    "eksft, second model and all logits": {"plain": "eksft"},
    "eaft": {"objective": "eaft"},
    "eaft, all logits": {"plain": "eaft"},
    "gem": {"objective": "gem"},
    "gem, all logits": {"plain": "gem"},
    "ift": {"objective": "ift"},
    "TRL nll, LoRA": {"loss_type": "nll", "lora": True},
    "eksft, adapter off, LoRA": {"objective": "eksft", "reference": "adapter-off", "lora": True},
}
GROUP_SIZE = 4
PLAIN, PLAIN_LORA, OWN = "TRL nll", "TRL nll, LoRA", "sft"
MEMORY_CASES = (
    PLAIN,
    "sft",
    "prift-mass, cache",
    "prift-mass, live",
    "prift-mass, second model and all logits",
    "eksft, live",
    "eksft, second model and all logits",
    "eaft",
    "eaft, all logits",
    "gem",
    "gem, all logits",
    "ift",
)


def make_trainer(
    case: dict[str, Any], size: Size, trained: float, steps: int, folder: Path, logging_steps: int = 1
) -> Any:
    """Return a trainer ready to train, its cached columns scored beforehand."""
    rows = make_rows(steps * size.rows, lambda _: size.tokens, size.vocab, trained)
    for column in case.get("columns", ()):
        rows = rows.add_column(column, [1 + index % 2 for index in range(len(rows))])
    tokenizer, model = make_tokenizer(size.vocab), make_model(size)
    parts = {"train_dataset": rows, "processing_class": tokenizer, "peft_config": _lora() if "lora" in case else None}
    settings = {
        "output_dir": str(folder / "run"),
        "max_steps": steps,
        "per_device_train_batch_size": size.rows,
        "learning_rate": 1e-4,
        "gradient_checkpointing": False,
        "bf16": False,
        "logging_steps": logging_steps,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "max_length": size.tokens,
    }
    if "loss_type" in case:
        from trl import SFTConfig, SFTTrainer

        trainer = SFTTrainer(model, SFTConfig(**settings, loss_type=case["loss_type"]), **parts)
    elif "plain" in case:
        from trl import SFTConfig

        from plain import PlainTrainer

        trainer = PlainTrainer(model, SFTConfig(**settings), objective=case["plain"], **parts)
    else:
        import ballast

        reference = case.get("reference")
        if reference == "cache":
            reference = str(_score(model, rows, tokenizer, folder / "cache"))
        args = ballast.TrainingConfig(**settings, objective=case["objective"], reference=reference)
        if "groups" in case:
            args.per_device_train_batch_size = size.rows // GROUP_SIZE
            parts |= {"groups": _groups(rows), "train_dataset": None}
        trainer = ballast.Trainer(model, args, **parts)
    trainer.remove_callback(PrinterCallback)
    return trainer


def _groups(rows: Any) -> Any:
    """Return the same rows as answers, in groups of an expert's and three own ones, of which the first is right."""
    from ballast.groups import Group, GroupOptions, Member
    from ballast.training.groups import StoredGroups

    made = [
        Member(tuple(row["input_ids"]), 1, "own", float(index % GROUP_SIZE < 2), "") for index, row in enumerate(rows)
    ]
    made = [replace(one, origin="own" if index % GROUP_SIZE else "expert") for index, one in enumerate(made)]
    groups = [Group(row, tuple(made[row * GROUP_SIZE :][:GROUP_SIZE])) for row in range(len(made) // GROUP_SIZE)]
    return StoredGroups(GroupOptions(file="in memory"), groups)


def _lora() -> Any:
    from peft import LoraConfig

    return LoraConfig(r=8, target_modules="all-linear", exclude_modules=["lm_head"])


def _score(model: Any, rows: Any, tokenizer: Any, path: Path) -> Path:
    from ballast.data import PrepareOptions, prepare
    from ballast.reference import CacheKey, score_rows

    ready = prepare(rows, tokenizer, PrepareOptions())
    score_rows(model, ready.dataset, path, CacheKey.of(model, tokenizer), progress=False)
    return path


class Stepper(TrainerCallback):
    """Runs a trainer one step at a time: `step()` returns when the trainer has ended one more step."""

    def __init__(self, trainer: Any) -> None:
        self._go, self._done = threading.Event(), threading.Event()
        self._failure: BaseException | None = None
        trainer.add_callback(self)
        self._thread = threading.Thread(target=self._train, args=(trainer.train, torch.get_num_threads()), daemon=True)
        self._thread.start()
        self._wait()

    def _train(self, train: Callable[[], Any], threads: int) -> None:
        torch.set_num_threads(threads)
        try:
            train()
        except BaseException as failure:
            self._failure = failure
        self._done.set()

    def _wait(self) -> None:
        self._done.wait()
        self._done.clear()
        if self._failure is not None:
            raise self._failure

    def step(self) -> None:
        self._go.set()
        self._wait()

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._pause()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._pause()

    def _pause(self) -> None:
        self._done.set()
        self._go.wait()
        self._go.clear()


def time_steps(
    names: list[str], size: Size, trained: float, rounds: int, warmup: int, *, period: int = 1, logging_steps: int = 1
) -> dict[str, Times]:
    """Return the seconds of each step by case; what a step does for those after it is done for whole periods."""
    with tempfile.TemporaryDirectory() as scratch:
        steppers = {}
        for index, name in enumerate(names):
            # One step more than are asked for: the last one is followed by the end of training.
            steps = period * math.ceil((rounds + warmup + 1) / period)
            trainer = make_trainer(CASES[name], size, trained, steps, Path(scratch) / str(index), logging_steps)
            steppers[name] = Stepper(trainer).step
        return interleaved(steppers, rounds, warmup)


def measure_memory(name: str, size: Size, trained: float) -> dict[str, int]:
    """Train three steps in this process; return what the trainer adds to memory at its peak, and all weights alive."""
    with tempfile.TemporaryDirectory() as scratch:
        # The libraries are loaded and warm before the first look.
        make_trainer(CASES[PLAIN], SIZES["small"], 1.0, 1, Path(scratch) / "first").train()
        gc.collect()
        before = resident_bytes()
        trainer = make_trainer(CASES[name], size, trained, 3, Path(scratch) / "second")
        trainer.train()
        alive = {
            item.untyped_storage().data_ptr(): item.untyped_storage().nbytes()
            for item in gc.get_objects()
            if isinstance(item, torch.nn.Parameter)
        }
        own = sum(weight.nbytes for weight in trainer.model.parameters())
        return {"peak": peak_bytes() - before, "weights_alive": sum(alive.values()), "weights_of_the_model": own}


def report_times(names: list[str], times: dict[str, Times]) -> tuple[str, dict[str, Any]]:
    """Return the table and the ratios to TRL's nll and to ballast's sft."""
    lines, results = [], {}
    for name in names:
        base = PLAIN_LORA if "lora" in CASES[name] else PLAIN
        whole = partial(summed, period=CASES[name].get("period", 1))
        against = ratios(whole(times[name]), whole(times[base if base in times else names[0]]))
        results[name] = {"against": base, "ratio": against, "seconds": times[name]}
        milliseconds = f"{1000 * statistics.median(times[name].processor):.0f}"
        to_sft = "–"
        if OWN in times and base == PLAIN:
            results[name]["ratio_to_sft"] = ratios(whole(times[name]), whole(times[OWN]))
            to_sft = spread(results[name]["ratio_to_sft"]["processor"])
        lines.append([name, milliseconds, spread(against["processor"]), spread(against["wall"]), to_sft])
    head = ["case", "processor ms", "ratio to TRL nll, processor time", "wall time", "to sft, processor time"]
    return table(head, lines), results


def report_memory(arguments: argparse.Namespace, size_name: str) -> tuple[str, dict[str, Any]]:
    lines, results = [], {}
    for name in filter(arguments.cases.__contains__, MEMORY_CASES):
        options = ["--size", size_name, "--threads", str(arguments.threads), "--trained", str(arguments.trained)]
        runs = [child(__file__, *options, "--memory-of", name) for _ in range(arguments.memory_runs)]
        best = min(runs, key=lambda run: run["peak"])
        results[name] = {"runs": runs}
        mebibytes = [f"{best[key] / 2**20:.0f}" for key in ("peak", "weights_alive", "weights_of_the_model")]
        lines.append([name, *mebibytes])
    return table(["case", "peak, MiB above the start", "weights alive, MiB", "model, MiB"], lines), results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=[*SIZES], nargs="+", default=["small", "middle"])
    parser.add_argument("--cases", choices=[*CASES], nargs="+", default=[*CASES])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--trained", type=float, default=1.0, help="share of each row that is trained")
    parser.add_argument("--memory-runs", type=int, default=1, help="processes per case; 0 leaves memory out")
    parser.add_argument("--memory-of", choices=[*CASES], help="measure one case's memory in this process, as JSON")
    parser.add_argument("--out", type=Path, help="write the record here, as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.memory_of:
        print(json.dumps(measure_memory(arguments.memory_of, SIZES[arguments.size[0]], arguments.trained)))
        return
    results: dict[str, Any] = {}
    for name in arguments.size:
        times = time_steps(arguments.cases, SIZES[name], arguments.trained, arguments.rounds, arguments.warmup)
        shown, results[name] = report_times(arguments.cases, times)
        print(f"\n{name}: {SIZES[name]}, trained share {arguments.trained}\n\n{shown}", flush=True)
    if arguments.memory_runs:
        shown, results["memory"] = report_memory(arguments, arguments.size[-1])
        print(f"\nmemory, {arguments.size[-1]}\n\n{shown}")
    record("step", {**vars(arguments), "sizes": {name: SIZES[name] for name in arguments.size}}, results, arguments.out)


if __name__ == "__main__":
    main()
