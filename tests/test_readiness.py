"""Readiness for RL: each figure against enumeration, a closed form, or a recomputation from the recorded answers."""

import json
import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ballast.errors import BallastError
from ballast.evaluation import Task, evaluate, generation, kinds
from ballast.evaluation.readiness import distinct_answers, groups, mixed_share
from tiny import char_tokenizer, tiny_model

SUMS = [{"prompt": f"{a}+{b}=", "completion": f"{a + b}!", "answer": str(a + b)} for a in range(3) for b in range(3)]
TEXTS = [{"text": "hello there"}, {"text": "you"}]


def naive(values, k, measure):
    """The mean over all ways to draw k of the values."""
    return np.mean([measure([values[i] for i in chosen]) for chosen in combinations(range(len(values)), k)])


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=2, max_size=8), st.data())
@settings(max_examples=60, deadline=None)
def test_mixed_share_is_the_mean_over_all_groups(scores, data):
    k = data.draw(st.integers(1, len(scores)))
    assert mixed_share(scores, k) == pytest.approx(naive(scores, k, lambda some: len(set(some)) > 1))


@given(st.lists(st.sampled_from(["a", "b c", "bc", " b  c"]), min_size=1, max_size=8), st.data())
@settings(max_examples=60, deadline=None)
def test_distinct_answers_is_the_mean_over_all_groups(texts, data):
    k = data.draw(st.integers(1, len(texts)))
    expected = naive(texts, k, lambda some: len({" ".join(text.split()) for text in some}))
    assert distinct_answers(texts, k) == pytest.approx(expected)


@pytest.mark.parametrize("p", [0.0, 0.03, 0.5, 0.9, 1.0])
@pytest.mark.parametrize(("n", "k"), [(8, 8), (12, 8), (16, 4), (5, 2)])
def test_mixed_share_is_unbiased_for_bernoulli_rewards(p, n, k):
    chances = [math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)]
    found = sum(chance * mixed_share([1.0] * c + [0.0] * (n - c), k) for c, chance in enumerate(chances))
    assert found == pytest.approx(1 - p**k - (1 - p) ** k, abs=1e-12)


def test_share_over_prompts_of_unequal_difficulty():
    rng = np.random.default_rng(0)
    chances = rng.random(800)
    scores = (rng.random((800, 12)) < chances[:, None]).astype(float)
    items = [{"scores": list(row), "completions": [{"text": str(one)} for one in row]} for row in scores]
    found = groups(items, 8)
    expected = np.mean(1 - chances**8 - (1 - chances) ** 8)
    assert found["mixed@8"].low < expected < found["mixed@8"].high
    assert found["mixed@8"].n == 800
    # Right and wrong are the only two texts here, so a mixed group has two and any other has one.
    assert found["distinct@8"].value == pytest.approx(1 + found["mixed@8"].value)
    drawn = [groups(items[:50], 8, seed=seed) for seed in (1, 1, 2)]
    for name in found:
        assert drawn[0][name] == drawn[1][name] != drawn[2][name]


@pytest.mark.parametrize("k", [0, 5])
def test_groups_larger_than_the_samples_are_refused(k):
    for measure in (mixed_share, distinct_answers):
        with pytest.raises(BallastError, match=f"groups of {k} from 4 samples"):
            measure([1.0, 1.0, 0.0, 0.0] if measure is mixed_share else ["a", "b", "c", "d"], k)


@pytest.fixture(scope="module")
def tokenizer():
    return char_tokenizer()


@pytest.fixture(scope="module")
def models():
    return tiny_model(1, initializer_range=0.2), tiny_model(2, initializer_range=0.2)


def task(**changes):
    options = {"samples": 6, "group": 3, "max_new_tokens": 3, "temperature": 0.1}
    options |= {"demonstrations": SUMS[:4], "forgetting": TEXTS}
    return Task(**{"name": "ready", "kind": "readiness", "data": SUMS, **options, **changes})


@pytest.fixture(scope="module")
def measured(models, tokenizer):
    """A result in which some answers are right: those of a first pass are the truth of the second, but for two rows."""
    model, base = models
    first = evaluate(model, tokenizer, [task()], base=base)[0]
    texts = ["none"] * 2 + [item["completions"][0]["text"] for item in first.items[2:]]
    rows = [{**row, "answer": text} for row, text in zip(SUMS, texts, strict=True)]
    return evaluate(model, tokenizer, [task(data=rows)], base=base)[0]


def test_figures_follow_from_the_recorded_answers(measured):
    scores = [item["scores"] for item in measured.items]
    texts = [[" ".join(one["text"].split()) for one in item["completions"]] for item in measured.items]
    assert 0 < np.mean(scores) < 1
    value = {name: estimate.value for name, estimate in measured.metrics.items()}
    assert value["pass@1"] == pytest.approx(np.mean(scores))
    assert value["pass@3"] == pytest.approx(np.mean([naive(row, 3, lambda some: max(some) == 1) for row in scores]))
    assert value["mixed@3"] == pytest.approx(
        np.mean([naive(row, 3, lambda some: len(set(some)) > 1) for row in scores])
    )
    assert value["distinct@3"] == pytest.approx(np.mean([naive(row, 3, lambda some: len(set(some))) for row in texts]))
    for name in ("pass@1", "pass@3", "mixed@3", "distinct@3", "entropy", "base_kl"):
        assert measured.metrics[name].n == len(SUMS)
        assert measured.metrics[name].low <= value[name] <= measured.metrics[name].high


def test_the_budget_is_in_the_result(measured):
    counts = measured.counts
    assert (
        counts["rows"] * measured.settings["samples"] * measured.settings["max_new_tokens"] == counts["budget_tokens"]
    )
    assert counts["budget_tokens"] == 9 * 6 * 3
    assert counts["generated_tokens"] == sum(one["tokens"] for item in measured.items for one in item["completions"])
    assert counts["answers"] == 54
    assert (counts["demonstrations_rows"], counts["forgetting_rows"]) == (4, 2)
    assert measured.settings["group"] == 3
    json.dumps(measured.to_dict(), allow_nan=False)


def distributions(model, ids):
    import torch

    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)


def test_entropy_and_kl_against_whole_distributions(models, tokenizer, measured):
    model, base = models
    rows = [{**row, "answer": item["answer"]} for row, item in zip(SUMS, measured.items, strict=True)]
    options = task(data=rows).generation()
    answers = generation.generate(model, tokenizer, [row["prompt"] for row in rows], options)
    prompts = [tokenizer(row["prompt"])["input_ids"] for row in rows]
    own = [(ids, [*one.ids]) for ids, some in zip(prompts, answers, strict=True) for one in some]
    taught = [(tokenizer(r["prompt"])["input_ids"], tokenizer(r["completion"])["input_ids"] + [2]) for r in SUMS[:4]]
    found = {}
    for name, sequences in (("own", own), ("taught", taught)):
        kl = entropy = nll = tokens = 0.0
        for prompt, answer in sequences:
            p, q = (distributions(one, prompt + answer)[len(prompt) - 1 : -1] for one in (model, base))
            kl += float((p.exp() * (p - q)).sum())
            entropy -= float((p.exp() * p).sum())
            nll -= float(p[range(len(answer)), answer].sum())
            tokens += len(answer)
        found[name] = {"kl": kl / tokens, "entropy": entropy / tokens, "nll": nll / tokens}
    value = {name: estimate.value for name, estimate in measured.metrics.items()}
    assert value["entropy"] == pytest.approx(found["own"]["entropy"], rel=1e-4)
    assert value["base_kl"] == pytest.approx(found["own"]["kl"], rel=1e-4)
    assert value["demonstrations_kl"] == pytest.approx(found["taught"]["kl"], rel=1e-4)
    assert value["demonstrations_nll"] == pytest.approx(found["taught"]["nll"], rel=1e-4)


def test_forgetting_is_that_of_a_task_on_the_texts(models, tokenizer, measured):
    texts = evaluate(models[0], tokenizer, [{"name": "texts", "kind": "nll", "data": TEXTS}])[0]
    assert measured.metrics["forgetting"].value == pytest.approx(texts.metrics["nll"].value)


def test_answers_are_sampled_once(models, tokenizer, monkeypatch):
    calls = []

    def counted(*arguments, **options):
        calls.append(len(arguments[2]))
        return generation.generate(*arguments, **options)

    monkeypatch.setattr(kinds, "generate", counted)
    evaluate(models[0], tokenizer, [task()], base=models[1])
    assert calls == [len(SUMS)]


def test_what_is_left_out_is_not_measured(models, tokenizer):
    plain = task(base_kl=False, entropy=False, demonstrations=None, forgetting=None, k=(2,))
    result = evaluate(models[0], tokenizer, [plain])[0]
    expected = {"mean@6", "pass@1", "pass@2", "pass@3", "answer_tokens", "mixed@3", "distinct@3"}
    assert set(result.metrics) == expected
    demonstrations = evaluate(models[0], tokenizer, [task(base_kl=False, forgetting=None)], base=models[1])[0]
    assert "demonstrations_nll" in demonstrations.metrics
    assert not {"base_kl", "demonstrations_kl"} & set(demonstrations.metrics)


def test_defaults_are_a_group_of_samples_at_temperature_1():
    made = Task("ready", "readiness", SUMS)
    assert (made.group, made.samples, made.temperature, made.k) == (8, 8, 1.0, (1, 8))
    assert made.entropy
    assert made.base_kl
    assert Task("ready", "readiness", SUMS, group=4).samples == 4
    assert Task("greedy", "generate", SUMS).settings()["temperature"] == 0.0


def test_rows_beside_end_at_the_limit(models, tokenizer):
    result = evaluate(models[0], tokenizer, [task(limit=2)], base=models[1])[0]
    assert result.counts["rows"] == result.counts["demonstrations_rows"] == result.counts["forgetting_rows"] == 2


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"group": 1}, "a group of one answer never has a gradient"),
        ({"group": 8}, "pass@8 cannot be estimated from 6 samples; raise samples"),
        ({"group": 2.5}, "group: should be a valid integer; got 2.5"),
        ({"temperature": 0}, "at temperature 0"),
        ({"kind": "generate"}, "group: is an option of kind readiness; generate would ignore it"),
        (
            {"kind": "nll", "group": None},
            "samples: is an option of kind generate, code, readiness; nll would ignore it",
        ),
        ({"demonstrations": [{"prompt": "1"}]}, "demonstrations: row 1: no 'completion' .*; name others in a task"),
        ({"demonstrations": [{"prompt": "1", "completion": ""}]}, "demonstrations: row 1: no 'completion'"),
        ({"demonstrations": []}, "demonstrations: no rows"),
        ({"demonstrations": "absent.jsonl"}, "absent.jsonl"),
        ({"demonstrations": [{"prompt": "1", "completion": "2" * 200}]}, "demonstrations: row 1: .* exceed"),
        ({"forgetting": [{"text": "ok"}, {"words": "no"}]}, "forgetting: row 2: no 'text'"),
        ({"data": [{"prompt": "x"}]}, "row 1: no 'answer'"),
    ],
)
def test_bad_tasks_are_named(models, tokenizer, values, words):
    options = {"samples": 6, "group": 3, "max_new_tokens": 3, "demonstrations": SUMS[:4]}
    with pytest.raises(BallastError, match=words) as error:
        evaluate(
            models[0],
            tokenizer,
            [{"name": "ready", "kind": "readiness", "data": SUMS, **options, **values}],
            base=models[1],
        )
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("task 'ready'")


def test_a_base_is_needed(models, tokenizer):
    with pytest.raises(BallastError, match="base_kl needs the base model"):
        evaluate(models[0], tokenizer, [task()])
