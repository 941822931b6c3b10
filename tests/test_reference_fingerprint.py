"""A fingerprint changes with whatever changes the numbers, and with nothing else."""

import copy

import pytest
import torch

from ballast.reference import CacheKey, model_fingerprint, starts_at_base, tokenizer_fingerprint
from reference_rows import make_key
from tiny import CHAT_TEMPLATE, char_tokenizer, tiny_model


def lora(model, **settings):
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(**{"r": 2, "target_modules": "all-linear", **settings}))


def test_equal_weights_give_equal_fingerprints():
    assert model_fingerprint(tiny_model(3)) == model_fingerprint(tiny_model(3)) != model_fingerprint(tiny_model(4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_one_ulp_in_one_weight_changes_it(dtype):
    model = tiny_model().to(dtype)
    before = model_fingerprint(model)
    weight = model.model.layers[1].mlp.down_proj.weight
    with torch.no_grad():
        old = weight[3, 4].clone()
        weight[3, 4] = torch.nextafter(old, torch.tensor(float("inf"), dtype=dtype))
        assert weight[3, 4] != old
        assert model_fingerprint(model) != before
        weight[3, 4] = old
    assert model_fingerprint(model) == before


def test_dtype_counts_and_what_leaves_outputs_alone_does_not():
    model = tiny_model()
    before = model_fingerprint(model)
    assert model_fingerprint(copy.deepcopy(model).to(torch.bfloat16)) != before
    model.config.use_cache = not model.config.use_cache
    model.config.pad_token_id = 2
    model.config.attention_dropout = 0.3
    model.config._name_or_path = "elsewhere"
    model.train().requires_grad_(False)
    assert model_fingerprint(copy.deepcopy(model)) == before


@pytest.mark.parametrize(
    "change", [{"rms_norm_eps": 1e-3}, {"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}}]
)
def test_configuration_that_changes_outputs_counts(change):
    model = tiny_model()
    before = model_fingerprint(model)
    for name, value in change.items():
        setattr(model.config, name, value)
    assert model_fingerprint(model) != before


def test_buffers_count():
    model = tiny_model()
    model.register_buffer("shift", torch.zeros(2))
    before = model_fingerprint(model)
    model.shift += 1
    assert model_fingerprint(model) != before


def test_saving_and_loading_keeps_it(tmp_path):
    from transformers import AutoModelForCausalLM

    model = tiny_model(tied=True)
    model.save_pretrained(tmp_path)
    assert model_fingerprint(AutoModelForCausalLM.from_pretrained(tmp_path)) == model_fingerprint(model)


def test_swapping_two_equal_shapes_changes_it():
    model = tiny_model()
    before = model_fingerprint(model)
    first, second = (layer.mlp.gate_proj for layer in model.model.layers)
    first.weight, second.weight = second.weight, first.weight
    assert model_fingerprint(model) != before


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_dora": True},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["down_proj"]},
    ],
    ids=str,
)
def test_a_fresh_adapter_keeps_it_and_a_trained_one_does_unless_asked(settings):
    model = tiny_model(tied=False)
    tokenizer = char_tokenizer()
    before, key = model_fingerprint(model), CacheKey.of(model, tokenizer)
    wrapped = lora(model, **settings)
    assert model_fingerprint(wrapped) == before
    assert starts_at_base(wrapped)
    assert CacheKey.of(wrapped, tokenizer) == key
    with torch.no_grad():
        for weight in wrapped.parameters():
            if weight.requires_grad:
                weight += 0.01
    assert model_fingerprint(wrapped) == before
    assert not starts_at_base(wrapped)
    assert CacheKey.of(wrapped, tokenizer, adapters=False) == key
    trained = CacheKey.of(wrapped, tokenizer)
    assert trained.model != key.model
    assert CacheKey.of(copy.deepcopy(wrapped), tokenizer) == trained


def test_an_initialisation_that_moves_the_base_does_not_start_at_it():
    assert not starts_at_base(lora(tiny_model(), init_lora_weights="pissa"))


def test_a_weight_without_content_is_refused():
    with pytest.raises(ValueError, match="meta device"):
        model_fingerprint(tiny_model().to("meta"))


def test_tokenizer_fingerprint_counts_vocabulary_and_template_only():
    plain = tokenizer_fingerprint(char_tokenizer())
    assert plain == tokenizer_fingerprint(char_tokenizer())
    assert plain != tokenizer_fingerprint(char_tokenizer(characters="abc"))
    assert plain != tokenizer_fingerprint(char_tokenizer(chat_template=CHAT_TEMPLATE))
    assert plain != tokenizer_fingerprint(char_tokenizer(add_bos=True))
    used = char_tokenizer()
    used(["ab", "abc"], truncation=True, max_length=2, padding=True)
    used.pad_token = used.eos_token
    used.padding_side = "left"
    assert tokenizer_fingerprint(used) == plain


def test_key_is_stable_and_names_what_differs():
    key = make_key()
    assert key.hex == "a52c5dea2a2f87be15bd4b72c73546df"
    assert CacheKey.from_dict(key.to_dict()) == key
    assert key.differences(key) == []
    (phrase,) = key.differences(make_key(model="c" * 32))
    assert "another model" in phrase
    assert "cccccccc… ≠ aaaaaaaa…" in phrase
    assert (
        len(
            {make_key().hex, make_key(dtype="bfloat16").hex, make_key(scorer=2).hex, make_key(fields=("ref_mass",)).hex}
        )
        == 4
    )


def test_real_models_differ(real_data):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    found = set()
    for name in ("stories260K", "babyllama-361"):
        folder = real_data / "models" / name
        model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        found |= {model_fingerprint(model), tokenizer_fingerprint(tokenizer)}
        again = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        assert {model_fingerprint(again[0]), tokenizer_fingerprint(again[1])} <= found
    assert len(found) == 4
