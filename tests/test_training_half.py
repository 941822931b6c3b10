"""Half fine-tuning in the trainers: what stands still and what moves, against training with masked gradients."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import ballast
from ballast.cli import app
from ballast.half import HalfOptions, Split, freeze
from rl_tools import tiny_policy, tiny_run
from tiny import char_tokenizer, tiny_model
from training_tools import OBJECTIVES, config, dataset, objective, run, weights

ADAM = {"optim": "adamw_torch", "weight_decay": 0.1, "learning_rate": 0.01, "max_steps": 3, "max_grad_norm": 0.05}


def state(model) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def equal(one, other) -> bool:
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


def test_all_of_the_weights_is_plain_training(tmp_path):
    plain, whole = (run(tmp_path, "sft", **ADAM, **given) for given in ({}, {"half": 1.0}))
    assert equal(weights(plain), weights(whole))
    assert len(whole.half.trained) == len(whole.half.shapes)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", [*OBJECTIVES, "ift"])
def test_what_is_not_drawn_stands_still_and_the_rest_moves(tmp_path, name, tied):
    model = tiny_model(tied=tied)
    start = state(model)
    trainer = run(tmp_path, name, model=model, **ADAM, half={"fraction": 0.5, "embeddings": tied})
    moved = {name for name, weight in model.named_parameters() if not weight.equal(start[name])}
    assert moved == trainer.half.trained
    held = {id(weight) for group in trainer.optimizer.param_groups for weight in group["params"]}
    assert held == {id(weight) for name, weight in model.named_parameters() if name in trainer.half.trained}
    assert len(trainer.optimizer.state) == len(moved)


def test_it_is_full_training_with_masked_gradients_and_decay(tmp_path):
    half = run(tmp_path, "sft", **ADAM, half=0.5)
    trained = half.half.trained
    model = tiny_model()
    for name, weight in model.named_parameters():
        if name not in trained:
            weight.register_hook(torch.zeros_like)
    groups = [
        {"params": [weight for name, weight in model.named_parameters() if (name in trained) == own], "weight_decay": w}
        for own, w in ((True, 0.1), (False, 0.0))
    ]
    # As transformers does, norms and biases do not decay.
    matrices, norms = [[w for w in groups[0]["params"] if (w.ndim > 1) == many] for many in (True, False)]
    optimizer = torch.optim.AdamW(
        [{"params": matrices}, {"params": norms, "weight_decay": 0.0}, groups[1]], lr=0.01, weight_decay=0.1
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    masked = ballast.Trainer(
        model,
        config(tmp_path, **ADAM),
        train_dataset=dataset(),
        processing_class=char_tokenizer(),
        optimizers=(optimizer, schedule),
    )
    masked.train()
    assert equal(state(masked.model), state(half.model))
    norms = [[line["grad_norm"] for line in one.state.log_history if "grad_norm" in line] for one in (half, masked)]
    assert norms[0] == norms[1]
    assert min(norms[0]) > ADAM["max_grad_norm"]
    # The norm that is clipped by is the half's, not the whole model's.
    assert not equal(state(run(tmp_path, "sft", **ADAM).model), state(half.model))


def test_training_only_the_embeddings(tmp_path):
    trainer = run(tmp_path, "sft", **ADAM, half={"fraction": 0.0}, model=tiny_model(tied=False))
    assert trainer.half.trained == {"model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"}


def test_two_rounds_move_every_matrix(tmp_path):
    model = tiny_model()
    start = state(model)
    run(tmp_path, "sft", model=model, **ADAM, half={"embeddings": False})
    first = {name for name, weight in model.named_parameters() if not weight.equal(start[name])}
    between = state(model)
    run(tmp_path, "sft", model=model, **ADAM, half={"embeddings": False, "complement": True})
    second = {name for name, weight in model.named_parameters() if not weight.equal(between[name])}
    assert not first & second
    assert first | second == {name for name in start if ".layers." in name}


def test_a_model_that_was_half_frozen_trains_whole_again(tmp_path):
    model = tiny_model()
    run(tmp_path, "sft", model=model, **ADAM, half={"fraction": 0.5, "embeddings": False})
    start = state(model)
    run(tmp_path, "sft", model=model, **ADAM)
    assert not any(weight.equal(start[name]) for name, weight in model.named_parameters())


def test_weights_frozen_by_the_user_stay_so_without_half():
    model = tiny_model()
    model.model.embed_tokens.requires_grad_(False)
    assert freeze(model, None, 0) is None
    assert not model.model.embed_tokens.weight.requires_grad


def test_weights_frozen_by_the_user_are_frozen_again_behind_half():
    model = tiny_model()
    model.model.embed_tokens.requires_grad_(False)
    before = {name for name, weight in model.named_parameters() if weight.requires_grad}
    for options in (HalfOptions(), HalfOptions(fraction=0.25), None):
        freeze(model, options, 0)
    assert {name for name, weight in model.named_parameters() if weight.requires_grad} == before


def test_seeds_of_runs_draw_other_halves(tmp_path):
    halves = [run(tmp_path, "sft", max_steps=1, seed=seed, half=0.5).half for seed in (1, 2)]
    assert halves[0].trained != halves[1].trained
    assert halves[0].trained == Split.of(tiny_model(dtype=torch.float64), HalfOptions(), 1).trained


def test_reinforcement_learning_leaves_the_other_half(tmp_path):
    model = tiny_policy()
    start = state(model)
    made = tiny_run(tmp_path, model=model, steps=3, half=0.5, group=16)
    made.train()
    moved = {name for name, weight in model.named_parameters() if not weight.equal(start[name])}
    assert moved == made.trainer.half.trained
    assert 0 < len(moved) < len(start)


def quantised():
    model = tiny_model()
    model.config.quantization_config = {"quant_method": "bitsandbytes"}
    return model


def adapted():
    from peft import LoraConfig, get_peft_model

    return get_peft_model(tiny_model(), LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": adapted}, "half: the model has an adapter"),
        ({"model": quantised}, "half: the model's weights are quantised"),
        ({"peft_config": object}, "half does not go with peft_config"),
        (
            {
                "gradient_checkpointing": True,
                "gradient_checkpointing_kwargs": {"use_reentrant": True},
                "half": {"embeddings": False},
            },
            "gradient_checkpointing_kwargs is refused: with use_reentrant and half.embeddings false",
        ),
        ({"half": {"fractoin": 0.5}}, r"half.fractoin: unknown key; did you mean 'fraction'"),
        ({"half": {"fraction": 2}}, r"half.fraction: should be less than or equal to 1; got 2"),
        ({"half": {"fraction": 0, "embeddings": False}}, "half: no weight would train"),
    ],
)
def test_what_cannot_be_halved_is_refused(tmp_path, changes, message):
    given = {"half": 0.5, **changes}
    made = {name: given.pop(name)() for name in ("model", "peft_config") if name in given}
    with pytest.raises(ballast.BallastError, match=message):
        run(tmp_path, "sft", **made, **given)


def test_fsdp1_without_original_parameters_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "1")
    monkeypatch.setenv("FSDP_USE_ORIG_PARAMS", "false")
    from ballast.half import check_arguments

    args = config(tmp_path, half=0.5)
    with pytest.raises(ballast.BallastError, match="fsdp_config is refused: FSDP1 with use_orig_params false"):
        check_arguments(HalfOptions(), args)
    monkeypatch.setenv("FSDP_USE_ORIG_PARAMS", "true")
    check_arguments(HalfOptions(), args)


def trainer(tmp_path, **changes):
    settings = {**ADAM, "save_strategy": "steps", "save_steps": 2, "max_steps": 4, **changes}
    return ballast.Trainer(
        tiny_model(),
        config(tmp_path, **settings),
        train_dataset=dataset(),
        processing_class=char_tokenizer(),
        objective=objective("sft"),
    )


def test_a_resumed_run_ends_as_an_undisturbed_one_and_another_half_is_refused(tmp_path):
    whole = trainer(tmp_path / "whole", half=0.5)
    whole.train()
    trainer(tmp_path / "part", half=0.5, max_steps=2).train()
    for other in (None, {"round": 1}, {"complement": True}, {"norms": "all"}):
        with pytest.raises(ballast.BallastError, match="trained another part of the weights"):
            trainer(tmp_path / "part", half=other).train(resume_from_checkpoint=True)
    again = trainer(tmp_path / "part", half=0.5)
    again.train(resume_from_checkpoint=True)
    assert equal(state(again.model), state(whole.model))
    trainer(tmp_path / "full", max_steps=2).train()
    with pytest.raises(ballast.BallastError, match=r"go on with all weights \(no half\)"):
        trainer(tmp_path / "full", half=0.5).train(resume_from_checkpoint=True)


# The command line


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_model().save_pretrained("start")
    char_tokenizer().save_pretrained("start")
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in dataset().to_list()))
    return tmp_path


def invoke(verb, *settings):
    return CliRunner().invoke(app, [verb, "model=start", "data.train=rows.jsonl", *settings])


TRAIN = ("objective=sft", "training={max_steps: 2, save_steps: 1, report_to: none, half: 0.5}", "output=out")


def test_the_record_says_which_half_and_resuming_with_another_is_refused(folder):
    done = invoke("train", *TRAIN)
    assert done.exit_code == 0, done.output
    record = json.loads(Path("out/run.json").read_text())["half"]
    split = Split.of(tiny_model(), HalfOptions(), 42)
    assert record == split.record()
    assert record["options"]["fraction"] == 0.5
    assert (record["tensors_trained"], record["tensors"]) == (len(split.trained), len(split.shapes))
    assert split.line() in " ".join(done.stdout.split())
    longer = [*TRAIN, "training.max_steps=4", "--resume"]
    done = invoke("train", *longer, "training.half=0.6")
    assert done.exit_code == 2
    assert "training.half: differs from the run to be resumed: other weights would train" in done.stderr
    assert invoke("train", *longer, "training.half={fraction: 0.5}").exit_code == 0


def test_a_dry_run_says_the_share(folder):
    done = invoke("train", *TRAIN, "--dry-run")
    assert done.stdout.startswith(f"# training.{Split.of(tiny_model(), HalfOptions(), 42).line()}\nmodel:")
    rl = ("rl={verifier: exact, half: {fraction: 0.5, round: 1}}", "output=out", "--dry-run")
    done = CliRunner().invoke(app, ["rl", "model=start", "data.train=rows.jsonl", *rl])
    assert done.stdout.startswith(f"# rl.{Split.of(tiny_model(), HalfOptions(round=1), 42).line()}\n"), done.output


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("training.half=1.5",), "training.half.fraction: should be less than or equal to 1; got 1.5"),
        (("training.half=most",), "training.half: must be a fraction or a mapping of options; got 'most'"),
        (("training.half={level: head}",), "training.half.level: 'head' is not allowed"),
        (("training.half={fractoin: 0.5}",), "training.half.fractoin: unknown key; did you mean 'fraction'"),
        (("training.half={fraction: 0, embeddings: false}",), "training.half: no weight would train"),
        (("model.lora={r: 2}",), "training.half: does not go with model.lora"),
        (
            (
                "training.half={embeddings: false}",
                "training.gradient_checkpointing=true",
                "training.gradient_checkpointing_kwargs={use_reentrant: true}",
            ),
            "training.gradient_checkpointing_kwargs: refused: with use_reentrant and half.embeddings false",
        ),
    ],
)
def test_bad_input_is_one_line(folder, settings, message):
    done = invoke("train", *TRAIN, *settings)
    assert done.exit_code == 2
    lines = done.stderr.splitlines()
    assert len(lines) == 1, lines
    assert message in lines[0]
    assert not Path("out").exists()


def test_bad_input_of_rl_and_of_rows_of_a_comparison(folder):
    done = invoke("rl", "rl={verifier: exact, half: {norms: some}}", "output=out")
    assert "rl.half.norms: 'some' is not allowed" in done.stderr
    compare = (
        "compare={rates: [1e-3], seeds: 1, objectives: [{name: sft, label: a, training: {half: {level: heads}}}]}",
        "evaluation.tasks=[{name: held, kind: nll, data: rows.jsonl}]",
        "output=out",
    )
    done = invoke("compare", *compare)
    assert "compare.objectives.0.training.half.level: 'heads' is not allowed" in done.stderr, done.output
    assert len(done.stderr.splitlines()) == 1
