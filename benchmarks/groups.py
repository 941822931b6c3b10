"""GFT: where a step's time goes on the lab, and its training part against TRL's GRPO on the same answers.

The training part is loss, metrics and backward of one micro-batch of answers; optimiser and sampling, the same work for
both, are left out. Own answers alone, tau = 0: then the two have the same gradient, which is checked first.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback

from harness import SIZES, Size, interleaved, make_model, make_tokenizer, ratios, record, spread, table

GROUP_SIZE = 4
SETTINGS = {
    "learning_rate": 2e-4,
    "gradient_checkpointing": False,
    "bf16": False,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": [],
    "disable_tqdm": True,
    "use_cpu": True,
}


def answers(size: Size) -> list[tuple[list[int], list[int], float]]:
    """Return prompts, answers of different lengths and advantages, of random tokens."""
    import numpy as np

    draw = np.random.default_rng(0)
    made = []
    for _ in range(size.rows):
        prompt = draw.integers(4, size.vocab, size.tokens // 4).tolist()
        length = int(draw.integers(size.tokens // 4, 3 * size.tokens // 4 + 1))
        made.append((prompt, draw.integers(4, size.vocab, length).tolist(), float(draw.normal())))
    return made


def our_step(size: Size, folder: Path) -> tuple[Any, Callable[[], None]]:
    """Return the model and what computes its gradient, as `ballast.Trainer` does it."""
    from datasets import Dataset

    import ballast
    from ballast.data import Collator

    rows = Dataset.from_list([{"prompt": "w4 w5", "completion": "w6", "answer": "w6"}] * size.rows)
    trainer = ballast.Trainer(
        make_model(size),
        ballast.TrainingConfig(output_dir=str(folder), max_steps=1, max_length=None, **SETTINGS),
        train_dataset=rows,
        processing_class=make_tokenizer(size.vocab),
        objective={"name": "gft", "tau": 0},
        groups={"verifier": "exact", "expert": 0, "own": GROUP_SIZE, "max_new_tokens": 8},
    )
    examples = [
        {
            "input_ids": prompt + answer,
            "labels": [-100] * len(prompt) + answer,
            "advantage": [advantage] * len(prompt + answer),
            "origin": [2.0] * len(prompt + answer),
        }
        for prompt, answer, advantage in answers(size)
    ]
    batch = Collator(pad_token_id=0, columns=("advantage", "origin"))(examples)
    batch["group"] = torch.arange(size.rows) // GROUP_SIZE
    count = trainer.step_count([batch], torch.device("cpu"))
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()

    def step() -> None:
        trainer.model.zero_grad()
        trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=count).backward()

    return trainer.model, step


def their_step(size: Size, folder: Path) -> tuple[Any, Callable[[], None]]:
    """Return the same for `trl.GRPOTrainer` with loss_type dapo, beta 0, one iteration."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    trainer = GRPOTrainer(
        make_model(size),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=GRPOConfig(
            output_dir=str(folder),
            max_steps=1,
            per_device_train_batch_size=size.rows,
            num_generations=GROUP_SIZE,
            loss_type="dapo",
            beta=0.0,
            **SETTINGS,
        ),
        train_dataset=Dataset.from_list([{"prompt": "w4 w5"}] * size.rows),
        processing_class=make_tokenizer(size.vocab),
    )
    made = answers(size)
    left, right = (max(len(one[place]) for one in made) for place in (0, 1))
    inputs = {
        "prompt_ids": torch.tensor([[0] * (left - len(prompt)) + prompt for prompt, _, _ in made]),
        "prompt_mask": torch.tensor([[0] * (left - len(prompt)) + [1] * len(prompt) for prompt, _, _ in made]),
        "completion_ids": torch.tensor([answer + [0] * (right - len(answer)) for _, answer, _ in made]),
        "completion_mask": torch.tensor([[1] * len(answer) + [0] * (right - len(answer)) for _, answer, _ in made]),
        "advantages": torch.tensor([advantage for _, _, advantage in made]),
        "num_items_in_batch": torch.tensor(float(sum(len(answer) for _, answer, _ in made))),
    }
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()

    def step() -> None:
        trainer.model.zero_grad()
        trainer._compute_loss(trainer.model, inputs).backward()

    return trainer.model, step


def against_grpo(name: str, rounds: int, warmup: int, scratch: Path) -> tuple[list[Any], dict[str, Any]]:
    """Return a line of the table, and the times."""
    (ours, our), (theirs, their) = our_step(SIZES[name], scratch / "ours"), their_step(SIZES[name], scratch / "theirs")
    our()
    their()
    pairs = zip(ours.parameters(), theirs.parameters(), strict=True)
    difference = max(float((one.grad - other.grad).abs().max()) for one, other in pairs)
    largest = max(float(one.grad.abs().max()) for one in ours.parameters())
    if difference > 1e-4 * largest:
        raise SystemExit(f"{name}: the gradients differ by {difference:.2e}, the largest is {largest:.2e}")
    times = interleaved({"gft": our, "grpo": their}, rounds, warmup)
    against = ratios(times["gft"], times["grpo"])
    milliseconds = (f"{1000 * statistics.median(times[case].processor):.0f}" for case in ("gft", "grpo"))
    return [name, *milliseconds, spread(against["processor"]), spread(against["wall"])], {
        "ratio": against,
        "times": times,
    }


def on_the_lab(steps: int, prompts: int, own: int, scratch: Path) -> dict[str, float]:
    """Return the share of sampling, scoring and all the rest in the seconds of some steps on the lab."""
    import datasets
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import ballast
    from ballast.lab import base_path, split

    trainer = ballast.Trainer(
        AutoModelForCausalLM.from_pretrained(base_path(), dtype=torch.float32),
        ballast.TrainingConfig(
            output_dir=str(scratch), max_steps=steps, per_device_train_batch_size=prompts, **SETTINGS
        ),
        train_dataset=datasets.Dataset.from_list(split("train")),
        processing_class=AutoTokenizer.from_pretrained(base_path()),
        objective="gft",
        groups={"verifier": "ballast.lab.arithmetic:verify", "own": own, "max_new_tokens": 64},
    )
    trainer.remove_callback(PrinterCallback)
    started = time.monotonic()
    trainer.train()
    seconds = time.monotonic() - started
    logs = [log for log in trainer.state.log_history if "seconds/sampling" in log]
    sampling, scoring = (sum(log[f"seconds/{part}"] for log in logs) for part in ("sampling", "scoring"))
    tokens = sum(log["own/length"] * prompts * own for log in logs)
    return {
        "seconds": seconds,
        "sampling": sampling / seconds,
        "scoring": scoring / seconds,
        "training": 1 - (sampling + scoring) / seconds,
        "own tokens a second of sampling": tokens / sampling,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=[*SIZES], nargs="+", default=["small", "middle"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=8, help="steps on the lab")
    parser.add_argument("--prompts", type=int, default=32, help="prompts of a step on the lab")
    parser.add_argument("--own", type=int, default=4, help="own answers of a prompt on the lab")
    parser.add_argument("--out", type=Path, help="write the record here, as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as scratch:
        split = on_the_lab(arguments.steps, arguments.prompts, arguments.own, Path(scratch) / "lab")
        shares = [f"{split[part]:.1%}" for part in ("sampling", "scoring", "training")]
        rate = f"{split['own tokens a second of sampling']:.0f}"
        print(table(["sampling", "scoring", "training", "own tokens/s sampled"], [[*shares, rate]]), flush=True)
        lines, results = [], {}
        for name in arguments.size:
            line, results[name] = against_grpo(name, arguments.rounds, arguments.warmup, Path(scratch) / name)
            lines.append(line)
    header = ["size", "gft, processor ms", "TRL GRPO, processor ms", "ratio, processor time", "wall time"]
    print("\n" + table(header, lines))
    record("groups", vars(arguments), {"lab": split, "against GRPO": results}, arguments.out)


if __name__ == "__main__":
    main()
