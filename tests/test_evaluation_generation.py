import random
import warnings

import numpy as np
import pytest
import torch

from ballast.errors import BallastError
from ballast.evaluation.drawing import InverseSampler, invert
from ballast.evaluation.generation import GenerationOptions, encode_prompt, generate
from ballast.evaluation.scoring import ScoredSequence, sequence_statistics
from tiny import char_tokenizer, tiny_model

PROMPTS = ["a", "12+7=", "the quick brown fox jumps over", "so", "x" * 40]
SAMPLED = GenerationOptions(max_new_tokens=12, samples=3, temperature=0.9, top_p=0.95, seed=4)


@pytest.fixture(scope="module")
def tokenizer():
    return char_tokenizer()


@pytest.fixture(scope="module")
def model():
    return tiny_model(1, initializer_range=0.2)


def texts(answers):
    return [[(one.text, one.tokens, one.ended, one.ids) for one in some] for some in answers]


def greedy_by_hand(model, ids, count, end):
    ids, new = list(ids), []
    for _ in range(count):
        with torch.no_grad():
            new.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        ids.append(new[-1])
        if new[-1] == end:
            break
    return tuple(new)


def test_greedy_equals_a_plain_loop(model, tokenizer):
    answers = generate(model, tokenizer, PROMPTS, GenerationOptions(max_new_tokens=10))
    for prompt, (answer,) in zip(PROMPTS, answers, strict=True):
        expected = greedy_by_hand(model, encode_prompt(tokenizer, prompt), 10, tokenizer.eos_token_id)
        assert answer.ids == expected
        assert answer.tokens == len(expected)


@pytest.mark.parametrize("batch_tokens", [1, 60, 150, 100_000])
def test_samples_do_not_depend_on_the_batch(model, tokenizer, batch_tokens):
    whole = texts(generate(model, tokenizer, PROMPTS, SAMPLED))
    options = GenerationOptions(**{**vars(SAMPLED), "batch_tokens": batch_tokens})
    assert texts(generate(model, tokenizer, PROMPTS, options)) == whole
    assert texts(generate(model, tokenizer, PROMPTS[:2], options)) == whole[:2]


def test_samples_depend_on_the_seed_alone(model, tokenizer):
    first = texts(generate(model, tokenizer, PROMPTS, SAMPLED))
    torch.manual_seed(123)
    np.random.seed(5)
    random.seed(6)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    assert texts(generate(model, tokenizer, PROMPTS, SAMPLED)) == first
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.random.get_state()[1].tolist() == states[2]
    other = GenerationOptions(**{**vars(SAMPLED), "seed": 5})
    assert texts(generate(model, tokenizer, PROMPTS, other)) != first
    assert len({one.ids for one in generate(model, tokenizer, PROMPTS, SAMPLED)[2]}) > 1


def test_named_streams_do_not_depend_on_order_or_company(model, tokenizer):
    streams = [(7, row) for row in range(len(PROMPTS))]
    whole = texts(generate(model, tokenizer, PROMPTS, SAMPLED, streams=streams))
    for order in ([4, 2, 0, 3, 1], [3], [1, 4]):
        chosen = [PROMPTS[i] for i in order]
        found = texts(generate(model, tokenizer, chosen, SAMPLED, streams=[streams[i] for i in order]))
        assert found == [whole[i] for i in order]
    assert texts(generate(model, tokenizer, PROMPTS, SAMPLED, streams=[(8, row) for row in range(5)])) != whole
    assert texts(generate(model, tokenizer, [PROMPTS[2]] * 2, SAMPLED, streams=[(7, 2), (7, 3)]))[1] != whole[2]


def test_streams_are_the_places_by_default(model, tokenizer):
    plain = texts(generate(model, tokenizer, PROMPTS, SAMPLED))
    assert texts(generate(model, tokenizer, PROMPTS, SAMPLED, streams=[(i,) for i in range(5)])) == plain


@pytest.mark.parametrize(
    ("streams", "words"), [([(1,)], "1 streams for 2 prompts"), ([(1,), (1, 0)], "different lengths")]
)
def test_streams_that_do_not_fit(model, tokenizer, streams, words):
    with pytest.raises(ValueError, match=words):
        generate(model, tokenizer, ["a", "b"], SAMPLED, streams=streams)


@pytest.mark.parametrize("adapter", [False, True])
def test_the_model_in_training_generates_and_goes_on_training(tokenizer, adapter):
    """Patched by the trainer, in train mode with dropout, with checkpointed gradients and hooks for them."""
    from ballast.training.trl import add_statistics

    model = tiny_model(5, initializer_range=0.2, attention_dropout=0.5)
    plain = texts(generate(model, tokenizer, PROMPTS, SAMPLED))
    if adapter:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(target_modules=["q_proj"], lora_dropout=0.5))
    add_statistics(model)
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
    model.config.use_cache = False
    model.train()
    before = [module.training for module in model.modules()]
    configurations = [(id(m.generation_config), m.config.to_dict()) for m in model.modules() if hasattr(m, "lm_head")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert texts(generate(model, tokenizer, PROMPTS, SAMPLED)) == plain
    after = [(id(m.generation_config), m.config.to_dict()) for m in model.modules() if hasattr(m, "lm_head")]
    assert after == configurations
    assert [module.training for module in model.modules()] == before
    assert model.is_gradient_checkpointing
    assert not model.config.use_cache
    ids = torch.tensor([[5, 6, 7, 8]])
    model(input_ids=ids, labels=ids).loss.backward()
    moved = [weight.grad for weight in model.parameters() if weight.requires_grad]
    assert moved
    assert all(gradient is not None for gradient in moved)


def test_sampled_frequencies_are_the_models(tokenizer):
    model = tiny_model(2)
    ids = encode_prompt(tokenizer, "ab")
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, -1] / 0.7
    probabilities, order = logits.softmax(-1).sort(descending=True)
    nucleus = probabilities.cumsum(-1) - probabilities < 0.8
    expected = torch.zeros_like(probabilities)
    expected[order[nucleus]] = probabilities[nucleus] / probabilities[nucleus].sum()
    options = GenerationOptions(max_new_tokens=1, samples=4000, temperature=0.7, top_p=0.8)
    drawn = [one.ids[0] for one in generate(model, tokenizer, ["ab"], options)[0]]
    found = torch.bincount(torch.tensor(drawn), minlength=len(expected)) / len(drawn)
    assert set(drawn) <= set(order[nucleus].tolist())
    assert (found - expected).abs().max() < 4 * 0.5 / 4000**0.5


def test_inverse_sampler_at_the_edges_never_takes_an_impossible_token():
    scores = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).repeat(3, 1)
    uniform = np.array([0.0, 0.5, 1.0])
    assert invert(scores, uniform).tolist() == [1, 3, 1]
    left = InverseSampler(uniform[:, None], 4)(torch.zeros(3, 4, dtype=torch.long), scores)
    assert left.argmax(-1).tolist() == [1, 3, 1]


def test_answers_end_at_the_end_token(tokenizer):
    model = tiny_model(3, tied=False)
    end = tokenizer.eos_token_id
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.weight[end] = 0.0
        model.lm_head.weight[7] = -1e-3
    answers = generate(model, tokenizer, ["ab"], GenerationOptions(max_new_tokens=6, samples=300, temperature=1.0))
    ended = [one for one in answers[0] if one.ended]
    assert 0 < len(ended) < 300
    for one in answers[0]:
        assert one.ended == (one.ids[-1] == end)
        assert end not in one.ids[:-1]
        assert one.ended or one.tokens == 6
        assert "<eos>" not in one.text


def test_the_models_own_generation_defaults_do_not_apply_and_are_restored(model, tokenizer):
    plain = texts(generate(model, tokenizer, PROMPTS, SAMPLED))
    own = model.generation_config
    model.generation_config = type(own)(
        eos_token_id=2, pad_token_id=0, do_sample=True, top_k=1, repetition_penalty=5.0, max_length=3
    )
    changed = model.generation_config
    try:
        model.train()
        model.model.layers[0].eval()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert texts(generate(model, tokenizer, PROMPTS, SAMPLED)) == plain
        assert model.generation_config is changed
        assert model.training
        assert not model.model.layers[0].training
        assert tokenizer.padding_side == char_tokenizer().padding_side
    finally:
        model.generation_config = own
        model.eval()


def test_restored_after_an_error(model, tokenizer):
    own = model.generation_config

    def stop(done, total):
        raise RuntimeError("stop")

    model.train()
    with pytest.raises(RuntimeError, match="stop"):
        generate(model, tokenizer, PROMPTS, SAMPLED, progress=stop)
    assert model.generation_config is own
    assert model.training
    model.eval()


def test_adapters_generate_and_keep_their_configuration(tokenizer):
    from peft import LoraConfig, get_peft_model

    model = tiny_model(4)
    plain = texts(generate(model, tokenizer, PROMPTS, SAMPLED))
    own = model.generation_config
    wrapped = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
    assert texts(generate(wrapped, tokenizer, PROMPTS, SAMPLED)) == plain
    assert wrapped.generation_config.top_p == own.top_p
    assert wrapped.get_base_model().generation_config.max_new_tokens is None


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        (["ok", "y" * 120], "row 2: prompt of 120 tokens"),
        (["ok", ""], "row 2: the prompt has no tokens"),
        ([[{"role": "user", "content": "hi"}]], "no chat template"),
    ],
)
def test_prompts_that_cannot_be_answered(model, tokenizer, prompts, words):
    with pytest.raises(BallastError, match=words):
        generate(model, tokenizer, prompts, GenerationOptions(max_new_tokens=9))


@pytest.mark.parametrize(
    "values",
    [
        {"samples": 2},
        {"temperature": -1},
        {"top_p": 0},
        {"top_p": 1.5},
        {"max_new_tokens": 0},
        {"seed": -1},
        {"batch_tokens": 0},
    ],
)
def test_options_out_of_range(values):
    with pytest.raises(BallastError):
        GenerationOptions(**values)


@pytest.mark.parametrize("batch_tokens", [1, 25, 10_000])
def test_statistics_of_sequences_equal_full_logits(model, batch_tokens):
    base = tiny_model(9, initializer_range=0.2)
    sequences = [ScoredSequence(tuple(range(5, 5 + n)), start) for n, start in ((9, 3), (2, 1), (12, 11), (6, 1))]
    found = sequence_statistics(model, sequences, ("logprob", "entropy", "kl"), base=base, batch_tokens=batch_tokens)
    for sequence, stats in zip(sequences, found, strict=True):
        ids = torch.tensor([sequence.ids])
        with torch.no_grad():
            policy = model(ids).logits[0, sequence.start - 1 : -1].double().log_softmax(-1)
            prior = base(ids).logits[0, sequence.start - 1 : -1].double().log_softmax(-1)
        logprob = policy.gather(1, torch.tensor(sequence.targets)[:, None])[:, 0]
        np.testing.assert_allclose(stats["logprob"], logprob, rtol=2e-4, atol=2e-5)
        np.testing.assert_allclose(stats["entropy"], -(policy.exp() * policy).sum(-1), rtol=2e-4, atol=2e-5)
        np.testing.assert_allclose(stats["kl"], (policy.exp() * (policy - prior)).sum(-1), rtol=2e-3, atol=2e-5)


def test_sequences_that_cannot_be_scored(model):
    with pytest.raises(BallastError, match="token 0"):
        ScoredSequence((1, 2), 0)
    with pytest.raises(BallastError, match="sequence 0: 129 tokens exceed the model's context of 128"):
        sequence_statistics(model, [ScoredSequence((5,) * 129, 1)])


def test_real_models_continue_a_story(real_data):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = real_data / "models/stories260K"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    prompts = ["Once upon a time, there was", "Tom"]
    answers = generate(model, tokenizer, prompts, GenerationOptions(max_new_tokens=30))
    assert answers[0][0].text.startswith(" a little")
    for prompt, (answer,) in zip(prompts, answers, strict=True):
        assert answer.ids == greedy_by_hand(model, encode_prompt(tokenizer, prompt), 30, tokenizer.eos_token_id)
