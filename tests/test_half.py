"""Which weights half fine-tuning trains: counts, what a half and its complement cover, and what a draw depends on."""

from __future__ import annotations

import math
import re
import subprocess
import sys

import pytest

from ballast.errors import BallastError
from ballast.half import HalfOptions, Split, chosen, half_options
from half_models import KNOWN, empty, shapes

ATTENTION, FORWARD, NORMS = r"self_attn\.\w_proj\.weight", r"mlp\.\w+_proj\.weight", r"layers\.\d+\.\w*norm\w*\.weight"


def drawn(model: str = "llama", layers: int = 4, seed: int = 0, **options) -> frozenset[str]:
    return chosen(shapes(model, layers), HalfOptions(**options), seed)


def of_layer(names, layer: int, pattern: str) -> int:
    return sum(f".{layer}." in name and re.search(pattern, name) is not None for name in names)


@pytest.mark.parametrize("layers", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("seed", [0, 1])
def test_half_of_every_kind_in_every_layer(layers, seed):
    trained = drawn(layers=layers, seed=seed)
    forward = [of_layer(trained, layer, FORWARD) for layer in range(layers)]
    assert [of_layer(trained, layer, ATTENTION) for layer in range(layers)] == [2] * layers
    assert [of_layer(trained, layer, NORMS) for layer in range(layers)] == [1] * layers
    assert set(forward) <= {1, 2}
    assert sum(forward) in (math.floor(1.5 * layers), math.ceil(1.5 * layers))
    assert {"model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"} <= trained


def test_which_layers_train_one_and_which_two_is_drawn():
    found = {tuple(of_layer(drawn(seed=seed), layer, FORWARD) for layer in range(4)) for seed in range(20)}
    assert len(found) == 6  # two of four layers


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.29, 0.4, 0.7, 1.0])
def test_the_share_is_exact_to_one_matrix_over_the_layers(fraction):
    trained = drawn(layers=100, fraction=fraction)
    for pattern, of in ((ATTENTION, 4), (FORWARD, 3), (NORMS, 2)):
        # 100 times as exact decimals: 0.29 × 100 is 28.999999999999996 in floating point.
        assert sum(of_layer(trained, layer, pattern) for layer in range(100)) == of * round(100 * fraction)


@pytest.mark.parametrize("level", ["category", "layer", "model"])
@pytest.mark.parametrize("model", KNOWN)
def test_all_and_none(model, level):
    every = set(shapes(model))
    assert drawn(model, fraction=1.0, level=level) == every
    outside = drawn(model, fraction=0.0, level=level)
    assert all(not re.search(r"\.\d+\.", name) or re.search(r"\.(gate|shared_expert_gate)\.", name) for name in outside)
    assert drawn(model, fraction=1.0, level=level, embeddings=False) == every - outside


@pytest.mark.parametrize("level", ["category", "layer", "model"])
@pytest.mark.parametrize("model", KNOWN)
@pytest.mark.parametrize("fraction", [0.5, 0.3])
def test_a_half_and_its_complement_cover_every_matrix_once(model, level, fraction):
    options = {"fraction": fraction, "level": level, "embeddings": False}
    first, second = drawn(model, **options), drawn(model, **options, complement=True)
    assert not first & second
    assert first | second == drawn(model, fraction=1.0, embeddings=False)


@pytest.mark.parametrize("model", KNOWN)
def test_biases_follow_their_matrix(model):
    for seed in range(5):
        trained = drawn(model, seed=seed)
        modules = {}
        for name in shapes(model):
            modules.setdefault(re.sub(r"\.weight$|\.bias$", "", name), set()).add(name in trained)
        assert all(len(states) == 1 for states in modules.values())


def test_levels_draw_whole_layers_or_any_matrices():
    by_layer = drawn(layers=8, level="layer")
    counts = [of_layer(by_layer, layer, "") for layer in range(8)]
    assert sorted(counts) == [0] * 4 + [9] * 4
    any_matrix = drawn(layers=8, level="model")
    assert sum(of_layer(any_matrix, layer, rf"{ATTENTION}|{FORWARD}") for layer in range(8)) == 8 * 7 // 2
    assert {of_layer(any_matrix, layer, ATTENTION) for layer in range(8)} != {2}


def test_norms_and_embeddings_can_be_kept_or_trained_apart():
    norms = {name for name in shapes("llama") if re.search(NORMS, name)}
    assert norms <= drawn(norms="all")
    assert not norms & drawn(norms="none")
    assert not norms & drawn(norms="none", complement=True)
    without = drawn(embeddings=False)
    assert drawn() - without == {"model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"}


def test_the_draw_depends_on_seed_and_round_and_on_nothing_else():
    assert drawn(seed=1) != drawn(seed=2)
    assert drawn(round=0) != drawn(round=1)
    assert chosen(shapes("llama"), HalfOptions(seed=9), 1) == drawn(seed=9)
    backwards = dict(reversed(shapes("llama").items()))
    assert chosen(backwards, HalfOptions(), 3) == drawn(seed=3)
    wide = {name: tuple(2 * side for side in shape) for name, shape in shapes("llama").items()}
    assert chosen(wide, HalfOptions(), 3) == drawn(seed=3)


def test_the_draw_is_the_same_in_another_process():
    code = (
        "from half_models import empty; from ballast.half import HalfOptions, Split; "
        "print(Split.of(empty('llama'), HalfOptions(), 42).digest)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=__file__.rpartition("/")[0]
    )
    assert done.stdout.split()[-1] == Split.of(empty("llama"), HalfOptions(), 42).digest


def test_fused_matrices_count_as_one():
    for seed in range(4):
        trained = drawn("phi3", seed=seed)
        for layer in range(4):
            assert of_layer(trained, layer, r"qkv_proj|o_proj") == 1
            assert of_layer(trained, layer, r"gate_up_proj|down_proj") == 1
        trained = drawn("gpt2", seed=seed)
        for layer in range(4):
            assert of_layer(trained, layer, r"attn\.c_\w+\.weight") == 1
            assert of_layer(trained, layer, r"mlp\.c_\w+\.weight") == 1


def test_experts_are_drawn_and_routers_go_with_the_embeddings():
    for seed in range(4):
        trained = drawn("qwen2-moe", seed=seed)
        shared = [of_layer(trained, layer, r"shared_expert\.") for layer in range(4)]
        assert set(shared) <= {1, 2}
        assert sum(shared) == 6
        for layer in range(4):
            assert of_layer(trained, layer, r"experts\.(gate_up|down)_proj$") == 1
            assert of_layer(trained, layer, r"\.(gate|shared_expert_gate)\.weight") == 2
    assert not of_layer(drawn("qwen2-moe", embeddings=False), 0, r"\.(gate|shared_expert_gate)\.weight")


def test_a_tied_head_is_one_tensor():
    split = Split.of(empty("tied"), HalfOptions(), 0)
    assert "lm_head.weight" not in split.shapes
    assert split.count() == sum(weight.numel() for weight in empty("tied").parameters())


def test_unknown_matrices_are_named_with_the_way_out():
    with pytest.raises(BallastError, match=r"^half: mixer\.A_log, .*mixer\.x_proj.*set level to model"):
        drawn("mamba")
    assert drawn("mamba", level="model", fraction=1.0) == set(shapes("mamba"))


def test_what_would_train_nothing_is_refused():
    with pytest.raises(BallastError, match="no weight would train; raise fraction"):
        drawn(fraction=0.0, embeddings=False)
    with pytest.raises(BallastError, match="no numbered layers"):
        chosen({"embed.weight": (4, 4)}, HalfOptions(), 0)


def test_the_share_of_a_model_with_grouped_heads_is_told_and_near_half():
    splits = [Split.of(empty("smollm2", 30), HalfOptions(), seed) for seed in range(6)]
    shares = [split.layer_share for split in splits]
    assert all(0.48 < share < 0.52 for share in shares)
    assert len(set(shares)) > 1
    assert splits[0].count() == 134_515_008
    assert 0.58 < splits[0].count(trained=True) / splits[0].count() < 0.62
    assert f"{shares[0]:.1%} of the layers' weights" in splits[0].line()


def test_a_number_is_the_fraction():
    assert half_options(0.3) == HalfOptions(fraction=0.3)
    assert half_options({"fraction": 0.3, "level": "layer"}).level == "layer"
    for wrong in ("half", True, [0.5]):
        with pytest.raises(BallastError, match="must be a fraction or a mapping of options"):
            half_options(wrong)
