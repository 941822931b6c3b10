"""Our own sampling loop: the answers of a loop without a cache, one row at a time, whatever the kind of model."""

import warnings

import pytest
import torch

from ballast.evaluation import decoding
from ballast.evaluation.decoding import Reader, closed_up, spreads, write
from ballast.evaluation.drawing import LIKELY, Draw, Nucleus, invert, uniforms
from ballast.evaluation.generation import GenerationOptions, generate
from ballast.evaluation.row_cache import RoomyLayer, RoomySlidingLayer
from tiny import char_tokenizer, tiny_model

SIZES = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "pad_token_id": 0, "eos_token_id": 2}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
WIDE = {"initializer_range": 0.4, "max_position_embeddings": 128}
LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 3,
}
EXPERTS = {"num_experts_per_tok": 2, "intermediate_size": 32}
ATTENTION = {**SIZES, **HEADS, **WIDE, "intermediate_size": 32}

FAMILIES = {
    "llama": ATTENTION,
    "gemma2": {**ATTENTION, "sliding_window": 6},
    "gemma3_text": {**ATTENTION, "sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]},
    "gpt2": {"vocab_size": 60, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 128, "initializer_range": 0.4},
    "mamba": {**SIZES, "state_size": 4, "initializer_range": 0.4},
    "mixtral": {**SIZES, **HEADS, **WIDE, **EXPERTS, "num_local_experts": 4, "sliding_window": None},
    "qwen3_next": {
        **SIZES, **HEADS, **WIDE, **EXPERTS, **LINEAR,
        "num_experts": 4, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16,
        "layer_types": ["linear_attention", "full_attention"],
    },
    "falcon_h1": {
        **ATTENTION, "mamba_d_ssm": 16, "mamba_n_heads": 2, "mamba_d_head": 8, "mamba_n_groups": 1,
        "mamba_d_state": 4, "mamba_chunk_size": 4,
    },
    "lfm2": {**ATTENTION, "layer_types": ["conv", "full_attention"], "block_multiple_of": 8},
    "bloom": {"vocab_size": 60, "hidden_size": 16, "n_layer": 2, "n_head": 2, "initializer_range": 0.4},
    "xlstm": {"vocab_size": 60, "hidden_size": 64, "num_blocks": 2, "num_heads": 2, "qk_dim_factor": 1.0},
    "rwkv": {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "context_length": 64},
}  # fmt: skip
SPREAD = [name for name in FAMILIES if name not in ("xlstm", "rwkv")]

PROMPTS = [
    (5, 6, 7, 8, 9, 10, 11, 12, 13),
    (9, 8),
    (5, 6, 7, 8, 9, 10, 11, 12, 13),
    (30,),
    (9, 8),
    (9, 8),
    (7, 5, 7, 40),
]


def model_of(kind):
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        config = AutoConfig.for_model(kind, **FAMILIES[kind])
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


@pytest.fixture(scope="module", params=SPREAD)
def model(request):
    return model_of(request.param)


def naive(model, prompts, seeds, count, end, temperature=1.0):
    """One row at a time, all of it read again for every token."""
    answers = []
    for prompt, seed in zip(prompts, seeds, strict=True):
        ids = list(prompt)
        for uniform in uniforms([seed], count)[0]:
            logits = model(torch.tensor([ids]), use_cache=False).logits[:, -1]
            token = logits.argmax(-1) if not temperature else invert(logits / temperature, uniform[None])
            ids.append(int(token))
            if ids[-1] in end:
                break
        answers.append(ids[len(prompt) :])
    return answers


def written(model, prompts, seeds, count, end, temperature=1.0):
    with torch.no_grad():
        draw = Draw(seeds, count, temperature, 1.0)
        return write(Reader(model, 0), prompts, count, draw, lambda row, token: token in end)


@torch.no_grad()
def test_answers_of_every_family_are_those_of_a_loop_without_cache(model):
    assert spreads(model, PROMPTS[0], 0)
    seeds = [(7, row) for row in range(len(PROMPTS))]
    end = set(range(20))
    expected = naive(model, PROMPTS, seeds, 14, end)
    assert {len(ids) for ids in expected} > {1}
    assert written(model, PROMPTS, seeds, 14, end) == expected
    assert naive(model, PROMPTS[:4], seeds[:4], 9, (), 0) == written(model, PROMPTS[:4], seeds[:4], 9, (), 0)


def test_answers_do_not_depend_on_companions(model):
    seeds = [(7, row) for row in range(len(PROMPTS))]
    whole = written(model, PROMPTS, seeds, 14, {3, 4, 5, 6, 7})
    for some in ([0], [3, 1], [6, 5, 4, 2]):
        chosen = written(model, [PROMPTS[i] for i in some], [seeds[i] for i in some], 14, {3, 4, 5, 6, 7})
        assert chosen == [whole[i] for i in some]


@torch.no_grad()
@pytest.mark.parametrize(("kind", "samples"), [("rwkv", 1), ("xlstm", 2)])
def test_models_without_a_cache_of_rows_answer_by_generate(kind, samples):
    """transformers' RWKV mixes up the states of a batch, with `generate` alone too: one row."""
    model, tokenizer = model_of(kind), char_tokenizer(characters="abcdefghijklmnopqrstuvwxyz")
    assert not spreads(model, PROMPTS[0], 0)
    options = GenerationOptions(max_new_tokens=6, samples=samples, temperature=1.0, seed=5)
    (found,) = generate(model, tokenizer, ["abca"], options)
    ids = tuple(tokenizer("abca")["input_ids"])
    expected = naive(model, [ids] * samples, [(5, 0, sample) for sample in range(samples)], 6, {2})
    assert [list(one.ids) for one in found] == expected


def test_what_adapters_by_token_and_prefixes_do_is_left_to_generate():
    from peft import LoraConfig, PromptTuningConfig, get_peft_model

    prompt, tokenizer = PROMPTS[0], char_tokenizer()
    adapted = get_peft_model(tiny_model(1), LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    assert spreads(adapted, prompt, 0)
    by_token = LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM", alora_invocation_tokens=[5])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert not spreads(get_peft_model(tiny_model(1), by_token), prompt, 0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tuned = get_peft_model(tiny_model(1), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)).eval()
    assert not spreads(tuned, prompt, 0)
    (answer,) = generate(tuned, tokenizer, ["ab"], GenerationOptions(max_new_tokens=4))[0]
    ids = list(tokenizer("ab")["input_ids"])
    with torch.no_grad():
        for token in answer.ids:
            assert int(tuned(torch.tensor([ids])).logits[0, -1].argmax()) == token
            ids.append(token)


class Lost(torch.nn.Module):
    """A model that keeps something of the prompts outside of its cache."""

    def __init__(self, model):
        super().__init__()
        self.model, self.config, self.device = model, model.config, model.device
        self.prepare_inputs_for_generation = model.prepare_inputs_for_generation
        self.first = None

    def forward(self, input_ids, attention_mask=None, position_ids=None, past_key_values=None, **kwargs):
        out = self.model(input_ids, attention_mask=attention_mask, past_key_values=past_key_values, **kwargs)
        if past_key_values is None:
            self.first = input_ids[:, :1]
        out.logits = out.logits + self.model.get_input_embeddings()(self.first[: len(input_ids)]).mean(-1, keepdim=True)
        return out


def test_state_outside_of_the_cache_is_noticed():
    assert not spreads(Lost(tiny_model(1)), PROMPTS[0], 0)


def test_the_trial_is_made_once_for_each_model(monkeypatch):
    model, tried = tiny_model(1), []
    monkeypatch.setattr(decoding, "_agrees", lambda *_: tried.append(1) or True)
    assert spreads(model, (5,), 0)
    assert spreads(model, (6, 7), 0)
    assert tried == [1]


@pytest.mark.parametrize("prompt", [(5,), (5, 5, 5), (0,), (0, 0), (1, 0)])
def test_any_prompt_will_do_for_the_trial(prompt):
    with torch.no_grad():
        assert spreads(tiny_model(2), prompt, 0)


class Counted:
    """How many rows and positions each forward of a model reads."""

    def __init__(self, model):
        self.shapes = []
        self.handle = model.register_forward_pre_hook(self.count, with_kwargs=True)

    def count(self, _, args, kwargs):
        self.shapes.append(tuple(kwargs["input_ids"].shape))


def test_prompts_are_read_once_and_rows_leave():
    model = tiny_model(1)
    counted = Counted(model)
    lengths = [3, 9, 1, 5, 5, 9, 2, 9]
    sizes = [0] * 8

    def ends(row, _):
        sizes[row] += 1
        return sizes[row] == lengths[row]

    prompts = [(5, 6, 7)] * 4 + [(8, 9)] * 4
    with torch.no_grad():
        found = write(Reader(model, 0), prompts, 9, Draw([(1, row) for row in range(8)], 9, 1.0, 1.0), ends)
    assert [len(ids) for ids in found] == lengths == sizes
    alive = [sum(length > step for length in lengths) for step in range(1, 9)]
    assert counted.shapes == [(2, 3), *((rows, 1) for rows in alive)]


def test_closing_up_moves_the_last_rows_into_the_gaps():
    assert closed_up([True, False, True, False, True, True]) == [0, 5, 2, 4]
    assert closed_up([True] * 3) == [0, 1, 2]
    assert closed_up([False, False, True]) == [2]
    for bits in range(1, 64):
        kept = [bool(bits >> i & 1) for i in range(6)]
        assert sorted(closed_up(kept)) == [i for i in range(6) if kept[i]]


@pytest.mark.parametrize("window", [None, 4])
def test_roomy_layers_hold_what_transformers_do(window):
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    draw = torch.Generator().manual_seed(0)

    def states(rows, size):
        return [torch.randn(rows, 2, size, 3, generator=draw) for _ in range(2)]

    def plain():
        return DynamicLayer() if window is None else DynamicSlidingWindowLayer(sliding_window=window)

    theirs, read = plain(), plain()
    first = states(2, 5)
    theirs.update(*first)
    read.update(*first)
    rows = torch.tensor([0, 1, 1, 0])
    ours = (RoomyLayer if window is None else RoomySlidingLayer)(read, rows, 6)
    theirs.reorder_cache(rows)
    for step, kept in enumerate([None, [0, 3, 2], None, [2, 1], [1], None]):
        if kept is not None:
            theirs.reorder_cache(torch.tensor(kept))
            ours.reorder_cache(torch.tensor(kept))
        new = states(len(theirs.keys), 1)
        assert ours.get_mask_sizes(1) == theirs.get_mask_sizes(1)
        for found, expected in zip(ours.update(*new), theirs.update(*new), strict=True):
            assert torch.equal(found, expected), step
        assert ours.get_seq_length() == theirs.get_seq_length() == 6 + step
        assert torch.equal(ours.keys, theirs.keys)


def test_a_cache_grows_in_place(monkeypatch):
    """No tensor is made that holds all positions of all rows, once the prompts were read."""
    model, held = tiny_model(1), []
    update = RoomyLayer.update

    def watched(layer, *states):
        held.append((id(layer), layer._keys.data_ptr()))
        return update(layer, *states)

    monkeypatch.setattr(RoomyLayer, "update", watched)
    written(model, [(5, 6, 7)] * 3, [(1, row) for row in range(3)], 8, ())
    assert len(held) == 2 * 7
    assert len(set(held)) == 2


def test_one_token_that_reaches_the_limit_needs_no_further_forward():
    model = tiny_model(1)
    counted = Counted(model)
    assert [len(ids) for ids in written(model, [(5, 6)] * 2, [(1, 0), (1, 1)], 1, ())] == [1, 1]
    assert counted.shapes == [(1, 2)]


@pytest.mark.parametrize("stop", [(), ("e", "4")])
def test_ours_and_generate_give_the_same_answers(monkeypatch, stop):
    model, tokenizer = tiny_model(1, initializer_range=0.2), char_tokenizer()
    options = GenerationOptions(max_new_tokens=20, samples=3, temperature=0.9, top_p=0.95, seed=4, stop=stop)
    prompts = ["a", "12+7=", "the quick brown fox", "a"]
    ours = generate(model, tokenizer, prompts, options)
    monkeypatch.setattr(decoding, "spreads", lambda *_: False)
    assert generate(model, tokenizer, prompts, options) == ours


@pytest.mark.parametrize("size", [5, LIKELY, 3 * LIKELY])
@pytest.mark.parametrize("spread", [0.01, 1.0, 6.0])
def test_the_nucleus_is_that_of_doubles(size, spread):
    draw = torch.Generator().manual_seed(size)
    scores = torch.randn(6, size, generator=draw) * spread
    likely, order = scores.double().softmax(-1).sort(descending=True)
    before = torch.zeros_like(likely).scatter(-1, order, likely.cumsum(-1) - likely)
    for top_p in (0.05, 0.5, 0.95, 0.9999):
        found = Nucleus(top_p)(None, scores)
        # Of the token at the very edge rounding may tell otherwise.
        sure = (before - top_p).abs() > 1e-5
        assert sure.float().mean() > 0.9 or top_p > 0.99
        assert torch.equal(found.isinf()[sure], (before >= top_p)[sure])
        assert torch.equal(found[~found.isinf()], scores[~found.isinf()])
        assert (~found.isinf()).any(-1).all()


def test_the_vocabulary_is_sorted_only_where_it_must(monkeypatch):
    scores, sort, calls = torch.randn(2, 3 * LIKELY), torch.sort, []
    monkeypatch.setattr(torch, "sort", lambda *args, **kwargs: calls.append(1) or sort(*args, **kwargs))
    Nucleus(0.9)(None, scores * 6)
    assert not calls
    Nucleus(0.9)(None, scores * 0.01)
    assert calls
