"""Answers to one prompt in one row: the numbers of each alone, fewer tokens read; models that cannot are found out."""

import sys
import time
from pathlib import Path

import pytest
import torch

from ballast.evaluation import packing
from ballast.evaluation.scoring import ScoredSequence, sequence_statistics
from ballast.head import backbone_hidden, lm_head
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


def masks(model, base, read, **options):
    """Check the numbers, and return the dimensions of the masks that models then read, the proof aside."""
    check(model, base, **options)
    read.clear()
    check(model, base, **options)
    return {dimensions for _, dimensions in read}


@pytest.mark.parametrize("batch_tokens", [1, 20, 16384])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_statistics_are_those_of_each_sequence_alone(batch_tokens, attention, read):
    model, base = (tiny_model(seed, attn_implementation=attention).double().float() for seed in (0, 9))
    assert (4 in masks(model, base, read, batch_tokens=batch_tokens)) == (batch_tokens > 1)


def test_a_prompt_is_read_once(read):
    model = tiny_model()
    sequence_statistics(model, sequences())
    sequence_statistics(model, sequences())
    # Of an answer all but its last token; the lone sequence has a mask as usual.
    assert read[-2:] == [((2, len(PROMPTS[0]) + 8 + 0 + 5 + 8), 4), ((1, 3), 2)]


def test_long_rows_are_cut():
    rows = packing.together([((*range(30), *(3,) * 50), 30)] * 100, 200)
    assert sorted(owner for row in rows for owner in row.owners) == list(range(100))
    assert all(len(row) <= 200 for row in rows)
    assert len(rows) == 34
    assert [len(row.answers) for row in packing.together([((*range(30), *(3,) * 50), 30)] * 3, 10)] == [1, 1, 1]
    assert [len(row.answers) for row in packing.together([((1, 2, 3), 2)] * 9, 10)] == [8, 1]


def test_a_prompt_that_saves_little_is_not_shared():
    texts = [((1, *range(size)), 1) for size in (40, 2, 60, 2)]
    assert [row.owners for row in packing.together(texts, 1000)] == [(0,), (1, 3), (2,)]


def test_many_answers_are_packed_in_no_time():
    cut = [((1, 2, 3, 4), 2)] * 100_000
    started = time.process_time()
    assert len(packing.together(cut, 1000)) == 101
    assert time.process_time() - started < 5


def test_answers_without_tokens_have_no_statistics():
    values = sequence_statistics(tiny_model(), [ScoredSequence((5, 6), 2), ScoredSequence((5, 6, 7), 2)])
    assert [one["logprob"].size for one in values] == [0, 1]


# They keep a state, look at what their own cache holds, or count positions along the row.
@pytest.mark.parametrize(
    "family", ["bamba", "bloom", "lfm3", "mamba", "mpt", "qwen3_next", "recurrent_gemma", "zamba2"]
)
def test_models_that_cannot_read_several_answers_are_found_out(family, read):
    model, base = family_sizes.tiny_model(family).eval(), family_sizes.tiny_model(family).eval()
    assert masks(model, base, read) == {2}


@pytest.mark.parametrize("family", ["gemma3_text", "gpt2", "mixtral", "qwen3"])
def test_others_read_them_together(family, read):
    model = family_sizes.tiny_model(family).eval()
    assert 4 in masks(model, model, read)


def mistral(**options):
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    return MistralForCausalLM(MistralConfig(**sizes, **heads, initializer_range=0.5, **options)).eval()


@pytest.mark.parametrize(("window", "most"), [(9, 2), (18, 4), (40, 4)])
def test_attention_that_does_not_reach_back_to_the_start_of_a_row(window, most, read):
    model = mistral(sliding_window=window)
    assert max(masks(model, model, read)) == most
    assert all(width <= window for (_, width), dimensions in read if dimensions == 4)


@pytest.mark.parametrize("window", [12, 20])
def test_a_window_over_places_of_the_row_is_not_passed(window, read):
    from transformers import GPTNeoConfig, GPTNeoForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "hidden_size": 16, "num_layers": 2, "num_heads": 2, "max_position_embeddings": 64}
    kinds = {"attention_types": [[["global", "local"], 1]], "window_size": window, "initializer_range": 0.5}
    model = GPTNeoForCausalLM(GPTNeoConfig(**sizes, **kinds)).eval()
    check(model, model)


def test_a_row_is_no_longer_than_the_context(read):
    model = tiny_model(context=20)
    assert 4 in masks(model, model, read)
    assert max(width for (_, width), _ in read) <= 20


def test_models_of_two_dtypes_have_masks_of_their_own(read):
    sequence_statistics(tiny_model().bfloat16(), sequences(), FIELDS, base=tiny_model(9))
    assert 4 in {dimensions for _, dimensions in read[-4:]}


def test_attention_that_takes_no_mask_is_not_asked(read):
    model = tiny_model()
    model.config._attn_implementation = "flash_attention_2"
    assert not packing.can_share(model, lambda **_: pytest.fail("it was asked"))


def test_a_base_that_names_no_model_reads_every_answer_alone(read):
    class Base:
        head = lm_head(tiny_model(9))

        def hidden(self, **inputs):
            return backbone_hidden(tiny_model(9), **inputs)

    found = sequence_statistics(tiny_model(), sequences(), ("kl",), base=Base())
    expected = sequence_statistics(tiny_model(), sequences(), ("kl",), base=tiny_model(9))
    for one, other in zip(found, expected, strict=True):
        assert one["kl"] == pytest.approx(other["kl"], abs=1e-5)
