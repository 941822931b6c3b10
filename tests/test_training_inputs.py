"""The changed inputs inside the model's forward: layouts, families of models, dropout, autocast, refusals."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

import ballast
import ballast.training.inputs as inputs_module
from ballast import token_stats
from ballast.data import Collator
from ballast.head import Formed
from ballast.objectives import Objective
from ballast.training.inputs import settle_inputs
from ballast.training.reduction import token_layout
from ballast.training.trl import add_statistics
from ift_tools import double, tokens, trained, trainer_of
from tiny import tiny_model
from training_tools import dataset

IFT = ballast.objective("ift", lam=0.4)


def with_statistics(model):
    add_statistics(model)
    return model.train()


def ask(model, batch: dict[str, Any], prepare=IFT.prepare_inputs):
    """Return the statistics of a batch, with gradient."""
    sequence, position = token_layout(batch)

    def found(hidden, head, targets):
        stats = token_stats(hidden, head, targets, fields=("logprob", "entropy"))
        return Formed(-stats.logprob.sum(), dataclasses.replace(stats, sequence=sequence, position=position), None)

    return model(**batch, statistics=found, prepare=prepare).stats


def examples(*texts: tuple[str, str]) -> list[dict[str, Any]]:
    made = []
    for prompt, completion in texts:
        ids, start = tokens({"prompt": prompt, "completion": completion})
        made.append({"input_ids": ids, "labels": [-100] * start + ids[start:]})
    return made


ONE, OTHER, LONGER = ("3+4=", "7 is it"), ("3+4=", "8 is it"), ("10+20=", "30, not 31 or 29")


def padded(*texts):
    return Collator(pad_token_id=0)(examples(*texts))


def packed(*texts):
    collate = Collator(pad_token_id=0, padding_free=True, return_position_ids=True)
    lengths = [len(example["input_ids"]) for example in examples(*texts)]
    batch = collate([{**example, "seq_lengths": [len(example["input_ids"])]} for example in examples(*texts)])
    batch["seq_idx"] = torch.cat([torch.full((length,), index) for index, length in enumerate(lengths)])[None]
    batch.pop("attention_mask", None)
    return batch


def left_padded(*texts):
    made = examples(*texts)
    width = max(len(example["input_ids"]) for example in made)

    def fill(name, value):
        return torch.tensor([[value] * (width - len(row[name])) + row[name] for row in made])

    ids = fill("input_ids", 0)
    seen = (ids != 0).long()
    # Rotary angles are float32 in a float64 model, so the places must be the same for the losses to be.
    places = (seen.cumsum(1) - 1).clamp(min=0)
    return {"input_ids": ids, "labels": fill("labels", -100), "attention_mask": seen, "position_ids": places}


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def losses_of(model, batch, sequence):
    """Return one sequence's losses and all gradients of their sum."""
    stats = ask(model, batch)
    losses = IFT.per_token_loss(stats)[stats.sequence == sequence]
    return losses.detach(), gradients(model, losses.sum())


@pytest.mark.parametrize("layout", [padded, packed])
@pytest.mark.parametrize("seen", [0, 1])
def test_nothing_leaks_from_one_sequence_to_another(layout, seen):
    model = with_statistics(double())
    plain, changed = ((ONE, LONGER), (OTHER, LONGER)) if seen else ((LONGER, ONE), (LONGER, OTHER))
    losses, slopes = losses_of(model, layout(*plain), seen)
    other_losses, other_slopes = losses_of(model, layout(*changed), seen)
    assert torch.equal(losses, other_losses)
    for name, slope in slopes.items():
        assert torch.equal(slope, other_slopes[name]), name
    assert not torch.equal(
        losses_of(model, layout(*plain), 1 - seen)[0], losses_of(model, layout(*changed), 1 - seen)[0]
    )


@pytest.mark.parametrize("layout", [packed, left_padded])
def test_the_layout_changes_nothing(layout):
    model = with_statistics(double())
    texts = (LONGER, ONE, OTHER)
    for index in range(3):
        losses, slopes = losses_of(model, padded(*texts), index)
        other_losses, other_slopes = losses_of(model, layout(*texts), index)
        alone, _ = losses_of(model, padded(texts[index]), 0)
        torch.testing.assert_close(losses, other_losses, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(losses, alone, rtol=1e-10, atol=1e-12)
        for name, slope in slopes.items():
            torch.testing.assert_close(slope, other_slopes[name], rtol=1e-9, atol=1e-11)


FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma": ("Gemma", {"head_dim": 8}),
    "gemma2": ("Gemma2", {"head_dim": 8, "final_logit_softcapping": 3.0}),
    "gemma3": ("Gemma3", {"head_dim": 8, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}),
    "granite": ("Granite", {"embedding_multiplier": 3.0, "logits_scaling": 4.0}),
    "gpt2": ("GPT2", {"n_embd": 16, "n_layer": 2, "n_head": 2, "resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0}),
    "mixtral": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "gemma4-plain": ("Gemma4", {"head_dim": 8, "global_head_dim": 8, "hidden_size_per_layer_input": 0}),
}
SIZE = {
    "vocab_size": 91, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.3,
}  # fmt: skip


def family(name: str, **changes):
    import transformers

    prefix, settings = FAMILIES[name]
    kind = getattr(transformers, f"{prefix}TextConfig", None) or getattr(transformers, f"{prefix}Config")
    size = SIZE if name != "gpt2" else {key: SIZE[key] for key in ("vocab_size", "pad_token_id", "initializer_range")}
    torch.manual_seed(0)
    cls = getattr(transformers, f"{prefix}LMHeadModel", None) or getattr(transformers, f"{prefix}ForCausalLM")
    model = cls(kind(**{**size, **settings, **changes}))
    # Torch's product for experts knows no float64.
    return model if name == "mixtral" else model.double()


@pytest.mark.parametrize("name", list(FAMILIES))
def test_every_family_of_models_reads_mixed_embeddings_as_its_own(name, monkeypatch):
    model = family(name)
    settle_inputs(model, IFT)
    with_statistics(model)
    batch = padded(ONE, LONGER)
    plain = ask(model, batch, prepare=None).logprob
    torch.testing.assert_close(ask(model, batch, prepare=lambda gold, guess, labels: gold).logprob, plain)
    assert (ask(model, batch).logprob - plain).abs().max() > 0.01
    # The demonstrated tokens as the greedy ones: all of them mixed in, nothing has changed.
    targets = batch["labels"][:, 1:][batch["labels"][:, 1:] != -100]
    monkeypatch.setattr(inputs_module, "greedy", lambda hidden, head: targets)
    everything = ballast.objective("ift", lam=1, embeddings="attached").prepare_inputs
    torch.testing.assert_close(ask(model, batch, prepare=everything).logprob, plain)


@pytest.mark.parametrize("name", ["gemma", "gemma3"])
def test_a_model_that_scales_its_embeddings_mixes_them_as_by_hand(name):
    model = with_statistics(family(name))
    batch = padded(ONE)
    ids, (mask, _) = batch["input_ids"], inputs_module.trained_positions(batch["labels"])
    with torch.no_grad():
        guesses = model.eval()(input_ids=ids).logits.argmax(-1)
    greedy = torch.cat([ids[:, :1], torch.where(mask, guesses[:, :-1], ids[:, 1:])], 1)
    assert (greedy != ids).any()
    embed = model.get_input_embeddings()
    logits = model(inputs_embeds=0.6 * embed(ids) + 0.4 * embed(greedy)).logits
    by_hand = logits.log_softmax(-1)[:, :-1].gather(2, ids[:, 1:, None])[..., 0][mask]
    torch.testing.assert_close(ask(model.train(), batch).logprob, by_hand)


def test_dropout_acts_on_the_training_pass_alone():
    model = with_statistics(double(attention_dropout=0.5))
    batch, seen = padded(ONE, LONGER), []

    def prepare(gold, guess, labels):
        seen.append((guess, [module.training for module in model.modules()]))
        return gold

    model.model.layers[1].eval()
    modes = [module.training for module in model.modules()]
    first, second = ask(model, batch, prepare), ask(model, batch, prepare)
    assert not torch.equal(first.logprob, second.logprob)
    assert torch.equal(seen[0][0], seen[1][0])
    assert seen[0][1] == seen[1][1] == modes
    assert [module.training for module in model.modules()] == modes
    twin = with_statistics(double())
    ask(twin, batch, prepare)
    assert torch.equal(seen[2][0], seen[0][0])


def test_the_greedy_pass_keeps_no_graph_and_reads_the_demonstrated_tokens(monkeypatch):
    model, calls = with_statistics(double()), []
    plain = model.model.forward

    def spy(*args, **kwargs):
        calls.append((torch.is_grad_enabled(), "input_ids" in kwargs, "inputs_embeds" in kwargs))
        return plain(*args, **kwargs)

    monkeypatch.setattr(model.model, "forward", spy)
    assert ask(model, padded(ONE)).logprob.requires_grad
    assert calls == [(False, True, False), (True, False, True)]
    calls.clear()
    ask(model, padded(ONE), prepare=None)
    assert calls == [(True, True, False)]


def test_autocast_keeps_the_gradient_of_every_weight(monkeypatch):
    model, remembered = with_statistics(tiny_model(tied=False)), []
    plain = model.model.forward

    def spy(*args, **kwargs):
        remembered.append(torch.is_autocast_cache_enabled())
        return plain(*args, **kwargs)

    monkeypatch.setattr(model.model, "forward", spy)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = IFT.per_token_loss(ask(model, padded(ONE, LONGER))).sum()
        assert torch.is_autocast_cache_enabled()
    # Before pytorch#165068, weights cast without gradient were used again with it, and got none.
    assert remembered == [False, True]
    slopes = gradients(model, loss)
    assert slopes.keys() == dict(model.named_parameters()).keys() - {"model.embed_tokens.weight"}
    assert all(slope.any() for slope in slopes.values())


def test_bfloat16_training_moves_every_layer(tmp_path):
    trainer = trainer_of(tmp_path, {}, model=tiny_model(tied=False), bf16=True, learning_rate=0.1)
    start = {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}
    trainer.train()
    still = {name for name, weight in trainer.model.named_parameters() if torch.equal(weight, start[name])}
    assert still == {"model.embed_tokens.weight"}


class Doubling(type(tiny_model().model)):
    """A backbone that does something to its embeddings which it does not do to those that it is given."""

    def forward(self, input_ids=None, inputs_embeds=None, **others):
        embeddings = 2 * self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        return super().forward(inputs_embeds=embeddings, **others)


class Deaf(type(tiny_model().model)):
    """A backbone that takes no embeddings."""

    def forward(self, input_ids=None, **others):
        if others.get("inputs_embeds") is not None:
            raise ValueError("token ids are needed")
        return super().forward(input_ids=input_ids, **others)


@pytest.mark.parametrize("backbone", [Doubling, Deaf])
def test_a_model_that_does_not_read_its_embeddings_alone_is_refused(tmp_path, backbone):
    model = double()
    model.model.__class__ = backbone
    with pytest.raises(ballast.BallastError, match="does not read its input embeddings alone") as caught:
        trainer_of(tmp_path, {}, model=model)
    assert "\n" not in str(caught.value)
    trainer_of(tmp_path, ballast.objective("dft"), model=model)


@pytest.mark.parametrize("name", ["Gemma3n", "Gemma4"])
def test_embeddings_for_every_layer_are_refused(name):
    FAMILIES[name] = (
        name,
        {
            "head_dim": 8,
            "global_head_dim": 8,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": 91,
            "num_hidden_layers": 4,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "num_kv_shared_layers": 2,
            "laurel_rank": 4,
            "altup_num_inputs": 2,
            "activation_sparsity_pattern": [0.0] * 4,
        },
    )
    try:
        model = family(name)
    finally:
        del FAMILIES[name]
    with torch.no_grad():
        # Random initialisation leaves some gates of these models at 0.
        for weight in model.parameters():
            weight.normal_(0, 0.3)
    with pytest.raises(ballast.BallastError, match="does not read its input embeddings alone"):
        settle_inputs(model, IFT)


@dataclasses.dataclass(frozen=True)
class Recorder(Objective):
    """Notes what it is told of the state of training."""

    name: ClassVar[str] = "recorder"
    source: ClassVar[str] = "a test"
    told: ClassVar[list[tuple[float, float]]] = []

    def prepare_inputs(self, embeddings, arg_max, labels, *, progress=0.0, noise=0.0):
        self.told.append((progress, noise))
        return embeddings


def test_progress_and_noise_are_those_of_the_step(tmp_path):
    Recorder.told.clear()
    split = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    # The first call is the look at whether inputs carry gradient.
    trained(tmp_path, Recorder(), max_steps=3, seed=7, **split).evaluate(dataset(3))
    expected = [(step / 3, float(np.random.default_rng([7, step]).standard_normal())) for step in range(3)]
    assert Recorder.told[1:] == [told for told in expected for _ in range(2)]
    assert len({noise for _, noise in expected}) == 3
    assert np.random.default_rng([8, 0]).standard_normal() not in {noise for _, noise in expected}


def test_the_first_step_outside_of_training_has_no_progress(tmp_path):
    trainer = trainer_of(tmp_path, Recorder())
    Recorder.told.clear()
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.train()
    trainer.compute_loss(trainer.model, batch)
    assert Recorder.told[0][0] == 0


def test_generation_reads_tokens_as_before(tmp_path):
    trainer = trained(tmp_path, {}, learning_rate=0.0)
    ids = torch.tensor([[5, 6, 7]])
    wanted = double(tied=False).generate(ids, max_new_tokens=5, do_sample=False)
    assert torch.equal(trainer.model.eval().generate(ids, max_new_tokens=5, do_sample=False), wanted)


def test_other_objectives_leave_the_model_alone():
    model = double(tied=False)
    settle_inputs(model, ballast.objective("sft"))
    settle_inputs(model, ballast.objective("ift", embeddings="attached"))
    assert all(weight.requires_grad for weight in model.parameters())
    settle_inputs(model, ballast.objective("ift"))
    assert [name for name, weight in model.named_parameters() if not weight.requires_grad] == [
        "model.embed_tokens.weight"
    ]
