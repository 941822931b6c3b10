"""Settings of transformers' trainer beside the loss: each does what it does under TRL, or is refused by name."""

from __future__ import annotations

import pytest
import torch
from transformers import DataCollatorForLanguageModeling, TrainerCallback
from trl import SFTConfig, SFTTrainer

import ballast
from ballast.errors import BallastError
from ballast.head import Formed
from ballast.training.trl import add_statistics
from tiny import char_tokenizer, tiny_model
from training_tools import config, dataset, largest_difference, run, weights


def theirs(tmp_path, **changes):
    trainer = SFTTrainer(
        tiny_model(),
        config(tmp_path, config_class=SFTConfig, **{"bf16": False, **changes}),
        train_dataset=dataset(),
        processing_class=char_tokenizer(),
    )
    trainer.train()
    return weights(trainer)


def test_noise_on_embeddings_is_that_of_trl(tmp_path):
    noisy = {"neftune_noise_alpha": 5.0, "max_steps": 2}
    ours = weights(run(tmp_path / "a", "sft", **noisy))
    assert largest_difference(ours, theirs(tmp_path / "b", **noisy)) < 1e-5
    assert largest_difference(ours, weights(run(tmp_path / "c", "sft", max_steps=2))) > 1e-2


def test_references_and_measurements_read_no_noise(tmp_path):
    """Before the first step model and reference are one, so a divergence would be the noise's."""
    trainer = run(
        tmp_path,
        "eksft",
        neftune_noise_alpha=5.0,
        max_steps=1,
        learning_rate=0.0,
        eval_strategy="no",
        reference="model",
    )
    trainer.eval_dataset = None
    logged = trainer.state.log_history[0]
    assert logged["kl"] > 1e-3  # of the noisy pass that is trained on, from the reference without noise
    quiet = run(tmp_path / "quiet", "eksft", max_steps=1, learning_rate=0.0, reference="model").state.log_history[0]
    assert quiet["kl"] == pytest.approx(0, abs=1e-6)


def test_noise_and_mixed_inputs_are_refused(tmp_path):
    with pytest.raises(BallastError, match=r"training\.neftune_noise_alpha is not supported: the objective changes"):
        ballast.Trainer("nowhere/at/all", config(tmp_path, neftune_noise_alpha=5.0), objective="ift")


def test_bfloat16_is_no_less_exact_than_trls(tmp_path):
    exact, start = theirs(tmp_path / "a"), {name: one.detach() for name, one in tiny_model().named_parameters()}
    moved = max(float((exact[name] - start[name]).abs().max()) for name in exact)
    errors = [
        largest_difference(found, exact) / moved
        for found in (weights(run(tmp_path / "b", "sft", bf16=True)), theirs(tmp_path / "c", bf16=True))
    ]
    assert 1e-5 < errors[0] <= 1.5 * errors[1] + 1e-3


class Told(TrainerCallback):
    def __init__(self):
        self.events: list[str] = []

    def on_step_begin(self, args, state, control, **kwargs):
        self.events.append("step")

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.events.append("gradient" if any(one.grad is not None for one in model.parameters()) else "none")

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.events.append("log" if "nll" in (logs or {}) else "end")

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == 2


def test_callbacks_are_told_and_obeyed(tmp_path):
    told = Told()
    trainer = ballast.Trainer(
        tiny_model(),
        config(tmp_path, max_steps=5),
        train_dataset=dataset(),
        processing_class=char_tokenizer(),
        callbacks=[told],
        objective="prift-prob",
    )
    trainer.train()
    assert trainer.state.global_step == 2
    assert told.events == ["step", "gradient", "log"] * 2 + ["end"]


def test_collators_are_refused_by_name(tmp_path):
    collator = DataCollatorForLanguageModeling(char_tokenizer(), mlm=False)
    with pytest.raises(BallastError, match="data_collator is not supported: cached columns must stay aligned"):
        ballast.Trainer(tiny_model(), config(tmp_path), data_collator=collator, train_dataset=dataset())


def test_a_compiled_model_trains_the_same(tmp_path):
    """Rows of many lengths, so that numbers of trained tokens change; the backend computes as PyTorch does."""
    settings = {"max_steps": 3, "per_device_train_batch_size": 2, "reference": "model"}
    torch._dynamo.reset()
    compiled = run(
        tmp_path / "a",
        "eksft",
        model=tiny_model(layers=1),
        torch_compile=True,
        torch_compile_backend="eager",
        **settings,
    )
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    plain = run(tmp_path / "b", "eksft", model=tiny_model(layers=1), **settings)
    assert (
        largest_difference(
            {name.removeprefix("_orig_mod."): one for name, one in weights(compiled).items()}, weights(plain)
        )
        < 1e-6
    )


def test_statistics_are_not_traced():
    """A number of tokens that changes made Dynamo fail now and then."""
    model, seen, ids = tiny_model(layers=1), [], torch.arange(3, 12)[None]
    add_statistics(model)

    def statistics(hidden, head, targets):
        seen.append(torch.compiler.is_compiling())
        return Formed(head.logits(hidden).logsumexp(-1).sum(), None, None)

    torch._dynamo.reset()
    torch.compile(model, backend="eager")(input_ids=ids, labels=ids, statistics=statistics)
    assert seen == [False]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sft", "eksft", "prift-mass", "talr", "ift"])
def test_inductor_trains_the_same(tmp_path, name):
    settings = {"max_steps": 3, "per_device_train_batch_size": 2}
    torch._dynamo.reset()
    compiled = run(tmp_path / "a", name, torch_compile=True, torch_compile_backend="inductor", **settings)
    plain = run(tmp_path / "b", name, **settings)
    assert largest_difference(weights(compiled), weights(plain)) < 1e-4


@pytest.mark.skipif(torch.accelerator.is_available(), reason="computes in bfloat16 there anyway")
@pytest.mark.parametrize("asked", [None, False, True])
def test_a_cpu_computes_in_bfloat16_where_it_is_asked_to(tmp_path, asked):
    """transformers refuses it there unless it is told that there is no GPU."""
    seen = []
    args = ballast.TrainingConfig(str(tmp_path), bf16=asked, max_steps=1, report_to="none")
    assert (args.bf16, args.use_cpu) == (bool(asked), bool(asked))
    trainer = ballast.Trainer(tiny_model(), args=args, train_dataset=dataset(), processing_class=char_tokenizer())
    layer = trainer.model.model.layers[0].mlp.down_proj
    layer.register_forward_hook(lambda module, given, result: seen.append((module.weight.dtype, result.dtype)))
    trainer.train()
    assert set(seen) == {(torch.float32, torch.bfloat16 if asked else torch.float32)}


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("after", [False, True])
def test_a_model_that_was_trained_before_is_trained_in_the_precision_of_now(tmp_path, before, after):
    model, seen = tiny_model(), []

    class Watched(TrainerCallback):
        def on_step_begin(self, *_, **__):
            seen.append(set())

    linear = torch.nn.Linear.forward

    def forward(layer, states):
        if seen:
            seen[-1].add(torch.is_autocast_enabled("cpu"))
        return linear(layer, states)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch.nn.Linear, "forward", forward)
        for half in (before, after):
            trainer = ballast.Trainer(
                model,
                config(tmp_path, max_steps=1, bf16=half),
                train_dataset=dataset(),
                processing_class=char_tokenizer(),
                callbacks=[Watched()],
            )
            trainer.train()
    assert [max(found) for found in seen] == [before, after]
