"""How training ends and goes on: at its last step, from a torn checkpoint, from another model, at a loss of NaN."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import ballast
from ballast import checkpoints
from ballast.errors import Diverged
from group_rows import GROUPS
from group_rows import trainer as group_trainer
from tiny import char_tokenizer, tiny_model
from training_tools import config, dataset, largest_difference, objective, run, weights

SAVING = {"save_strategy": "steps", "save_steps": 2, "optim": "adamw_torch", "learning_rate": 1e-2}


def trainer(folder, name="sft", *, model=None, data=None, **changes):
    return ballast.Trainer(
        model or tiny_model(),
        config(folder, **{**SAVING, **changes}),
        train_dataset=data or dataset(),
        processing_class=char_tokenizer(),
        objective=objective(name),
    )


# The last step


@pytest.mark.parametrize(
    ("length", "steps"),
    [
        ({"max_steps": 4}, 4),
        ({"max_steps": 6}, 6),
        ({"max_steps": -1, "num_train_epochs": 2}, 8),
        ({"max_steps": -1, "num_train_epochs": 1.5}, 6),
    ],
)
def test_a_finished_run_takes_no_further_step(tmp_path, length, steps):
    settings = {**length, "per_device_train_batch_size": 2}
    whole = trainer(tmp_path, **settings)
    whole.train()
    assert whole.state.global_step == steps
    again = trainer(tmp_path, **settings)
    for _ in range(2):
        result = again.train(resume_from_checkpoint=True)
        assert (again.state.global_step, result.global_step) == (steps, steps)
        assert largest_difference(weights(whole), weights(again)) == 0
        # A mean over no step would be a loss of 0.
        assert "train_loss" not in result.metrics
    losses = [[log["loss"] for log in one.state.log_history if "loss" in log] for one in (whole, again)]
    assert losses[0] == losses[1]
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*"))[-1] == f"checkpoint-{steps}"


def test_a_finished_run_that_gets_more_steps_takes_them(tmp_path):
    settings = {"per_device_train_batch_size": 2, "lr_scheduler_type": "constant"}
    trainer(tmp_path / "a", max_steps=4, **settings).train()
    longer = trainer(tmp_path / "a", max_steps=6, **settings)
    longer.train(resume_from_checkpoint=True)
    whole = trainer(tmp_path / "b", max_steps=6, **settings)
    whole.train()
    assert largest_difference(weights(whole), weights(longer)) == 0


# No step


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (
            {"dataloader_drop_last": True, "per_device_train_batch_size": 9},
            "dataloader_drop_last: 8 rows make no batch of 9",
        ),
        (
            {"dataloader_drop_last": True, "per_device_train_batch_size": 9, "max_steps": -1, "num_train_epochs": 2},
            "dataloader_drop_last",
        ),
        ({"max_steps": 0}, "training.max_steps: 0 asks for no step"),
        ({"max_steps": -1, "num_train_epochs": 0}, "training.num_train_epochs: 0 asks for no step"),
        ({"max_steps": 1, "warmup_steps": 1, "lr_scheduler_type": "linear"}, "training.warmup_steps"),
        ({"max_steps": 1, "warmup_steps": 0.1, "lr_scheduler_type": "cosine"}, "training.warmup_steps"),
        (
            {"packing": True, "max_length": 128, "dataloader_drop_last": True, "per_device_train_batch_size": 8},
            "dataloader_drop_last",
        ),
    ],
)
def test_no_step_is_refused_before_training(tmp_path, changes, named):
    with pytest.raises(ballast.BallastError, match=named):
        trainer(tmp_path, **changes)


def test_groups_of_too_few_prompts_are_refused(tmp_path):
    with pytest.raises(ballast.BallastError, match="dataloader_drop_last"):
        group_trainer(tmp_path, groups=GROUPS, dataloader_drop_last=True, per_device_train_batch_size=100)


@pytest.mark.parametrize(
    "changes",
    [
        {"per_device_train_batch_size": 9},
        {"dataloader_drop_last": True, "per_device_train_batch_size": 8},
        {"warmup_steps": 1, "lr_scheduler_type": "constant"},
        {"warmup_steps": 1, "lr_scheduler_type": "linear", "max_steps": 2},
    ],
)
def test_what_moves_the_weights_is_not_refused(tmp_path, changes):
    made = trainer(tmp_path, **{"max_steps": 1, "save_strategy": "no", **changes})
    made.train()
    assert largest_difference(weights(made), dict(tiny_model().named_parameters())) > 1e-4


# Checkpoints


def test_a_torn_checkpoint_is_passed_over_with_a_line(tmp_path):
    trainer(tmp_path / "whole", max_steps=6).train()
    shutil.copytree(tmp_path / "whole", tmp_path / "torn")
    shutil.rmtree(tmp_path / "torn" / "checkpoint-6")
    state = tmp_path / "torn" / "checkpoint-4" / "optimizer.pt"
    state.write_bytes(state.read_bytes()[:-100])
    again = trainer(tmp_path / "torn", max_steps=6)
    with pytest.warns(
        UserWarning, match=r"checkpoint-4: is not whole \(optimizer.pt is cut\); going on from checkpoint-2"
    ):
        again.train(resume_from_checkpoint=True)
    logged = [log["step"] for log in again.state.log_history if "loss" in log]
    assert logged == [1, 2, 3, 4, 5, 6]
    assert checkpoints.last_whole(tmp_path / "torn") == checkpoints.Last(tmp_path / "torn" / "checkpoint-6")
    ends = [(tmp_path / name / "checkpoint-6" / "model.safetensors").read_bytes() for name in ("whole", "torn")]
    assert ends[0] == ends[1]


def test_a_torn_checkpoint_that_is_named_is_refused(tmp_path):
    trainer(tmp_path, max_steps=2).train()
    (tmp_path / "checkpoint-2" / "trainer_state.json").unlink()
    with pytest.raises(ballast.BallastError, match=r"checkpoint-2: is no whole checkpoint \(trainer_state.json"):
        trainer(tmp_path, max_steps=3).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    with pytest.raises(ballast.BallastError, match=r"has no checkpoint to resume from; .*checkpoint-2: is not whole"):
        trainer(tmp_path, max_steps=3).train(resume_from_checkpoint=True)


@pytest.mark.parametrize("lora", [False, True])
def test_a_checkpoint_is_seen_when_it_is_whole_alone(tmp_path, monkeypatch, lora):
    """Stopped at any file of a checkpoint: what is seen is whole, and the next run goes on from there."""
    from peft import LoraConfig

    made = trainer(tmp_path, max_steps=4, model=tiny_model(), save_total_limit=1)
    if lora:
        made = ballast.Trainer(
            tiny_model(),
            config(tmp_path, **SAVING, max_steps=4, save_total_limit=1),
            train_dataset=dataset(),
            processing_class=char_tokenizer(),
            peft_config=LoraConfig(target_modules=["q_proj"], r=2),
        )
    seen = []
    for name in ("save_model", "_save_optimizer_and_scheduler", "_save_rng_state"):
        original = getattr(made, name)

        def watched(*args, original=original, **kwargs):
            original(*args, **kwargs)
            seen.append(
                [(path.name, checkpoints.what_is_wrong(path)) for path in sorted(tmp_path.glob("checkpoint-*"))]
            )

        monkeypatch.setattr(made, name, watched)
    made.train()
    assert seen == [[]] * 3 + [[("checkpoint-2", None)]] * 3
    # The limit holds, and nothing is left over.
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-4"]
    assert checkpoints.what_is_wrong(tmp_path / "checkpoint-4") is None
    assert not (tmp_path / checkpoints.UNFINISHED).exists()


def test_what_a_killed_run_left_of_a_checkpoint_is_cleared(tmp_path, monkeypatch):
    made = trainer(tmp_path, max_steps=4)
    original = made._save_rng_state

    def killed(folder):
        if made.state.global_step == 4:
            raise KeyboardInterrupt
        original(folder)

    monkeypatch.setattr(made, "_save_rng_state", killed)
    with pytest.raises(KeyboardInterrupt):
        made.train()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]
    assert (tmp_path / checkpoints.UNFINISHED).exists()
    again = trainer(tmp_path, max_steps=4)
    again.train(resume_from_checkpoint=True)
    whole = trainer(tmp_path / "whole", max_steps=4)
    whole.train()
    assert largest_difference(weights(whole), weights(again)) == 0
    assert not (tmp_path / checkpoints.UNFINISHED).exists()


def test_the_best_checkpoint_is_named_by_its_place_and_kept(tmp_path):
    settings = {
        "max_steps": 6,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "load_best_model_at_end": True,
        "metric_for_best_model": "loss",
        "save_total_limit": 1,
        "learning_rate": 0.5,
    }
    made = ballast.Trainer(
        tiny_model(),
        config(tmp_path, **{**SAVING, **settings}),
        train_dataset=dataset(),
        eval_dataset=dataset(13).select(range(8, 13)),
        processing_class=char_tokenizer(),
    )
    made.train()
    found = {log["step"]: log["eval_loss"] for log in made.state.log_history if "eval_loss" in log}
    best = tmp_path / f"checkpoint-{min(found, key=found.get)}"
    assert made.state.best_model_checkpoint == str(best)
    assert best.is_dir()
    state = json.loads((best / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == str(best)


# The model that a run starts from


@pytest.mark.parametrize("name", ["sft", "eksft"])
def test_a_run_is_not_resumed_from_another_model(tmp_path, name):
    from transformers import AutoModelForCausalLM

    settings = {"max_steps": 4, "per_device_train_batch_size": 2}
    trainer(tmp_path, name, **settings).train()
    shutil.rmtree(tmp_path / "checkpoint-4")
    checkpoint = tmp_path / "checkpoint-2"
    for other in (AutoModelForCausalLM.from_pretrained(checkpoint), tiny_model(seed=1)):
        with pytest.raises(ballast.BallastError, match="trained from another model than the one given"):
            trainer(tmp_path, name, model=other, **settings).train(resume_from_checkpoint=True)
    again = trainer(tmp_path, name, **settings)
    again.train(resume_from_checkpoint=str(checkpoint))
    assert again.state.global_step == 4


def test_one_weight_of_a_reference_is_enough_to_tell(tmp_path):
    settings = {"max_steps": 2, "per_device_train_batch_size": 2}
    trainer(tmp_path, "eksft", model=tiny_model(hidden=128), **settings).train()
    other = tiny_model(hidden=128)
    with torch.no_grad():
        # One that a sample of every second element leaves out.
        next(other.parameters())[-1, -1] += 1e-3
    with pytest.raises(ballast.BallastError, match="another model"):
        trainer(tmp_path, "eksft", model=other, **settings).train(resume_from_checkpoint=True)


def test_a_new_adapter_is_drawn_again_and_is_no_other_start(tmp_path):
    from peft import LoraConfig

    def made(seed, max_steps):
        return ballast.Trainer(
            tiny_model(),
            config(tmp_path, **SAVING, max_steps=max_steps, seed=seed),
            train_dataset=dataset(),
            processing_class=char_tokenizer(),
            objective=objective("eksft"),
            peft_config=LoraConfig(target_modules=["q_proj"], r=2),
        )

    made(1, 2).train()
    again = made(2, 3)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 3


# Losses that are no numbers


def poisoned(model, token):
    """Let a model's hidden state be NaN wherever a token stands."""
    inner = model.model.forward

    def forward(*args, input_ids=None, **kwargs):
        outputs = inner(*args, input_ids=input_ids, **kwargs)
        hidden = outputs.last_hidden_state
        outputs.last_hidden_state = hidden.masked_fill((input_ids == token)[..., None], torch.nan)
        return outputs

    model.model.forward = forward
    return model


@pytest.mark.parametrize(
    "layout",
    [{"per_device_train_batch_size": 1}, {"per_device_train_batch_size": 2}, {"gradient_accumulation_steps": 2}],
)
@pytest.mark.parametrize("padding_free", [False, True])
def test_a_loss_of_nan_names_step_and_rows_and_takes_no_step(tmp_path, layout, padding_free):
    tokenizer = char_tokenizer()
    token = tokenizer.convert_tokens_to_ids("Z")
    rows = [{"prompt": "+Z" if n == 5 else f"{n}+", "completion": "ab" * (n + 1)} for n in range(8)]
    from datasets import Dataset

    settings = {
        "per_device_train_batch_size": 1,
        "max_steps": 8,
        "save_steps": 1,
        "padding_free": padding_free,
        "max_length": None,
        **layout,
    }
    made = trainer(tmp_path, model=tiny_model(), data=Dataset.from_list(rows), **settings)
    poisoned(made.model, token)
    with pytest.raises(Diverged, match="the loss is nan on row") as raised:
        made.train()
    step = made.state.global_step
    line = str(raised.value)
    assert line.startswith(f"step {step + 1}: the loss is nan on row")
    named = line.partition(" of the prepared training rows")[0].partition(" on row")[2].removeprefix("s")
    assert 6 in [int(number) for number in named.split(",")]
    assert len(named.split(",")) == settings["per_device_train_batch_size"]
    assert all(torch.isfinite(weight).all() for weight in made.model.parameters())
    last = checkpoints.last_whole(tmp_path).path
    assert last == (tmp_path / f"checkpoint-{step}" if step else None)


@pytest.mark.parametrize("norm", [0.0, 1.0])
def test_a_gradient_of_nan_under_a_finite_loss_takes_no_step(tmp_path, norm):
    made = trainer(tmp_path, max_steps=2, max_grad_norm=norm)
    weight = next(made.model.parameters())
    weight.register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(Diverged, match=r"step 1: the norm of the gradient is .* on rows 1, 2, 3"):
        made.train()
    assert largest_difference(weights(made), dict(tiny_model().named_parameters())) == 0


@pytest.mark.parametrize("saving", [{"save_steps": 1}, {"save_strategy": "no"}])
def test_weights_that_a_step_overflows_are_not_saved(tmp_path, saving):
    made = trainer(tmp_path, max_steps=1, optim="sgd", learning_rate=1e38, **saving)
    # A gradient of 1e3 is finite, and so is its norm.
    next(made.model.parameters()).register_hook(lambda gradient: gradient * 0 + 1e3)
    with pytest.raises(Diverged, match=r"step 1: the weight .* is no finite number, though every loss"):
        made.train()
    assert checkpoints.last_whole(tmp_path).path is None


def test_the_prompts_of_a_step_are_named_for_groups(tmp_path):
    made = group_trainer(tmp_path, groups=GROUPS, per_device_train_batch_size=2, max_steps=2)
    next(made.model.parameters()).register_hook(lambda gradient: gradient * torch.nan)
    with pytest.raises(Diverged, match=r"step 1: the norm of the gradient is nan on rows \d+, \d+ of the prompts"):
        made.train()


def test_packed_rows_are_named_too(tmp_path):
    made = trainer(tmp_path, max_steps=2, packing=True, max_length=128, per_device_train_batch_size=1)
    next(made.model.parameters()).register_hook(lambda gradient: gradient * torch.nan)
    with pytest.raises(Diverged, match=r"is nan on rows [\d, ]+ of the prepared training rows, which"):
        made.train()


def test_runs_leave_no_path_of_the_saving_folder(tmp_path):
    made = run(tmp_path, "sft", max_steps=2, save_strategy="steps", save_steps=1)
    assert checkpoints.UNFINISHED not in Path(tmp_path / "checkpoint-2" / "trainer_state.json").read_text()
    assert made.state.best_model_checkpoint is None


def test_processes_that_would_each_train_by_themselves_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ballast.BallastError, match=r"2 processes were started.*set training\.use_cpu=true"):
        run(tmp_path, "sft", use_cpu=False)
    assert not list(tmp_path.iterdir())
