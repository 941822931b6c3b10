"""What the model does on these rows before any training, and what a step and an answer cost here."""

from __future__ import annotations

import math
import resource
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ballast import models
from ballast.config.recipe import ModelSection, Recipe
from ballast.config.sections import ObjectiveSection
from ballast.config.training import training_config
from ballast.data.messages import last_text
from ballast.limits import context_length
from ballast.verifiers.registry import score_answers, verifier

Row = Mapping[str, Any]
ITEMS = 32
"""Prompts that the model answers."""
MOST_TOKENS = 256
"""Longest answer that is waited for."""
CUT_OFF = 0.05
"""Share of answers that a limit may cut off."""
SCORED = 8
"""Answers that are scored."""
STEPS = 3
"""Optimiser steps that are trained; the first warms up."""
MULTIPLE = 16
LEAST_SECONDS = 0.2
"""Of a step in float32 that one in bfloat16 is compared with: of shorter ones chance decides, and they cost little."""
WORTH = 1.2
"""How many times as fast a step in bfloat16 must be to be taken: it costs precision."""


@dataclass(frozen=True)
class Probe:
    """What was measured.

    Attributes:
        accuracy: of greedy answers; None without a verifier.
        items: answers that it is of.
        max_new_tokens: limit under which fewer than `CUT_OFF` of the answers and of the demonstrations are cut off.
        cut_off: share of the model's answers that are cut off all the same, by `MOST_TOKENS` or the context.
        answer_seconds: of one answer, among others in a batch.
        score_seconds: of scoring one answer under the model and under its base.
        step_seconds: of one optimiser step.
        load_seconds: of loading model and tokenizer.
        memory: bytes of the process at its peak; on an accelerator those of the device.
        weights: bytes of what a run leaves: the model, or its adapter.
        bf16: how many times as fast a step in bfloat16 is, which `step_seconds` then is of; None where it is not worth
            it, or training computes in it anyway.
    """

    accuracy: float | None
    items: int
    max_new_tokens: int
    cut_off: float
    answer_seconds: float
    score_seconds: float
    step_seconds: float
    load_seconds: float
    memory: int
    weights: int
    bf16: float | None = None


def probe(
    section: ModelSection, training: Mapping[str, Any], judge: str | None, test: Sequence[Row], train: Sequence[Row]
) -> Probe:
    """Answer some prompts, train some steps, and return what came of it.

    Args:
        section: the model, and the adapter to train.
        training: settings, batch size among them.
        judge: name of the verifier; None where there is none.
        test: rows to answer, with ``answer`` where there is a verifier.
        train: demonstrations to train on, whose lengths count too.
    """
    from ballast.evaluation.generation import GenerationOptions, encode_rows, generate, own_sequences
    from ballast.evaluation.scoring import sequence_statistics

    device, started = models.default_device(), time.monotonic()
    model, tokenizer = models.load_model(section, device=device), models.load_tokenizer(section, training)
    loaded = time.monotonic() - started
    rows = test[:ITEMS]
    prompts = encode_rows(tokenizer, rows)
    most = _most_tokens(context_length(model), max(map(len, prompts)))
    started = time.monotonic()
    answers = [some[0] for some in generate(model, tokenizer, rows, GenerationOptions(max_new_tokens=most))]
    seconds, started = time.monotonic() - started, time.monotonic()
    scored = own_sequences(prompts[:SCORED], [[one] for one in answers[:SCORED]])
    sequence_statistics(model, scored, ("entropy", "kl"), base=model)
    scoring = time.monotonic() - started
    shown = [len(tokenizer(last_text(row["completion"]))["input_ids"]) for row in train[: 8 * ITEMS]]
    limit = max(quantile([one.tokens for one in answers], 1 - CUT_OFF), quantile(shown, 1 - CUT_OFF / 5))
    lora = models.lora_config(section)
    plain, trained = _train(training, model, tokenizer, train, lora)
    weights = sum(one.numel() * one.element_size() for one in trained.parameters() if one.requires_grad or lora is None)
    del model, trained
    half: list[float] = []
    if min(plain[1:]) >= LEAST_SECONDS and _may_gain(training, device.type):
        # A model of its own: accelerate gives one that it has prepared before no other precision.
        half, _ = _train({**training, "bf16": True}, models.load_model(section, device=device), tokenizer, train, lora)
    bf16 = gain(plain, half)
    return Probe(
        accuracy=None if judge is None else _accuracy(judge, [one.text for one in answers], rows),
        items=len(rows),
        max_new_tokens=min(most, math.ceil((limit + 1) / MULTIPLE) * MULTIPLE),
        cut_off=sum(not one.ended for one in answers) / len(answers),
        answer_seconds=seconds / len(answers),
        score_seconds=scoring / len(scored),
        step_seconds=(plain if bf16 is None else half)[-1],
        load_seconds=loaded,
        memory=_peak(device.type),
        weights=weights,
        bf16=bf16,
    )


def gain(plain: Sequence[float], half: Sequence[float]) -> float | None:
    """Return how many times as fast steps in bfloat16 are, None where that is less than `WORTH`.

    Args:
        plain: seconds of steps in float32, the first of which warms up; others slow a step down, nothing speeds it up.
        half: the same in bfloat16; empty where none were made.
    """
    if not half:
        return None
    ratio = min(plain[1:]) / min(half[1:])
    return ratio if ratio >= WORTH else None


def _may_gain(training: Mapping[str, Any], device: str) -> bool:
    """Whether training computes in float32 here, and could in bfloat16."""
    from transformers.utils import is_torch_bf16_available_on_device

    args = training_config(Recipe(training=dict(training)))
    return not args.bf16 and not args.fp16 and is_torch_bf16_available_on_device(device)


def quantile(lengths: Sequence[int], share: float) -> int:
    """Return the least length that at least this share of the lengths does not exceed."""
    return sorted(lengths)[math.ceil(share * len(lengths)) - 1]


def _most_tokens(context: int | None, longest: int) -> int:
    return MOST_TOKENS if context is None else max(1, min(MOST_TOKENS, context - longest))


def _accuracy(judge: str, texts: Sequence[str], rows: Sequence[Row]) -> float:
    return sum(score_answers(verifier(judge), zip(texts, rows, strict=True)).scores) / len(rows)


def _train(
    training: Mapping[str, Any], model: Any, tokenizer: Any, rows: Sequence[Row], lora: Any
) -> tuple[list[float], Any]:
    """Return seconds of each of `STEPS` steps, and the model that was trained, with its adapter."""
    from datasets import Dataset
    from transformers import PrinterCallback, TrainerCallback

    from ballast.training import Trainer

    times: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            times.append(time.monotonic())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            times.append(time.monotonic())

    with tempfile.TemporaryDirectory(prefix="ballast-") as folder:
        recipe = Recipe(objective=ObjectiveSection(name="sft"), training=dict(training))
        quiet = {"save_strategy": "no", "report_to": "none", "disable_tqdm": True, "logging_strategy": "no"}
        args = training_config(recipe, output_dir=folder, max_steps=STEPS, **quiet)
        count = STEPS * args.per_device_train_batch_size * args.gradient_accumulation_steps
        shown = [{name: row[name] for name in ("prompt", "completion")} for row in rows[:count]]
        trainer = Trainer(
            model=model,
            args=args,
            train_dataset=Dataset.from_list(shown),
            processing_class=tokenizer,
            peft_config=lora,
            callbacks=[Clock()],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return [end - begin for begin, end in zip(times[::2], times[1::2], strict=True)], trainer.model


def _peak(device: str) -> int:
    import torch

    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024
