"""Models of transformers' families at a tiny size with random weights, for families.py."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any

import torch

LARGEST = 5_000_000
"""Weights of a model at most; at its default size a family can take all memory of a machine."""
VOCABULARY = 128

# The first pattern that a name matches in full gives its value. What matches none keeps the family's default.
SIZES: tuple[tuple[str, int], ...] = (
    (r"vocab_size|vocab_size_per_layer_input|audio_vocab_size|unpadded_vocab_size|decoder_vocab_size", VOCABULARY),
    (r"hidden_size|d_model|n_embd|emb_dim|embedding_size|embedding_dim|dim_model|word_embed_proj_dim|hidden_dim", 32),
    (r"out_hidden_size|vision_output_dim|projector_\w+_dim|text_hidden|output_hidden_size|lru_width", 32),
    (r"(de|en)coder_layers|num_(de|en)coder_layers|num_(hidden_)?layers|n_layers?|depth|num_blocks", 2),
    (r"\w*(attention_heads|num_heads|n_heads?|attention_heads_per_layer)", 4),
    (r"num_key_value_heads|num_kv_heads|kv_n_heads|swa_num_key_value_heads|linear_num_(key|value)_heads", 2),
    (r"head_dim|swa_head_dim|global_head_dim|v_head_dim|qk_nope_head_dim|qk_rope_head_dim|dim_head|d_head|d_kv", 8),
    (r"attention_head_size|index_head_dim|linear_(key_|value_)?head_dim|kv_channels", 8),
    (r"qk_head_dim", 16),
    (r"rotary_dim", 4),
    (
        r"\w*(intermediate_size|ffn_dim|ffn_hidden_size|feed_forward_size|intermediate_size_mlp)|dff|dim_ff|d_ff|d_inner|mlp_dim",
        48,
    ),
    (
        r"max_position_embeddings|n_positions|n_ctx|max_seq_len|context_length|max_target_positions|max_source_positions",
        128,
    ),
    (r"num_position_embeddings", 64),
    (r"n(um)?_(local_|routed_)?experts|moe_num_experts", 4),
    (r"num_experts_per_tok(en)?|moe_topk|moe_top_k|moe_k", 2),
    (r"num_kv_shared_layers", 0),
    (r"n_group|topk_group|num_expert_group|n_groups|num_query_groups", 1),
    (r"\w*lora_rank|laurel_rank|hc_lowrank|gated_norm_rank|adapter_rank|d_rel|hidden_size_per_layer_input", 8),
    (r"(mamba_)?(d_state|state_size)|ssm_state_size", 8),
    (r"\w*chunk_size|\w*attn_chunk_length|block_size|index_block_size|image_size|crop_size|mem_len", 16),
    (r"patch_size", 8),
)
NAMES = tuple((re.compile(pattern), value) for pattern, value in SIZES)
KEPT = ("chunk_size_feed_forward", "num_nextn_predict_layers")

QWEN4 = {
    "ngram_vocab_size_base": 64,
    "split_ngram_parts": 2,
    "ple_embed_dim": 32,
    "heads_per_ngram": 2,
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 8,
    "indexer_budget": 16,
    "indexer_compress_ratio": 4,
}
# Where patterns are not enough: sizes that must fit each other.
FITTING: Mapping[str, Mapping[str, Any]] = {
    "blt": {"encoder_hash_byte_group_vocab": 64},
    "cohere_compass_text": {
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 1e4},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        }
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v2": {"num_experts_per_tok": 2, "topk_method": "greedy"},
    "doge": {"is_moe": True, "num_experts": 16},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1},
    "flint": {"mlp_only_layers": [0]},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "inkling2_text": {"unpadded_vocab_size": 120},
    "inkling_text": {"unpadded_vocab_size": 120, "logits_mup_width_multiplier": 2.0},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "mamba2": {"num_heads": 8},
    "ministral": {"head_dim": 8},
    "nemotron": {"head_dim": 8, "num_key_value_heads": 2},
    "qwen4_exp": QWEN4,
    "qwen4_exp_text": QWEN4,
    "reformer": {"axial_pos_embds": False},
    "rembert": {"input_embedding_size": 16, "output_embedding_size": 24},
    "roc_bert": {"pronunciation_vocab_size": 64, "shape_vocab_size": 64},
    # Its states are rounded up to 64.
    "xlstm": {"hidden_size": 128, "embedding_dim": 128, "num_heads": 2},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"layers_block_type": ["linear_attention", "hybrid"] * 2, "num_hidden_layers": 4},
    "zaya": {"num_experts_per_tok": 1},
}


def tiny_config(family: str) -> Any:
    """Return a family's configuration with everything that takes memory made small."""
    from transformers import CONFIG_MAPPING

    kind = CONFIG_MAPPING[family]
    try:
        default = kind().to_dict()
    except Exception:  # a family whose defaults contradict each other
        default = {}
    given = {**shrunk(default), **FITTING.get(family, {})}
    known = {name: value for name, value in given.items() if name != "model_type"}
    return kind(**known)


def shrunk(default: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of a configuration that sizes follow from, made small, with those of its parts."""
    small: dict[str, Any] = {}
    for name, value in default.items():
        if isinstance(value, Mapping) and "model_type" in value:
            fitting = FITTING.get(value["model_type"], {})
            small[name] = {"model_type": value["model_type"], **shrunk(value), **fitting}
        elif name.endswith(("dropout", "pdrop", "dropout_prob", "dropout_rate", "layerdrop", "drop_rate")):
            small[name] = 0.0 if isinstance(value, float) else value
        elif name.endswith("token_id") and isinstance(value, int):
            small[name] = value if 0 <= value < VOCABULARY else 0
        elif name == "is_decoder":
            small[name] = True
        elif name not in KEPT and isinstance(value, int) and not isinstance(value, bool) and value > 0:
            size = next((size for pattern, size in NAMES if pattern.fullmatch(name)), None)
            small |= {} if size is None else {name: size}
    if default.get("num_key_value_heads") == default.get("num_attention_heads") and "num_key_value_heads" in small:
        small["num_key_value_heads"] = small["num_attention_heads"]
    return small | kept_layers(default)


def kept_layers(default: Mapping[str, Any]) -> dict[str, Any]:
    """Return the lists that say something of each layer, cut to the first layer of each kind, and their number."""
    number = default.get("num_hidden_layers")
    lists = {
        name: value for name, value in default.items() if isinstance(value, (list, tuple)) and len(value) == number
    }
    kinds = [value for value in lists.values() if isinstance(value[0], str)]
    places = sorted({value.index(kind) for value in kinds for kind in value})
    places = places if len(places) > 1 else [0, 1]
    cut = {name: [value[place] for place in places] for name, value in lists.items() if number >= 2}
    return {**cut, "num_hidden_layers": len(places)} if cut else {}


def tiny_model(family: str, seed: int = 0) -> Any:
    """Return a family's causal language model with a few random weights, in float32."""
    from transformers import AutoModelForCausalLM

    config = tiny_config(family)
    with torch.device("meta"):
        count = sum(weight.numel() for weight in AutoModelForCausalLM.from_config(copy.deepcopy(config)).parameters())
    if count > LARGEST:
        raise MemoryError(f"{count:,} weights are too many to try")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
    return model.float()
