"""Real servers: `transformers serve` on a tiny model, and vLLM on a model that it supports.

    BALLAST_TRANSFORMERS_SERVE="/env/bin/transformers serve" \\
    BALLAST_VLLM="/env/bin/vllm serve" BALLAST_VLLM_MODEL=models/smollm2 \\
        pytest -m engine tests/test_engines_real.py

``BALLAST_VLLM_ARGUMENTS`` has further arguments of vLLM. What is not named is skipped.
"""

import contextlib
import os
import shlex
import socket
import subprocess
import time
import urllib.request

import pytest

from ballast.engines import check, openai, vllm
from ballast.engines.options import OpenAIEngine, VllmEngine
from ballast.engines.sampling import Sampling
from ballast.errors import BallastError
from ballast.evaluation.generation import GenerationOptions, generate
from tiny import CHAT_TEMPLATE, char_tokenizer, tiny_model

pytestmark = pytest.mark.engine

PROMPTS = ["12+7=", "so", "the quick brown fox"]
GREEDY = GenerationOptions(max_new_tokens=12)
START_SECONDS = 1200


def named(variable):
    given = os.environ.get(variable)
    if not given:
        pytest.skip(f"{variable} names no server")
    return shlex.split(given)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    model, tokenizer = tiny_model(1, initializer_range=0.2), char_tokenizer(chat_template=CHAT_TEMPLATE)
    # A model without this is answered for greedily at every temperature.
    model.generation_config.do_sample = True
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder), model, tokenizer


@pytest.fixture(scope="module")
def served(tiny):
    """``transformers serve`` on the tiny model."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    where = ("--host", "127.0.0.1", "--port", port, "--device", "cpu", "--dtype", "float32")
    process = subprocess.Popen([*named("BALLAST_TRANSFORMERS_SERVE"), tiny[0], *where])
    until = time.monotonic() + START_SECONDS
    try:
        while time.monotonic() < until and process.poll() is None:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("api", ["completions", "chat"])
def test_transformers_serve_gives_our_greedy_answers(served, tiny, api):
    folder, model, tokenizer = tiny
    rows = [{"prompt": [{"role": "user", "content": prompt}]} for prompt in PROMPTS]
    rows += [{"prompt": prompt} for prompt in PROMPTS] if api == "completions" else []
    options = OpenAIEngine(base_url=served, model=folder, api=api, retries=0)
    with openai.opened(options, tokenizer) as engine:
        sampling = Sampling(engine, model, check.check_greedy, 4)
        answers = sampling.generate(model, tokenizer, rows, GREEDY)
    assert sampling.checked == 1
    assert [some[0].text for some in answers] == [some[0].text for some in generate(model, tokenizer, rows, GREEDY)]


def test_transformers_serve_gives_a_seed_its_answer(served, tiny):
    folder, model, tokenizer = tiny
    options = GenerationOptions(max_new_tokens=8, samples=2, temperature=1.0, seed=3)
    with openai.opened(OpenAIEngine(base_url=served, model=folder, concurrency=1, retries=0), tokenizer) as engine:
        ask = Sampling(engine, model, None, 0).generate
        first = ask(model, tokenizer, PROMPTS, options)
        turned = ask(model, tokenizer, PROMPTS[::-1], options, streams=[(2,), (1,), (0,)])
    assert first == turned[::-1]
    assert first[0][0] != first[0][1]


def test_transformers_serve_of_another_model_is_found(served, tiny):
    folder, _, tokenizer = tiny
    other = tiny_model(5, initializer_range=0.2)
    with openai.opened(OpenAIEngine(base_url=served, model=folder), tokenizer) as engine:
        sampling = Sampling(engine, other, check.check_greedy, 4)
        with pytest.raises(BallastError, match="answers something else than the model here"):
            sampling.generate(other, tokenizer, PROMPTS, GREEDY)


@pytest.fixture(scope="module")
def real():
    """The model that vLLM serves, in this process, and a server that was started for it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    command, [folder] = named("BALLAST_VLLM"), named("BALLAST_VLLM_MODEL")
    arguments = tuple(shlex.split(os.environ.get("BALLAST_VLLM_ARGUMENTS", "")))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
    options = VllmEngine(command=command, arguments=arguments, start_seconds=START_SECONDS, timeout=1200.0)
    with vllm.opened(options, folder, "float32") as engine:
        yield engine, model, AutoTokenizer.from_pretrained(folder)


def test_vllm_passes_the_check_and_gives_our_greedy_answers(real):
    engine, model, tokenizer = real
    sampling = Sampling(engine, model, lambda *given: check.check_logprobs(*given, bound=0.01), 4)
    answers = sampling.generate(model, tokenizer, PROMPTS, GREEDY)
    assert sampling.checked < 1e-3
    assert [some[0].ids for some in answers] == [some[0].ids for some in generate(model, tokenizer, PROMPTS, GREEDY)]


def test_vllm_gives_a_seed_its_answer_in_any_company(real):
    engine, model, tokenizer = real
    ask = Sampling(engine, model, None, 0).generate
    options = GenerationOptions(max_new_tokens=12, samples=4, temperature=1.0, top_p=0.95, seed=3, stop=("\n",))
    whole = ask(model, tokenizer, PROMPTS, options)
    alone = [ask(model, tokenizer, [prompt], options, streams=[(row,)])[0] for row, prompt in enumerate(PROMPTS)]
    assert whole == alone
    assert len({one.ids for one in whole[2]}) > 1
    assert not any("\n" in one.text for some in whole for one in some)


def test_vllm_with_other_weights_is_found(real):
    import copy

    import torch

    engine, model, tokenizer = real
    other = copy.deepcopy(model)
    with torch.no_grad():
        for weight in other.parameters():
            weight.mul_(1.05)
    sampling = Sampling(engine, other, lambda *given: check.check_logprobs(*given, bound=0.05), 4)
    with pytest.raises(BallastError, match=r"a mean log-probability of .* the model here"):
        sampling.generate(other, tokenizer, PROMPTS, GREEDY)
