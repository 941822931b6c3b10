"""Live references: frozen, in eval mode, and equal however they are provided."""

import copy

import pytest
import torch

from ballast.errors import BallastError
from ballast.reference import (
    AdapterOffReference,
    CacheKey,
    LiveReference,
    ModelReference,
    ReferenceCache,
    check_vocabulary,
    frozen_copy,
    resolve_reference,
    score_rows,
)
from reference_rows import make_rows
from tiny import char_tokenizer, tiny_model

IDS = torch.arange(4, 24).view(2, 10)


def lora(model, **settings):
    from peft import LoraConfig, get_peft_model

    return get_peft_model(
        model, LoraConfig(**{"r": 2, "target_modules": "all-linear", "lora_dropout": 0.5, **settings})
    )


def move(model):
    """Change every weight that training would change."""
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight += 0.1 * torch.randn_like(weight)
    return model


def test_adapter_off_is_the_second_model():
    base = ModelReference(tiny_model())
    wrapped = move(lora(tiny_model())).train()
    reference = AdapterOffReference(wrapped)
    assert reference.hidden(input_ids=IDS).equal(base.hidden(input_ids=IDS))
    assert reference.head.weight.equal(base.head.weight)
    with torch.no_grad():
        live = ModelReference(copy.deepcopy(wrapped)).hidden(input_ids=IDS)
    assert not torch.allclose(live, base.hidden(input_ids=IDS), atol=1e-3)


@pytest.mark.parametrize("kind", [ModelReference, AdapterOffReference])
def test_hidden_states_carry_no_gradient_and_dropout_is_off(kind):
    wrapped = lora(tiny_model(attention_dropout=0.5)).train()
    reference = kind(wrapped)
    first, second = (reference.hidden(input_ids=IDS) for _ in range(2))
    assert first.shape == (2, 10, 16)
    assert not first.requires_grad
    # Not an inference tensor: the policy's graph may keep it for its backward.
    assert not first.is_inference()
    assert first.equal(second)


def test_adapter_off_leaves_modes_flags_and_gradients_alone():
    wrapped = lora(tiny_model(), modules_to_save=["norm"]).train()
    layers = wrapped.get_base_model().model.layers
    layers[0].eval()
    frozen = layers[1].self_attn.q_proj.lora_A["default"].weight.requires_grad_(False)
    modes = [module.training for module in wrapped.modules()]
    flags = [weight.requires_grad for weight in wrapped.parameters()]
    loss = wrapped(IDS).logits.square().mean()
    AdapterOffReference(wrapped).hidden(input_ids=IDS)
    assert modes == [module.training for module in wrapped.modules()]
    assert flags == [weight.requires_grad for weight in wrapped.parameters()]
    loss.backward()
    assert frozen.grad is None
    assert all(weight.grad is not None for weight in wrapped.parameters() if weight.requires_grad)


def test_state_is_restored_after_an_error():
    wrapped = lora(tiny_model()).train()
    flags = [weight.requires_grad for weight in wrapped.parameters()]
    with pytest.raises(IndexError):
        AdapterOffReference(wrapped).hidden(input_ids=IDS + 10_000)
    assert all(module.training for module in wrapped.modules())
    assert flags == [weight.requires_grad for weight in wrapped.parameters()]


def test_adapter_off_refuses_a_base_that_moves():
    with pytest.raises(BallastError, match="needs a model with a PEFT adapter"):
        AdapterOffReference(tiny_model())
    wrapped = lora(tiny_model())
    wrapped.get_base_model().model.norm.weight.requires_grad_(True)
    with pytest.raises(BallastError, match=r"move the base weight 'model\.norm\.weight' \(1 in all\)"):
        AdapterOffReference(wrapped)


def test_a_model_reference_is_frozen_and_stays_in_eval_mode():
    reference = ModelReference(tiny_model().train())
    assert not any(weight.requires_grad for weight in reference.model.parameters())
    assert not reference.model.training
    assert isinstance(reference, LiveReference)


def test_a_copy_does_not_follow_the_model():
    model = tiny_model()
    reference = frozen_copy(model)
    before = reference.hidden(input_ids=IDS)
    move(model)
    assert reference.hidden(input_ids=IDS).equal(before)
    assert all(weight.requires_grad for weight in model.parameters())


def test_a_copy_of_a_patched_model_is_refused():
    model = tiny_model()
    original = model.forward

    def patched(*args, **inputs):
        return original(*args, **inputs)

    model.forward = patched
    with pytest.raises(BallastError, match=r"model's forward is patched.*weights in training"):
        frozen_copy(model)
    with pytest.raises(BallastError, match="patched"):
        resolve_reference("auto", model)


def test_auto_takes_the_adapter_off_only_where_it_starts_at_zero():
    fresh, loaded = lora(tiny_model()), move(lora(tiny_model()))
    assert isinstance(resolve_reference("auto", fresh), AdapterOffReference)
    assert isinstance(resolve_reference(None, tiny_model()), ModelReference)
    start = ModelReference(copy.deepcopy(loaded)).hidden(input_ids=IDS)
    reference = resolve_reference("auto", loaded)
    assert isinstance(reference, ModelReference)
    move(loaded)
    assert reference.hidden(input_ids=IDS).equal(start)


def test_auto_copies_where_training_moves_the_base_too():
    wrapped = lora(tiny_model(attention_bias=True), bias="all")
    assert isinstance(resolve_reference("auto", wrapped), ModelReference)
    with pytest.raises(BallastError, match="would move the base weight"):
        resolve_reference("adapter-off", wrapped)


def test_auto_copies_where_the_adapter_is_of_another_kind():
    from peft import IA3Config, get_peft_model

    settings = IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])
    assert isinstance(resolve_reference("auto", get_peft_model(tiny_model(), settings)), ModelReference)


def test_caches_are_opened_and_checked_against_the_key(tmp_path):
    model, rows = tiny_model(), make_rows(4)
    key = CacheKey.of(model, char_tokenizer())
    cache = score_rows(model, rows, tmp_path / "c", key, progress=False)
    for spec in (cache, tmp_path / "c", str(tmp_path / "c"), {"cache": str(tmp_path / "c")}):
        found = resolve_reference(spec, model, key=key)
        assert isinstance(found, ReferenceCache)
        assert len(found) == 4
        with pytest.raises(BallastError, match="another model"):
            resolve_reference(spec, model, key=CacheKey.of(tiny_model(7), char_tokenizer()))


def test_models_may_be_given_or_loaded(tmp_path):
    start, model = tiny_model(5), tiny_model()
    start.save_pretrained(tmp_path / "m")
    expected = ModelReference(tiny_model(5)).hidden(input_ids=IDS)
    for spec in (start, ModelReference(start), {"model": str(tmp_path / "m")}):
        assert resolve_reference(spec, model).hidden(input_ids=IDS).equal(expected)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("modle", "did you mean 'model'"),
        ("no/such/folder", "neither a folder nor a name"),
        ({"path": "x"}, r"give \{cache: path\}, \{model: path\}, or both"),
        ({"model": "no/such/model"}, "cannot be loaded"),
        ("adapter-off", "needs a model with a PEFT adapter"),
        (3, "reference of type int"),
    ],
)
def test_what_names_no_reference_is_refused(spec, message):
    with pytest.raises(BallastError, match=message) as caught:
        resolve_reference(spec, tiny_model())
    assert "\n" not in str(caught.value)


def test_the_model_in_training_is_no_reference():
    model = tiny_model()
    with pytest.raises(BallastError, match="shares weights with the model in training"):
        resolve_reference(model, model)
    assert all(weight.requires_grad for weight in model.parameters())


def test_vocabularies_may_differ_by_padding_alone():
    model, padded = tiny_model(vocab=100), ModelReference(tiny_model(vocab=104))
    check_vocabulary(model, padded, 96)
    check_vocabulary(model, ModelReference(tiny_model(vocab=100)))
    for size in (None, 102):
        with pytest.raises(BallastError, match="vocabulary has 104 rows, the model's 100"):
            check_vocabulary(model, padded, size)
    with pytest.raises(BallastError, match="vocabulary has 104 rows"):
        resolve_reference(padded, model)
    assert resolve_reference(padded, model, vocab_size=96) is padded
