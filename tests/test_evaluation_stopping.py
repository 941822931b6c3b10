"""Stop strings: where an answer ends, what its text is, and that nothing else decides it."""

import pytest
import torch

from ballast.errors import BallastError
from ballast.evaluation import Task, evaluate
from ballast.evaluation.generation import GenerationOptions, generate, read_completion
from ballast.evaluation.stopping import StopStrings, check_stop
from tiny import char_tokenizer, tiny_model

PROMPTS = ["a", "12+7=", "the quick brown fox jumps over", "so", "x" * 40]
SAMPLED = {"max_new_tokens": 40, "samples": 3, "temperature": 0.9, "seed": 4}


@pytest.fixture(scope="module")
def tokenizer():
    return char_tokenizer()


@pytest.fixture(scope="module")
def model():
    return tiny_model(1, initializer_range=0.2)


@pytest.fixture(scope="module")
def byte_level():
    """A byte-level tokenizer with tokens of several characters, and characters of several tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate(["<eos>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    for merged in ("ab", "Ċ" + "Q", "Q" + "u", "Ċ" + "Ċ"):
        vocabulary[merged] = len(vocabulary)
    merges = [("a", "b"), ("Ċ", "Q"), ("Q", "u"), ("Ċ", "Ċ")]
    backend = Tokenizer(models.BPE(vocabulary, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", clean_up_tokenization_spaces=False)


def fed(tokenizer, ids, stop, prompt=(), ends=frozenset()):
    """Return at which token a row stops that is fed these ids, and its completion."""
    criterion = StopStrings(tokenizer, [tuple(prompt)], stop, set(ends))
    for size in range(1, len(ids) + 1):
        if criterion(torch.tensor([[*prompt, *ids[:size]]]), None).all():
            break
    (length,) = criterion.lengths
    return length, read_completion(tokenizer, tuple(prompt), ids[:length], set(ends), stop)


def by_hand(tokenizer, prompt, ids, stop):
    """Return tokens and text of an answer that is cut at a stop string, decoding all of it after every token."""
    before = tokenizer.decode(prompt, skip_special_tokens=True)
    for size in range(1, len(ids) + 1):
        text = tokenizer.decode([*prompt, *ids[:size]], skip_special_tokens=True)[len(before) :]
        if found := [text.index(one) for one in stop if one in text]:
            return size, text[: min(found)], True
    return len(ids), text, False


@pytest.mark.parametrize("how", [{"max_new_tokens": 40}, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("stop", [("e",), ("ab", "4", "Z"), ("never there",)])
def test_an_answer_is_the_one_without_stop_cut_at_the_first(model, tokenizer, how, stop):
    free = generate(model, tokenizer, PROMPTS, GenerationOptions(**how))
    found = generate(model, tokenizer, PROMPTS, GenerationOptions(**how, stop=stop))
    cut = 0
    for prompt, wholes, answers in zip(PROMPTS, free, found, strict=True):
        prompt_ids = tokenizer(prompt)["input_ids"]
        for whole, answer in zip(wholes, answers, strict=True):
            tokens, text, stopped = by_hand(tokenizer, prompt_ids, whole.ids, stop)
            assert answer.ids == whole.ids[:tokens]
            assert (answer.tokens, answer.text) == (tokens, text)
            assert answer.ended == (stopped or whole.ended)
            cut += stopped
    if how is SAMPLED and stop != ("never there",):
        assert cut > 0


def test_stopped_answers_do_not_depend_on_the_batch(model, tokenizer):
    options = {**SAMPLED, "stop": ("e", "4", "Z")}
    whole = generate(model, tokenizer, PROMPTS, GenerationOptions(**options))
    flat = [answer for answers in whole for answer in answers]
    assert 0 < sum(answer.tokens < 40 for answer in flat) < len(flat) == 15
    for batch_tokens in (1, 150, 400):
        assert generate(model, tokenizer, PROMPTS, GenerationOptions(**options, batch_tokens=batch_tokens)) == whole


def test_padding_behind_a_stop_is_not_an_end_token(model):
    tokenizer = char_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    options = GenerationOptions(**SAMPLED, stop=("e", "4", "Z"))
    answers = [one for some in generate(model, tokenizer, PROMPTS, options) for one in some]
    stopped = [one for one in answers if one.ended and one.ids[-1] != tokenizer.eos_token_id]
    assert stopped
    assert all(tokenizer.decode(one.ids)[-1] in "e4Z" for one in stopped)


@pytest.mark.parametrize(
    ("pieces", "stop", "tokens", "text"),
    [
        (["x", "a", "b", "c"], ("ab",), 3, "x"),
        (["x", "\n", "Qu", "y"], ("\nQ",), 3, "x"),
        (["x", "\n", "Qu", "y"], ("\nQu", "Q", "\n"), 2, "x"),
        (["x", "\n\n", "y"], ("\n",), 2, "x"),
        (["\n\n", "y"], ("\n\n",), 1, ""),
        (["x", "ab"], ("b", "ab", "xa"), 2, ""),
        (["e", "é", "日", "本", "x"], ("日本",), 9, "eé"),
        (["日"] * 30 + ["本", "x"], ("日本",), 93, "日" * 29),
        (["日"] * 30 + ["ab"], ("a",), 91, "日" * 30),
        (["x", "y"], ("ab",), None, "xy"),
    ],
)
def test_stop_strings_across_tokens_within_tokens_and_among_parts_of_characters(byte_level, pieces, stop, tokens, text):
    ids = [token for piece in pieces for token in byte_level(piece)["input_ids"]]
    for prompt in ("", "a\n", "日本 ab\nQ"):
        length, answer = fed(byte_level, ids, stop, byte_level(prompt)["input_ids"])
        assert length == tokens
        assert answer.text == text
        assert answer.ended == (tokens is not None)
        assert answer.tokens == (tokens or len(ids))


def test_a_stop_string_may_be_much_longer_than_a_token_and_late(byte_level):
    stop = "Question: what is ab?"
    ids = byte_level("日x" * 200 + stop + " more")["input_ids"]
    length, answer = fed(byte_level, ids, (stop,), byte_level("ab")["input_ids"])
    assert byte_level.decode(ids[:length]).endswith(stop)
    assert answer.text == "日x" * 200


def test_the_prompt_is_not_searched(byte_level):
    prompt = byte_level("Q: a\n")["input_ids"]
    assert fed(byte_level, byte_level("Qxyz")["input_ids"], ("\nQ", "\n", ": a"), prompt)[0] is None


def test_an_end_token_before_a_stop_string_ends_the_answer(tokenizer):
    ids = [*tokenizer("xy")["input_ids"], tokenizer.eos_token_id, *tokenizer("ab")["input_ids"]]
    length, answer = fed(tokenizer, ids, ("ab", "yab"), ends={tokenizer.eos_token_id})
    assert length is None
    assert (answer.text, answer.tokens, answer.ended) == ("xy", 3, True)


def test_the_work_of_a_token_does_not_grow_with_the_answer(byte_level, monkeypatch):
    sizes, decode = [], type(byte_level).decode

    def counted(self, ids, **options):
        sizes.append(len(ids))
        return decode(self, ids, **options)

    monkeypatch.setattr(type(byte_level), "decode", counted)
    ids = byte_level("日x" * 300)["input_ids"]
    criterion = StopStrings(byte_level, [tuple(byte_level("a" * 500)["input_ids"])], ("\nQ:", "\n\n"), set())
    for size in range(1, len(ids) + 1):
        criterion(torch.tensor([ids[:size]]), None)
    assert len(ids) == 1200
    assert max(sizes) <= 48
    assert len(sizes) <= 4 * len(ids)


def test_a_special_token_is_refused_since_no_text_has_it(model, tokenizer):
    check_stop(tokenizer, ("<eo", "\n"))
    with pytest.raises(BallastError, match="stop '\\\\n<eos>': '<eos>' is a special token"):
        generate(model, tokenizer, ["ab"], GenerationOptions(stop=("x", "\n<eos>")))


@pytest.mark.parametrize("stop", ["ab", ("",), ("a", "")])
def test_stop_strings_of_generation_are_texts(stop):
    with pytest.raises(BallastError, match="stop = "):
        GenerationOptions(stop=stop)


@pytest.mark.parametrize("kind", ["generate", "readiness", "code"])
def test_tasks_that_sample_take_one_or_several(kind):
    assert Task("t", kind, []).stop == ()
    for given, expected in (("\n", ("\n",)), (["a", "b"], ("a", "b"))):
        task = Task("t", kind, [], stop=given)
        assert task.stop == task.generation().stop == expected
        assert task.settings()["stop"] == list(expected)
    for wrong in ("", [""], 3, [3]):
        with pytest.raises(BallastError, match=r"stop"):
            Task("t", kind, [], stop=wrong)


def test_tasks_that_do_not_sample_refuse_it():
    with pytest.raises(BallastError, match="stop: is an option of kind generate, code, readiness"):
        Task("t", "choice", [], stop="\n")


def test_a_task_judges_the_text_before_and_measures_all_tokens(model, tokenizer):
    rows = [{"prompt": prompt, "answer": "-"} for prompt in PROMPTS]
    how = {"name": "t", "data": rows, "verifier": "exact", **SAMPLED, "entropy": True}
    (plain,), (stopped,) = (evaluate(model, tokenizer, [{**how, **more}]) for more in ({}, {"stop": ["e", "4", "Z"]}))
    assert stopped.metrics["answer_tokens"].value < plain.metrics["answer_tokens"].value
    assert stopped.counts["cut_off"] < plain.counts["cut_off"]
    answers = [one for item in stopped.items for one in item["completions"]]
    assert not any(set(one["text"]) & set("e4Z") for one in answers)
    assert any(one["ended"] and one["tokens"] == len(one["text"]) + 1 for one in answers)
