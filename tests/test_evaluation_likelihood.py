import json
import math
from itertools import islice

import numpy as np
import pytest
import torch

from ballast.errors import BallastError
from ballast.evaluation.choice import choice_scores, question
from ballast.evaluation.likelihood import completion_sequences, kl_to_base, text_likelihood, windows
from tiny import CHAT_TEMPLATE, char_tokenizer, tiny_model

ROW = {"question": "2+2", "options": {"A": "four", "B": "five", "C": "a much longer option"}, "answer_idx": "A"}


@pytest.fixture(scope="module")
def tokenizer():
    return char_tokenizer()


@pytest.fixture(scope="module")
def model():
    return tiny_model(1, initializer_range=0.2)


def logprobs(model, ids):
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, :-1].double().log_softmax(-1)
    return logits.gather(1, torch.tensor(ids[1:])[:, None])[:, 0].numpy()


@pytest.mark.parametrize("length", [0, 1, 2, 7, 8, 9, 15, 16, 17, 40])
@pytest.mark.parametrize("stride", [None, 1, 3, 7])
def test_windows_score_every_token_once(length, stride):
    ids = tuple(range(100, 100 + length))
    cut = windows(ids, 8, stride=stride)
    assert [token for window in cut for token in window.targets] == list(ids[1:])
    for window in cut:
        place = ids.index(window.ids[0])
        assert window.ids == ids[place : place + len(window.ids)]
        assert len(window.ids) <= 8
    for window in cut[1:]:
        assert window.start >= 8 - (stride or 4)


@pytest.mark.parametrize("stride", [0, 8, 9])
def test_strides_that_leave_no_context(stride):
    with pytest.raises(BallastError, match="stride"):
        windows(range(20), 8, stride=stride)


def test_text_likelihood_equals_full_logits(model, tokenizer):
    rows = [{"text": "hello there"}, {"text": "a"}, {"text": "12+7=19"}]
    found = text_likelihood(model, tokenizer, rows)
    each = [logprobs(model, tokenizer(row["text"])["input_ids"]) for row in rows if len(row["text"]) > 1]
    total, tokens = -sum(values.sum() for values in each), sum(map(len, each))
    assert (found.rows, found.tokens, found.unscored_tokens) == (2, tokens, 3)
    assert found.nll.value == pytest.approx(total / tokens, rel=1e-5)
    # one token a character: the first has no prediction, so its character does not count either
    assert found.characters == tokens
    assert found.bits_per_character.value == pytest.approx(total / tokens / math.log(2), rel=1e-5)
    assert found.perplexity.value == pytest.approx(math.exp(total / tokens), rel=1e-5)
    assert found.perplexity.n == found.nll.n == 2


def test_a_first_token_counts_when_a_special_token_precedes_it(model):
    found = text_likelihood(model, char_tokenizer(add_bos=True), [{"text": "hello"}, {"text": "you"}])
    assert (found.tokens, found.characters, found.unscored_tokens) == (8, 8, 0)


def test_long_texts_lose_no_token(model, tokenizer):
    text = "the quick brown fox jumps over the lazy dog. " * 9
    found = text_likelihood(model, tokenizer, [{"text": text}, {"text": "short one"}])
    assert found.tokens == len(text) - 1 + len("short one") - 1
    ids = tokenizer(text)["input_ids"]
    by_hand = sum(logprobs(model, window.ids)[window.start - 1 :].sum() for window in windows(ids, 128))
    by_hand += logprobs(model, tokenizer("short one")["input_ids"]).sum()
    assert found.nll.value == pytest.approx(-by_hand / found.tokens, rel=1e-5)
    small = text_likelihood(model, tokenizer, [{"text": text}], context=16, stride=4)
    assert small.tokens == len(text) - 1
    assert small.nll.value != pytest.approx(found.nll.value, rel=1e-3)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"text": "ok"}, {"story": "x"}], "row 2: 'text' must be text, it is absent"),
        ([{"text": 3}], "row 1: 'text' must be text, it is a int"),
        ([{"text": "a"}, {"text": ""}], "nothing to score"),
    ],
)
def test_texts_that_cannot_be_scored(model, tokenizer, rows, words):
    with pytest.raises(BallastError, match=words):
        text_likelihood(model, tokenizer, rows)


@pytest.mark.parametrize("conversational", [False, True])
@pytest.mark.parametrize("add_bos", [False, True])
def test_demonstrations_and_prompts_have_the_ids_of_training(model, conversational, add_bos):
    from datasets import Dataset

    from ballast.data import PrepareOptions, prepare
    from ballast.evaluation.generation import encode_prompt

    tokenizer = char_tokenizer(add_bos=add_bos, chat_template=CHAT_TEMPLATE if conversational else None)
    row = {"prompt": "12+7=", "completion": " 19"}
    if conversational:
        row = {
            "prompt": [{"role": "user", "content": "12+7="}],
            "completion": [{"role": "assistant", "content": "19"}],
        }
    prepared = prepare(Dataset.from_list([row]), tokenizer, PrepareOptions(max_length=64)).dataset[0]
    (sequence,) = completion_sequences(model, tokenizer, [row])
    assert list(sequence.ids) == prepared["input_ids"]
    assert sequence.start == sum(label == -100 for label in prepared["labels"])
    assert list(encode_prompt(tokenizer, row["prompt"])) == prepared["input_ids"][: sequence.start]


def test_kl_to_base(model, tokenizer):
    rows = [{"prompt": "12+7=", "completion": "19"}, {"prompt": "a", "completion": "bcd"}]
    sequences = completion_sequences(model, tokenizer, rows)
    same = kl_to_base(model, model, sequences)
    assert same.kl.value == pytest.approx(0, abs=1e-6)
    base = tiny_model(8, initializer_range=0.2)
    base.train()
    found = kl_to_base(model, base, sequences)
    kl = entropy = 0.0
    for sequence in sequences:
        with torch.no_grad():
            ids = torch.tensor([sequence.ids])
            p, q = (m(ids).logits[0, sequence.start - 1 : -1].double().log_softmax(-1) for m in (model, base))
        kl += float((p.exp() * (p - q)).sum())
        entropy -= float((p.exp() * p).sum())
    assert found.tokens == 3 + 4
    assert found.kl.value == pytest.approx(kl / 7, rel=1e-4)
    assert found.entropy.value == pytest.approx(entropy / 7, rel=1e-4)
    assert base.training
    grouped = kl_to_base(model, base, sequences, owners=[0, 0])
    assert (grouped.kl.n, grouped.kl.value) == (1, pytest.approx(found.kl.value))


def test_kl_to_base_with_an_adapter_switched_off(tokenizer):
    from peft import LoraConfig, get_peft_model

    from ballast.head import backbone_hidden, lm_head

    model = get_peft_model(tiny_model(1), LoraConfig(target_modules=["q_proj"], init_lora_weights=False))

    class AdapterOff:
        head = lm_head(model)

        def hidden(self, **inputs):
            with model.disable_adapter():
                return backbone_hidden(model, **inputs)

    sequences = completion_sequences(model, tokenizer, [{"prompt": "12+7=", "completion": "19"}])
    expected = kl_to_base(model, tiny_model(1), sequences).kl.value
    assert expected > 1e-4
    assert kl_to_base(model, AdapterOff(), sequences).kl.value == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "a"}, "row 1: no column 'completion'"),
        ({"prompt": "", "completion": "b"}, "row 1: the completion has no token that the prompt precedes"),
        ({"prompt": "a" * 100, "completion": "b" * 100}, "row 1: 201 tokens exceed"),
    ],
)
def test_demonstrations_that_cannot_be_scored(model, tokenizer, row, words):
    with pytest.raises(BallastError, match=words):
        completion_sequences(model, tokenizer, [row])


@pytest.mark.parametrize("style", ["text", "letter"])
def test_choice_scores_by_hand(model, tokenizer, style):
    prompt = {"text": "2+2\nAnswer:", "letter": "2+2\nA. four\nB. five\nC. a much longer option\nAnswer:"}[style]
    continuations = [f" {one}" for one in (ROW["options"].values() if style == "text" else ROW["options"])]
    (scored,) = choice_scores(model, tokenizer, [ROW], style=style)
    for place, continuation in enumerate(continuations):
        ids = tokenizer(prompt + continuation)["input_ids"]
        total = logprobs(model, ids)[-len(continuation) :].sum()
        assert scored.loglik["sum"][place] == pytest.approx(total, rel=1e-4)
        assert scored.loglik["token"][place] == pytest.approx(total / len(continuation), rel=1e-4)
        assert scored.loglik["character"][place] == pytest.approx(total / (len(continuation) - 1), rel=1e-4)
    assert scored.picked("sum") == int(np.argmax(scored.loglik["sum"]))


@pytest.mark.parametrize(
    ("changes", "answer"),
    [
        ({}, 0),
        ({"answer_idx": "C"}, 2),
        ({"answer_idx": None, "answer": "five"}, 1),
        ({"answer_idx": None, "answer": "B"}, 1),
        ({"options": ["four", "five"], "answer_idx": 1}, 1),
        ({"options": ["four", "five"], "answer_idx": "B"}, 1),
        ({"answer": "four"}, 0),
        ({"options": {"A": "x", "B": "y", "C": None}}, 0),
    ],
)
def test_which_option_is_right(changes, answer):
    assert question({**ROW, **changes}).answer == answer


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"answer_idx": "D"}, "names none of the options"),
        ({"answer_idx": 3, "options": ["a", "b"]}, "names none"),
        ({"answer_idx": None}, "says which option is right"),
        ({"answer_idx": "A", "answer": "five"}, "name different options"),
        ({"options": ["a"]}, "at least two"),
        ({"options": ["a", "a"], "answer_idx": "a"}, "names 2 of the options"),
        ({"question": None}, "no 'question'"),
    ],
)
def test_rows_that_are_no_question(model, tokenizer, changes, words):
    with pytest.raises(BallastError, match=f"row 2: .*{words}"):
        choice_scores(model, tokenizer, [ROW, {**ROW, **changes}])


def test_over_long_questions_are_refused_or_counted(model, tokenizer):
    rows = [ROW, {**ROW, "question": "x" * 120}]
    with pytest.raises(BallastError, match=r"row 2: .*context of 128 \(1 of 2 rows do\)"):
        choice_scores(model, tokenizer, rows)
    scored = choice_scores(model, tokenizer, rows, overlong="skip")
    assert [one.loglik is None for one in scored] == [False, True]
    with pytest.raises(BallastError, match="did you mean 'letter'"):
        choice_scores(model, tokenizer, rows, style="leter")


def test_medqa_rows(real_data):
    model, tokenizer = real(real_data, "stories260K")
    with open(real_data / "data/medqa/us_4options_test.jsonl") as file:
        rows = [json.loads(line) for line in islice(file, 12)]
    scored = choice_scores(model, tokenizer, rows, overlong="skip")
    kept = [one for one in scored if one.loglik is not None]
    assert 0 < len(kept) < len(rows)
    for one, row in zip(scored, rows, strict=True):
        assert one.question.options[one.question.answer] == row["answer"]
    for one in kept:
        assert all(math.isfinite(value) and value < 0 for value in one.loglik["sum"])
        prompt = tokenizer(f"{one.question.text}\nAnswer:")["input_ids"]
        ids = tokenizer(f"{one.question.text}\nAnswer: {one.question.options[0]}")["input_ids"]
        assert ids[: len(prompt)] == prompt
        assert one.loglik["sum"][0] == pytest.approx(logprobs(model, ids)[len(prompt) - 1 :].sum(), rel=1e-4)


@pytest.mark.parametrize(("name", "bits"), [("stories260K", (0.8, 1.1)), ("babyllama-361", (0.75, 1.05))])
def test_real_models_know_their_stories(real_data, name, bits):
    model, tokenizer = real(real_data, name)
    with open(real_data / "data/tinystories/tinystories_5k.jsonl") as file:
        rows = [json.loads(line) for line in islice(file, 12)]
    found = text_likelihood(model, tokenizer, rows)
    assert bits[0] < found.bits_per_character.value < bits[1]
    assert found.bits_per_character.low < found.bits_per_character.value < found.bits_per_character.high
    assert found.tokens == sum(len(tokenizer(row["text"])["input_ids"]) - 1 for row in rows)
    assert found.characters == sum(len(row["text"]) for row in rows)


def real(real_data, name):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = real_data / "models" / name
    return AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
