"""The LM head read from transformers models gives the model's own log-probabilities."""

import pytest
import torch

from ballast import BallastError, token_stats
from ballast.head import backbone_hidden, lm_head, trained_positions
from tiny import tiny_model

SMALL = {
    "vocab_size": 41,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.5,
}

MODELS = {
    "llama-tied": ("Llama", {"tie_word_embeddings": True}),
    "llama-untied": ("Llama", {"tie_word_embeddings": False}),
    "gemma2-softcap": ("Gemma2", {"head_dim": 8, "final_logit_softcapping": 3.0}),
    "gemma2-uncapped": ("Gemma2", {"head_dim": 8, "final_logit_softcapping": None}),
    "recurrent-gemma-softcap": ("RecurrentGemma", {"logits_soft_cap": 3.0, "block_types": ["recurrent", "attention"]}),
    "granite-divisor": ("Granite", {"logits_scaling": 4.0}),
    "cohere-scale": ("Cohere", {"logit_scale": 0.25}),
    "hyperclovax-multiplier": ("HyperCLOVAX", {"logits_scaling": 0.25}),
    "minicpm3-scaled-hidden": (
        "MiniCPM3",
        {"dim_model_base": 4, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 4, "qk_rope_head_dim": 4,
         "v_head_dim": 8, "num_key_value_heads": 2},
    ),
    "phi-bias": ("Phi", {"num_key_value_heads": 2}),
}  # fmt: skip


def _model(key):
    import transformers

    family, settings = MODELS[key]
    config = getattr(transformers, f"{family}Config")(**{**SMALL, **settings})
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    head = model.get_output_embeddings()
    with torch.no_grad():
        # Not every family initialises its head by `initializer_range`; a bias starts at zero everywhere.
        head.weight.normal_(0, 0.5)
        if head.bias is not None:
            head.bias.normal_(0, 0.5)
    return model


@pytest.mark.parametrize("key", list(MODELS))
@pytest.mark.parametrize("backend", ["dense", "chunked"])
def test_log_probabilities_are_those_of_the_models_own_forward(key, backend):
    model = _model(key)
    ids = torch.randint(3, 41, (2, 9), generator=torch.Generator().manual_seed(1))
    labels = ids.clone()
    labels[0, :4] = -100
    with torch.no_grad():
        logits = model(input_ids=ids).logits.double()
        mask, targets = trained_positions(labels)
        hidden = backbone_hidden(model, input_ids=ids)[:, :-1][mask]
        stats = token_stats(hidden, lm_head(model), targets, fields=("logprob", "entropy"), backend=backend, chunk=5)
    logp = logits.log_softmax(-1)[:, :-1][mask]
    assert logp.std() > 0.1
    torch.testing.assert_close(stats.logprob.double(), logp.gather(1, targets[:, None])[:, 0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(stats.entropy.double(), -(logp.exp() * logp).sum(-1), rtol=1e-5, atol=1e-5)


def test_trained_positions_pair_each_hidden_state_with_the_next_label():
    labels = torch.tensor([[7, 8, -100, 9], [-100, -100, 5, -100]])
    mask, targets = trained_positions(labels)
    assert mask.tolist() == [[True, False, True], [False, True, False]]
    assert targets.tolist() == [8, 9, 5]


def test_an_adapter_on_the_head_is_refused():
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(tiny_model(tied=False), LoraConfig(r=2, target_modules=["q_proj", "lm_head"]))
    with pytest.raises(BallastError, match="lm_head"):
        lm_head(model)


def test_adapters_elsewhere_are_applied():
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(tiny_model(), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)).eval()
    ids = torch.arange(3, 12)[None]
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        torch.testing.assert_close(lm_head(model).logits(backbone_hidden(model, input_ids=ids)), expected)
        with model.disable_adapter():
            assert not torch.allclose(lm_head(model).logits(backbone_hidden(model, input_ids=ids)), expected)


def test_a_head_saved_whole_beside_an_adapter_is_the_trained_copy():
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])
    model = get_peft_model(tiny_model(tied=False), config)
    trained = [p for name, p in model.named_parameters() if "lm_head" in name and p.requires_grad]
    assert lm_head(model).weight is trained[0]


@pytest.mark.parametrize(("tied", "tokens"), [(False, {"lm_head": [3, 4]}), (True, {"embed_tokens": [3, 4]})])
def test_trainable_tokens_in_the_head_are_refused(tied, tokens):
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices=tokens)
    with pytest.raises(BallastError, match="lm_head"):
        lm_head(get_peft_model(tiny_model(tied=tied), config))


def test_trainable_tokens_of_an_untied_embedding_are_no_concern_of_the_head():
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices={"embed_tokens": [3, 4]})
    model = get_peft_model(tiny_model(tied=False), config)
    assert lm_head(model).weight is model.get_base_model().lm_head.weight


def test_a_model_without_a_head_is_refused():
    model = tiny_model().model
    with pytest.raises(BallastError, match="no LM head"):
        lm_head(model)


def test_gradients_reach_the_models_head_and_its_embedding_when_tied():
    model = tiny_model(tied=True)
    ids = torch.arange(3, 9)[None]
    hidden = backbone_hidden(model, input_ids=ids)[0, :-1]
    token_stats(hidden, lm_head(model), ids[0, 1:], backend="chunked", chunk=2).logprob.sum().backward()
    ours = model.model.embed_tokens.weight.grad.clone()
    model.zero_grad()
    model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None]).sum().backward()
    torch.testing.assert_close(ours, model.model.embed_tokens.weight.grad, rtol=1e-4, atol=1e-5)
