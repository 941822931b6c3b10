"""Answers to one prompt in one row: the numbers of each alone, fewer tokens read; models that cannot are found out."""

import sys
from pathlib import Path

import pytest
import torch

from ballast.evaluation import packing
from ballast.evaluation.scoring import ScoredSequence, sequence_statistics
from tiny import tiny_model

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
import family_sizes

PROMPTS = (7, 6, 9, 9, 8, 5, 11), (4, 6, 6)
SIZES = ((0, 9), (0, 1), (1, 5), (0, 6), (1, 2), (0, 9))
FIELDS = ("logprob", "entropy", "kl")


def sequences():
    """Six sequences on two prompts, two of them equal, and one of a prompt of its own."""
    made = [
        ScoredSequence((*PROMPTS[n], *(5 + (3 * n + 5 * i + size) % 20 for i in range(size))), len(PROMPTS[n]))
        for n, size in SIZES
    ]
    return [*made, ScoredSequence((12, 5, 5, 9), 2)]


@pytest.fixture
def read(monkeypatch):
    """The shapes of what a model reads, and the shape of each mask."""
    seen, made = [], packing.inputs

    def inputs(*given):
        found = made(*given)
        seen.append((tuple(found["input_ids"].shape), found["attention_mask"].dim()))
        return found

    monkeypatch.setattr(packing, "inputs", inputs)
    return seen


def exact(model, base, sequence):
    """The statistics of one sequence from whole logits in float64."""
    with torch.no_grad():
        logits, others = (
            one(torch.tensor([sequence.ids]), use_cache=False).logits[0].double() for one in (model, base)
        )
    logp, other = (one[sequence.start - 1 : -1].log_softmax(-1) for one in (logits, others))
    picked = logp[range(len(logp)), list(sequence.targets)]
    return {
        "logprob": picked,
        "entropy": -(logp.exp() * logp).sum(-1),
        "kl": (logp.exp() * (logp - other)).sum(-1),
    }


def check(model, base, **options):
    found = sequence_statistics(model, sequences(), FIELDS, base=base, **options)
    for sequence, values in zip(sequences(), found, strict=True):
        for name, expected in exact(model, base, sequence).items():
            assert values[name] == pytest.approx(expected.numpy(), abs=2e-5), name


@pytest.mark.parametrize("batch_tokens", [1, 20, 16384])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_statistics_are_those_of_each_sequence_alone(batch_tokens, attention, read):
    model, base = (tiny_model(seed, attn_implementation=attention).double().float() for seed in (0, 9))
    check(model, base, batch_tokens=batch_tokens)
    assert (4 in {dimensions for _, dimensions in read[3:]}) == (batch_tokens > 1)


def test_a_prompt_is_read_once(read):
    model = tiny_model()
    sequence_statistics(model, sequences())
    sequence_statistics(model, sequences())
    # Of an answer all but its last token; the lone sequence has a mask as usual.
    assert read[-2:] == [((2, len(PROMPTS[0]) + 8 + 0 + 5 + 8), 4), ((1, 3), 2)]


def test_long_rows_are_cut():
    rows = packing.together([((1, 2, *(3,) * 50), 2)] * 100, 200)
    assert sorted(owner for row in rows for owner in row.owners) == list(range(100))
    assert all(len(row) <= 200 for row in rows)
    assert len(rows) == 25
    assert [len(row.answers) for row in packing.together([((1, 2, *(3,) * 50), 2)] * 3, 10)] == [1, 1, 1]


def test_answers_without_tokens_have_no_statistics():
    values = sequence_statistics(tiny_model(), [ScoredSequence((5, 6), 2), ScoredSequence((5, 6, 7), 2)])
    assert [one["logprob"].size for one in values] == [0, 1]


# They keep a state, look at what their own cache holds, or count positions along the row.
@pytest.mark.parametrize(
    "family", ["bamba", "bloom", "lfm3", "mamba", "mpt", "qwen3_next", "recurrent_gemma", "zamba2"]
)
def test_models_that_cannot_read_several_answers_are_found_out(family, read):
    model, base = family_sizes.tiny_model(family).eval(), family_sizes.tiny_model(family).eval()
    check(model, base)
    assert {dimensions for _, dimensions in read[-2:]} == {2}


@pytest.mark.parametrize("family", ["gemma3_text", "gpt2", "mixtral", "qwen3"])
def test_others_read_them_together(family, read):
    model = family_sizes.tiny_model(family).eval()
    check(model, model)
    assert 4 in {dimensions for _, dimensions in read}


@pytest.mark.parametrize(("window", "dimensions"), [(12, 2), (16, 4)])
def test_attention_that_does_not_reach_back_to_the_start(window, dimensions, read):
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    model = MistralForCausalLM(
        MistralConfig(
            vocab_size=40,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            sliding_window=window,
            initializer_range=0.5,
        )
    ).eval()
    check(model, model)
    assert max(found for _, found in read[-2:]) == dimensions
