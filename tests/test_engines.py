"""Engines against a server in this process: answers, seeds, stop strings, retries, and the check of the model."""

import random
import time
from dataclasses import replace

import pytest
import torch

from ballast.engines import check, openai, vllm
from ballast.engines.client import RateLimit
from ballast.engines.options import OpenAIEngine, VllmEngine
from ballast.engines.sampling import Sampling, seed_of
from ballast.errors import BallastError
from ballast.evaluation.generation import GenerationOptions, generate
from ballast.options import OptionsError
from fake_server import FakeServer, Reply, busy
from tiny import CHARACTERS, CHAT_TEMPLATE, char_tokenizer, tiny_model

PROMPTS = ["a", "12+7=", "the quick brown fox jumps over", "so", "x" * 20]
GREEDY = GenerationOptions(max_new_tokens=6)
SAMPLED = GenerationOptions(max_new_tokens=6, samples=3, temperature=0.9, top_p=0.95, seed=4)
FAST = {"retries": 2, "timeout": 20.0}


@pytest.fixture(scope="module")
def tokenizer():
    return char_tokenizer(chat_template=CHAT_TEMPLATE)


@pytest.fixture(scope="module")
def model():
    return tiny_model(1, initializer_range=0.2)


@pytest.fixture
def server(model, tokenizer):
    with FakeServer(model, tokenizer) as one:
        yield one


@pytest.fixture
def ask(server, model, tokenizer):
    """Sample by vLLM at the server; `check` is 0 unless a test is about it."""

    def sample(prompts=PROMPTS, options=GREEDY, *, streams=None, progress=None, served=model, **settings):
        engine = VllmEngine(base_url=server.base_url, **{**FAST, "check": 0, **settings})
        with vllm.opened(engine, "", "float32") as found:
            look = None
            if engine.check:
                look = lambda *given: check.check_logprobs(*given, bound=engine.bound)  # noqa: E731
            sampling = Sampling(found, served, look, engine.check)
            answers = sampling.generate(served, tokenizer, prompts, options, streams=streams, progress=progress)
            return answers, sampling

    return sample


@pytest.fixture
def write(server, model, tokenizer):
    """Sample in text."""

    def sample(prompts=PROMPTS, options=GREEDY, **settings):
        given = {"base_url": server.base_url, "model": "tiny", "check": 0, **FAST, **settings}
        engine = OpenAIEngine(**given)
        with openai.opened(engine, tokenizer) as found:
            looks = (check.check_greedy, check.check_draws) if engine.check else (None, None)
            sampling = Sampling(found, model, looks[0], engine.check, looks[1])
            return sampling.generate(model, tokenizer, prompts, options), found

    return sample


def texts(answers):
    return [[(one.text, one.tokens, one.ended, one.ids) for one in some] for some in answers]


def test_greedy_answers_are_those_of_our_own_loop_id_by_id(ask, model, tokenizer):
    answers, _ = ask()
    assert texts(answers) == texts(generate(model, tokenizer, PROMPTS, GREEDY))
    assert len({some[0].ids for some in answers}) > 1


def test_text_is_made_of_the_ids_and_never_ids_of_text(ask, server, model, tokenizer):
    server.change = {"text": "zz"}
    assert texts(ask()[0]) == texts(generate(model, tokenizer, PROMPTS, GREEDY))


def test_an_answer_depends_on_its_item_and_seed_alone(ask):
    whole, _ = ask(options=SAMPLED)
    order = list(range(len(PROMPTS)))
    random.Random(3).shuffle(order)
    streams = [(row,) for row in order]
    shuffled, _ = ask([PROMPTS[row] for row in order], SAMPLED, streams=streams, concurrency=1)
    assert [texts(whole)[row] for row in order] == texts(shuffled)
    other, _ = ask(options=replace(SAMPLED, seed=5))
    assert texts(other) != texts(whole)
    # The samples of a prompt are not one sample, and equal prompts in two rows have answers of their own.
    assert all(len({one.ids for one in some}) > 1 for some in whole)
    twice, _ = ask(["so", "so"], SAMPLED)
    assert twice[0] != twice[1]


def test_seeds_are_small_and_all_different():
    seeds = [seed_of((seed, row, sample)) for seed in range(4) for row in range(50) for sample in range(8)]
    assert len(set(seeds)) == len(seeds)
    assert min(seeds) >= 0
    assert 2**30 < max(seeds) < 2**31


def test_stop_strings_end_answers_where_ours_end(ask, model, tokenizer):
    options = GenerationOptions(max_new_tokens=16, samples=4, temperature=1.0, stop=("a", "1", "("), seed=2)
    answers, _ = ask(options=options)
    ended = [one for some in answers for one in some if one.ended]
    assert len(ended) > 5
    assert not any(mark in one.text for some in answers for one in some for mark in options.stop)
    # The token that completed the stop string was generated.
    assert all(one.ids[-1] == 2 or tokenizer.decode(one.ids[-1:]) in options.stop for one in ended)


def test_a_request_leaves_nothing_to_the_servers_defaults(ask, server):
    ask(["so"], SAMPLED)
    assert len(server.bodies) == 3
    for body in server.bodies:
        kept = {name: body[name] for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")}
        assert kept == {"temperature": 0.9, "top_p": 0.95, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
        assert body["stop_token_ids"] == [2]
        assert body["ignore_eos"]
        assert body["return_token_ids"]
        assert "n" not in body
    assert len({body["seed"] for body in server.bodies}) == 3


def test_progress_and_usage_count_answers(ask, server):
    told = []
    answers, sampling = ask(options=SAMPLED, progress=lambda done, total: told.append((done, total)))
    assert told == [(n, 15) for n in range(1, 16)]
    used = sampling.engine.usage
    assert used.requests == 15
    assert used.answer_tokens == sum(one.tokens for some in answers for one in some)
    assert used.prompt_tokens == 3 * sum(map(len, PROMPTS))


def test_the_key_of_a_variable_is_sent_and_told_nowhere(server, model, tokenizer, ask, monkeypatch):
    server.key = "sk-secret"
    with pytest.raises(BallastError, match=r"lets nobody in .* engine.key_variable") as error:
        ask()
    monkeypatch.setenv("SOME_KEY", "sk-secret")
    assert texts(ask(key_variable="SOME_KEY")[0]) == texts(generate(model, tokenizer, PROMPTS, GREEDY))
    monkeypatch.setenv("SOME_KEY", "sk-other")
    with pytest.raises(BallastError, match="look at the key in SOME_KEY") as other:
        ask(key_variable="SOME_KEY")
    assert not any("sk-" in str(one.value) for one in (error, other))
    monkeypatch.delenv("SOME_KEY")
    with pytest.raises(BallastError, match="SOME_KEY is not set"):
        ask(key_variable="SOME_KEY")


@pytest.mark.parametrize("status", [408, 409, 429, 500, 503])
def test_a_busy_server_is_asked_again_to_the_same_answers(ask, server, model, tokenizer, status):
    server.trouble = lambda number, body: busy(status) if number in (1, 2, 5) else None
    answers, sampling = ask(concurrency=1)
    assert texts(answers) == texts(generate(model, tokenizer, PROMPTS, GREEDY))
    assert len(server.bodies) == len(PROMPTS) + 3
    assert sampling.engine.usage.requests == len(PROMPTS)


def test_a_lost_connection_is_tried_again(ask, server, model, tokenizer):
    server.trouble = lambda number, body: Reply(drop=True) if number == 2 else None
    assert texts(ask(concurrency=1)[0]) == texts(generate(model, tokenizer, PROMPTS, GREEDY))


REFUSED = {
    "429 for ever": (lambda number, body: busy(), r"fewer requests, after 3 tries .*engine.requests_per_minute"),
    "500 for ever": (lambda number, body: busy(500), r"status 500, after 3 tries"),
    "400": (lambda number, body: Reply({"error": "too long"}, 400), r"status 400: .*too long.* own log"),
    "404": (lambda number, body: Reply({"error": "gone"}, 404), r"no such model or path .*correct engine.model"),
    "a page": (lambda number, body: Reply("<html>hello"), r"no reply of OpenAI's API .*<html>hello.*/v1"),
    "other JSON": (lambda number, body: Reply({"answer": 42}), r"no reply of OpenAI's API"),
    "cut JSON": (
        lambda number, body: Reply('{"model": "ti', headers={"content-type": "application/json"}),
        r"no reply of OpenAI's API",
    ),
    "no choices": (
        lambda number, body: Reply(
            {"model": "tiny", "choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}
        ),
        r"asked for one answer of 'tiny' and gives 0",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_answer_ends_sampling_in_one_line(ask, server, case):
    server.trouble, words = REFUSED[case]
    with pytest.raises(BallastError, match=words) as error:
        ask()
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(f"engine: {server.base_url}")
    assert "of 5 answers had come" in str(error.value)


def test_no_server_and_one_that_dies_midway(ask, server):
    def die(number, body):
        if number == 3:
            server._http.socket.close()
        return Reply(drop=True) if number >= 3 else None

    server.trouble = die
    with pytest.raises(BallastError, match=r"cannot be reached, after 1 try .*2 of 5 answers had come"):
        ask(concurrency=1, retries=0)
    server._http.socket.close()
    with pytest.raises(BallastError, match=r"cannot be reached, after 1 try .*start the server"):
        ask(retries=0)


def test_an_answer_that_takes_too_long_is_given_up(ask, server):
    server.trouble = lambda number, body: time.sleep(1.0)
    began = time.monotonic()
    with pytest.raises(BallastError, match=r"no answer within 0.2 seconds, after 1 try; raise engine.timeout"):
        ask(timeout=0.2, retries=0)
    assert time.monotonic() - began < 0.9


CHANGED = {
    "no ids": ({"token_ids": None}, r"no token ids .* engine.kind=openai"),
    "no log-probabilities": ({"logprobs": None}, r"no token ids or no log-probabilities"),
    "another prompt": ({"prompt_token_ids": [5]}, r"read a prompt of \d+ tokens as 1 others"),
    "an error": ({"finish_reason": "error"}, r"ended an answer of \d+ tokens by 'error'"),
    "too few log-probabilities": ({"logprobs": {"token_logprobs": []}}, r"ended an answer"),
    "text for ids": ({"token_ids": ["a"]}, r"no reply of OpenAI's API"),
    "negative ids": ({"token_ids": [-1], "logprobs": {"token_logprobs": [-1.0]}}, r"no reply of OpenAI's API"),
}


@pytest.mark.parametrize("case", CHANGED)
def test_an_answer_that_lacks_what_is_trained_on_is_refused(ask, server, case):
    server.change, words = CHANGED[case]
    with pytest.raises(BallastError, match=words):
        ask()


def test_the_model_that_is_named_must_be_there(ask, server):
    with pytest.raises(BallastError, match=r"has no model 'larger', only 'tiny', so another would be measured"):
        ask(model="larger")
    server.models = ["tiny", "other"]
    with pytest.raises(BallastError, match=r"has 2 models \(tiny, other\); name one"):
        ask()
    server.name = "other"
    with pytest.raises(BallastError, match=r"asked for one answer of 'tiny' and gives 1 of 'other'"):
        ask(model="tiny")


def test_the_check_passes_the_model_itself_and_finds_other_weights(ask, server, model):
    _, sampling = ask(check=4)
    assert 0 <= sampling.checked < 1e-4
    asked = len(server.bodies)
    server.model = tiny_model(7, initializer_range=0.2)
    with pytest.raises(BallastError) as error:
        ask(check=4)
    said = str(error.value)
    assert "tiny gives sampled tokens a mean log-probability of -" in said
    assert ", the model here -" in said
    assert len(server.bodies) == asked + 4  # refused before anything is sampled


def test_the_check_finds_weights_that_are_a_little_other(ask, server, model):
    """As after some steps of training, which is the mistake that happens."""
    near = tiny_model(1, initializer_range=0.2)
    with torch.no_grad():
        for weight in near.parameters():
            weight += 0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    server.model = near
    with pytest.raises(BallastError, match=r"by token they differ by 0\.\d+, engine.bound is 0.05"):
        ask(check=4)
    _, sampling = ask(check=4, bound=10.0)
    assert sampling.checked > 0.05


def test_the_check_passes_a_coarser_dtype_and_its_difference_is_kept(ask, server):
    server.model = tiny_model(1, initializer_range=0.2).to(torch.bfloat16)
    _, sampling = ask(check=4)
    assert 1e-4 < sampling.checked < 0.05


def test_the_check_finds_another_tokenizer(ask, server):
    other = "".join(random.Random(0).sample(CHARACTERS, len(CHARACTERS)))
    server.tokenizer = char_tokenizer(characters=other)
    with pytest.raises(BallastError, match=r"writes the tokens of an answer as .* has another tokenizer"):
        ask(check=4)


def test_a_second_model_is_not_answered_for(server, model, tokenizer):
    words = "serves one model, and a second one writes here"
    with (
        vllm.opened(VllmEngine(base_url=server.base_url), "", "float32") as found,
        pytest.raises(BallastError, match=words),
    ):
        Sampling(found, model, None, 0).generate(tiny_model(2), tokenizer, PROMPTS)


def test_requests_a_minute_are_kept(ask, server):
    ask(requests_per_minute=600.0)
    assert server.began[-1] - server.began[0] > 0.35
    for rate, least in ((1200.0, 0.19), (None, 0.0)):
        limit, began = RateLimit(rate), time.monotonic()
        for _ in range(5):
            limit.wait()
        assert least <= time.monotonic() - began < least + 5


def test_text_of_a_server_counts_as_the_same_greedy_answers(write, model, tokenizer):
    answers, engine = write(price={"prompt": 2.0, "answer": 4.0}, check=3)
    own = generate(model, tokenizer, PROMPTS, GREEDY)
    assert [[(one.text, one.tokens) for one in some] for some in answers] == [
        [(one.text, one.tokens) for one in some] for some in own
    ]
    assert all(one.ids == () for some in answers for one in some)
    used = engine.usage
    assert used.requests == 8
    assert engine.cost == pytest.approx((2 * used.prompt_tokens + 4 * used.answer_tokens) / 1e6)


def test_messages_go_through_the_servers_template_or_through_ours(write, server, model, tokenizer):
    rows = [{"prompt": [{"role": "user", "content": "1+1="}]}, {"prompt": [{"role": "user", "content": "so"}]}]
    own = [some[0].text for some in generate(model, tokenizer, rows, GREEDY)]
    for api in ("chat", "completions"):
        answers, _ = write(rows, api=api)
        assert [some[0].text for some in answers] == own
    assert server.bodies[0]["messages"] in [row["prompt"] for row in rows]
    assert server.bodies[-1]["prompt"].endswith("<assistant>")
    write(["so"], api="chat")
    assert server.bodies[-1]["messages"] == [{"role": "user", "content": "so"}]
    with pytest.raises(BallastError, match=r"chat has no 'chat_template_kwargs'.*engine.api=completions"):
        write([{**rows[0], "chat_template_kwargs": {"x": 1}}], api="chat")


def test_a_server_of_text_is_checked_by_its_greedy_answers(write, server):
    server.model = tiny_model(7, initializer_range=0.2)
    with pytest.raises(BallastError, match=r"to \d of 4 prompts tiny answers something else than the model here"):
        write(check=4)
    write(check=0)


def test_a_server_that_does_not_sample_is_found(write, server):
    """As `transformers serve` of a model whose generation defaults are greedy."""
    server.trouble = lambda number, body: body.update(temperature=0.0)
    write(check=2)
    with pytest.raises(BallastError, match="answers the same from two seeds at temperature 2"):
        write(options=SAMPLED, check=2)
    server.trouble = lambda number, body: None
    answers, _ = write(options=SAMPLED, check=2)
    assert all(len({one.text for one in some}) > 1 for some in answers)


@pytest.mark.parametrize(
    "change", [{"text": None}, {"finish_reason": "content_filter"}, {"finish_reason": None}, {"text": 5}]
)
def test_a_row_without_an_answer_in_text_is_refused(write, server, change):
    server.change = change
    with pytest.raises(BallastError, match=r"gives no text|no reply of OpenAI's API"):
        write()


WRONG = [
    ({"kind": "vlm"}, "kind", "did you mean 'vllm'"),
    ({"kind": "vllm", "requests_per_minute": -1}, "requests_per_minute", "greater than 0"),
    ({"kind": "vllm", "concurrency": 0}, "concurrency", "greater than or equal to 1"),
    ({"kind": "vllm", "retries": -1}, "retries", "greater than or equal to 0"),
    ({"kind": "vllm", "timeout": 0}, "timeout", "greater than 0"),
    ({"kind": "vllm", "base_url": "localhost:8000"}, "base_url", "is no address"),
    ({"kind": "vllm", "key_variable": "sk-1234"}, "key_variable", "no name of an environment variable"),
    ({"kind": "vllm", "model": "x"}, "model", "would be ignored"),
    ({"kind": "vllm", "arguments": ["--port", "1"]}, "arguments", "--port is set by ballast"),
    ({"kind": "vllm", "arguments": ["--dtype=half"]}, "arguments", "set engine.dtype"),
    ({"kind": "vllm", "command": []}, "command", "no server could be started"),
    ({"kind": "vllm", "base_url": "http://x/v1", "command": ["vllm"]}, "command", "runs already"),
    ({"kind": "vllm", "price": {"prompt": 1, "answer": 1}}, "price", "unknown key"),
    ({"kind": "openai", "base_url": "http://x/v1"}, "model", "required"),
    ({"kind": "openai", "model": "x"}, "base_url", "required"),
    (
        {"kind": "openai", "model": "x", "base_url": "http://x", "price": {"prompt": -1, "answer": 1}},
        "price",
        "greater",
    ),
    ({"kind": "transformers", "concurrency": 3}, "concurrency", "unknown key"),
]


@pytest.mark.parametrize(("given", "key", "words"), WRONG)
def test_options_that_cannot_be_used(given, key, words):
    from ballast.config.recipe import Recipe

    with pytest.raises(OptionsError) as error:
        Recipe.from_dict({"engine": given})
    where, message = error.value.problems[0]
    assert (where[0], where[1]) == ("engine", key)
    assert words in message
    assert "sk-1234" not in str(error.value)


def test_the_default_is_written_as_none_and_others_with_what_was_given():
    from ballast.config.recipe import Recipe

    assert Recipe().resolved()["engine"] is None
    assert Recipe.from_dict({"engine": {"kind": "transformers"}}).resolved()["engine"] is None
    given = {"kind": "vllm", "command": ["/x/vllm", "serve"], "concurrency": 3}
    one = Recipe.from_dict({"engine": given})
    assert one.resolved()["engine"] == given
    assert Recipe.from_dict(one.resolved()).engine == one.engine
    made = Recipe(engine=VllmEngine())
    assert Recipe.from_dict(made.resolved()).engine.kind == "vllm"
