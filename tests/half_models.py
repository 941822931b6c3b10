"""Names and shapes of small models of many architectures, without weights."""

from __future__ import annotations

import torch
import transformers

SMALL = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "pad_token_id": 0}
GROUPED = {**SMALL, "num_key_value_heads": 1, "head_dim": 8}
CONFIGS = {
    "llama": lambda layers: transformers.LlamaConfig(**GROUPED, num_hidden_layers=layers),
    "tied": lambda layers: transformers.LlamaConfig(**GROUPED, num_hidden_layers=layers, tie_word_embeddings=True),
    "qwen2": lambda layers: transformers.Qwen2Config(**{**GROUPED, "num_hidden_layers": layers}),
    "qwen3": lambda layers: transformers.Qwen3Config(**{**GROUPED, "num_hidden_layers": layers}),
    "phi3": lambda layers: transformers.Phi3Config(**SMALL, num_hidden_layers=layers),
    "gpt2": lambda layers: transformers.GPT2Config(vocab_size=32, n_embd=16, n_head=2, n_layer=layers),
    "neox": lambda layers: transformers.GPTNeoXConfig(**SMALL, num_hidden_layers=layers),
    "opt": lambda layers: transformers.OPTConfig(
        vocab_size=32, hidden_size=16, ffn_dim=32, num_attention_heads=2, num_hidden_layers=layers
    ),
    "mixtral": lambda layers: transformers.MixtralConfig(**GROUPED, num_hidden_layers=layers, num_local_experts=4),
    "qwen2-moe": lambda layers: transformers.Qwen2MoeConfig(
        **{**SMALL, "num_hidden_layers": layers, "num_experts": 4, "num_experts_per_tok": 2},
        num_key_value_heads=1,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
    ),
    "mamba": lambda layers: transformers.MambaConfig(vocab_size=32, hidden_size=16, num_hidden_layers=layers),
    "smollm2": lambda layers: transformers.LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=layers,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    ),
}
KNOWN = tuple(name for name in CONFIGS if name != "mamba")


def empty(name: str, layers: int = 4):
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(CONFIGS[name](layers))


def shapes(name: str, layers: int = 4) -> dict[str, tuple[int, ...]]:
    return {name: tuple(weight.shape) for name, weight in empty(name, layers).named_parameters()}
