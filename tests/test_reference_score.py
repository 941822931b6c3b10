"""Scoring: the cache holds what a live reference computes, once, whatever the batches."""

import multiprocessing
import os
import signal
import time

import numpy as np
import pytest
import torch

from ballast.errors import BallastError
from ballast.head import token_stats, trained_positions
from ballast.reference import AdapterOffReference, CacheKey, ModelReference, ReferenceCache, score_rows
from ballast.reference import score as score_module
from reference_rows import make_row, make_rows
from tiny import char_tokenizer, tiny_model

QUIET = {"progress": False}


def key_of(model, **options):
    return CacheKey.of(model, char_tokenizer(), **options)


def live_values(model, row):
    reference = ModelReference(model)
    mask, targets = trained_positions(torch.tensor([row["labels"]]))
    hidden = reference.hidden(input_ids=torch.tensor([row["input_ids"]]))[:, :-1][mask]
    stats = token_stats(hidden, reference.head, targets, fields=("logprob", "entropy", "mass", "tied"), backend="dense")
    return {f"ref_{name}": getattr(stats, name).float().numpy() for name in ("logprob", "entropy", "mass", "tied")}


@pytest.fixture
def counted(monkeypatch):
    """Count the rows that go through the model."""
    rows = []
    score = score_module._score

    def count(reference, batch, key):
        rows.extend(row.index for row in batch)
        return score(reference, batch, key)

    monkeypatch.setattr(score_module, "_score", count)
    return rows


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 2e-5), (torch.bfloat16, 0.15)])
def test_cached_is_live_to_rounding(tmp_path, dtype, tolerance):
    model, rows = tiny_model(dtype=dtype), make_rows(25)
    cache = score_rows(model, rows, tmp_path / "c", key_of(model), tokens_per_batch=100, **QUIET)
    for row in rows:
        cached, live = cache.lookup(row["digest"]), live_values(model, row)
        assert set(cached) == set(live)
        for name, value in live.items():
            np.testing.assert_allclose(cached[name], value, atol=tolerance, rtol=0, err_msg=name)


def test_bfloat16_errs_no_more_in_batches_than_alone(tmp_path):
    model, rows = tiny_model(dtype=torch.bfloat16), make_rows(60)
    cache = score_rows(model, rows, tmp_path / "c", key_of(model), tokens_per_batch=150, **QUIET)
    exact = tiny_model(dtype=torch.bfloat16).double()
    alone, batched = [], []
    for row in rows:
        truth = live_values(exact, row)["ref_logprob"]
        alone.append(np.abs(live_values(model, row)["ref_logprob"] - truth))
        batched.append(np.abs(cache.lookup(row["digest"])["ref_logprob"] - truth))
    assert np.concatenate(batched).mean() <= 1.1 * np.concatenate(alone).mean()


def test_batch_composition_does_not_matter(tmp_path):
    model, rows = tiny_model(), make_rows(40, seed=1)
    caches = [
        score_rows(model, rows, tmp_path / str(size), key_of(model), tokens_per_batch=size, **QUIET)
        for size in (1, 64, 10_000)
    ]
    for row in rows:
        first, *others = (cache.lookup(row["digest"]) for cache in caches)
        for other in others:
            for name in first:
                np.testing.assert_allclose(other[name], first[name], atol=2e-5, rtol=0)


def test_autocast_is_scored_as_trained(tmp_path):
    model, rows = tiny_model(), make_rows(10)
    key = key_of(model, autocast=torch.bfloat16)
    assert key.dtype == "bfloat16"
    cache = score_rows(model, rows, tmp_path / "c", key, tokens_per_batch=1, **QUIET)
    row = rows[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        live = live_values(model, row)
    np.testing.assert_allclose(cache.lookup(row["digest"])["ref_logprob"], live["ref_logprob"], atol=1e-4)
    assert np.abs(live_values(model, row)["ref_logprob"] - live["ref_logprob"]).max() > 1e-3


def test_scoring_twice_does_nothing_the_second_time(tmp_path, counted):
    model, rows = tiny_model(), make_rows(20)
    score_rows(model, rows, tmp_path / "c", key_of(model), **QUIET)
    assert len(counted) == 20
    files = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "c").iterdir() if path.name != ".lock"}
    score_rows(model, rows, tmp_path / "c", key_of(model), **QUIET)
    assert len(counted) == 20
    assert files == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "c").iterdir() if path.name != ".lock"}


def test_shuffles_subsets_and_mixtures_reuse_rows(tmp_path, counted):
    import datasets

    model, first, second = tiny_model(), make_rows(20), make_rows(6, seed=9)
    cache = score_rows(model, first, tmp_path / "c", key_of(model), **QUIET)
    before = [cache.lookup(digest) for digest in first["digest"]]
    mixture = datasets.concatenate_datasets([first.select(range(15)), second, first]).shuffle(seed=3)
    counted.clear()
    cache = score_rows(model, mixture, tmp_path / "c", key_of(model), **QUIET)
    assert len(counted) == 6
    assert len(cache) == 26
    for digest, old in zip(first["digest"], before, strict=True):
        np.testing.assert_array_equal(cache.lookup(digest)["ref_logprob"], old["ref_logprob"])


def test_longest_rows_come_first_within_the_budget(tmp_path, monkeypatch):
    shapes = []
    padded = score_module._padded
    monkeypatch.setattr(score_module, "_padded", lambda rows, device: shapes.append(padded(rows, device)) or shapes[-1])
    model = tiny_model()
    score_rows(model, make_rows(50), tmp_path / "c", key_of(model), tokens_per_batch=90, **QUIET)
    widths = [inputs["input_ids"].shape for inputs, _ in shapes]
    assert [width for _, width in widths] == sorted((width for _, width in widths), reverse=True)
    assert all(rows * width <= 90 for rows, width in widths)
    assert len(widths) < 50


def test_model_is_left_as_it_was(tmp_path):
    model = tiny_model(attention_dropout=0.5).train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    weights = {name: (weight.clone(), weight.requires_grad) for name, weight in model.named_parameters()}
    cache = score_rows(model, make_rows(5), tmp_path / "c", key_of(model), **QUIET)
    assert modes == [module.training for module in model.modules()]
    for name, weight in model.named_parameters():
        assert weight.equal(weights[name][0])
        assert weight.requires_grad == weights[name][1]
        assert weight.grad is None
    row = make_rows(5)[0]
    np.testing.assert_allclose(
        cache.lookup(row["digest"])["ref_logprob"], live_values(model, row)["ref_logprob"], atol=2e-5
    )


def test_a_provider_may_be_scored(tmp_path):
    from peft import LoraConfig, get_peft_model

    rows = make_rows(8)
    base = tiny_model()
    expected = score_rows(base, rows, tmp_path / "base", key_of(base), **QUIET)
    wrapped = get_peft_model(tiny_model(), LoraConfig(r=2, target_modules="all-linear"))
    torch.nn.init.normal_(wrapped.base_model.model.model.layers[0].self_attn.q_proj.lora_B["default"].weight)
    key = key_of(wrapped, adapters=False)
    cache = score_rows(AdapterOffReference(wrapped), rows, tmp_path / "off", key, **QUIET)
    assert cache.key == expected.key
    own = score_rows(wrapped, rows, tmp_path / "on", key_of(wrapped), **QUIET)
    for digest in rows["digest"]:
        np.testing.assert_array_equal(cache.lookup(digest)["ref_mass"], expected.lookup(digest)["ref_mass"])
        assert np.abs(own.lookup(digest)["ref_logprob"] - cache.lookup(digest)["ref_logprob"]).max() > 1e-4


def test_rows_without_trained_tokens_and_plain_lists_are_taken(tmp_path):
    model = tiny_model()
    rows = [make_row([5, 6, 7], prompt=3), make_row([5, 6, 7, 8]), make_row([9], prompt=0)]
    cache = score_rows(model, rows, tmp_path / "c", key_of(model), **QUIET)
    assert [len(cache.lookup(row["digest"])["ref_mass"]) for row in rows] == [0, 2, 0]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no rows"),
        ([{"input_ids": [5], "labels": [5]}], "no column 'digest'"),
        ([{**make_row([5, 6, 7]), "labels": [-100, 6, 7]}], "row 0: its digest"),
        ([make_row([5, 6, 7]), {**make_row([5, 6, 8]), "labels": [5]}], "row 1: 3 tokens but 1 labels"),
        ([make_row([5, 6, 7]), make_row([5, 6, 5000])], "row 1: a token id lies outside the model's vocabulary"),
    ],
)
def test_rows_that_cannot_be_scored_are_named(tmp_path, rows, message):
    model = tiny_model()
    with pytest.raises(BallastError, match=message) as caught:
        score_rows(model, rows, tmp_path / "c", key_of(model), **QUIET)
    assert "\n" not in str(caught.value)


def test_values_that_are_not_finite_are_refused_by_row(tmp_path):
    model = tiny_model(tied=False)
    rows = make_rows(12, vocabulary=50)
    with torch.no_grad():
        model.model.embed_tokens.weight[59] = float("nan")
    bad = make_row([5, 6, 59, 7, 8])
    import datasets

    mixture = datasets.concatenate_datasets([rows, datasets.Dataset.from_list([bad])])
    with pytest.raises(BallastError, match=rf"row 12 \(digest {bad['digest']}\): ref_logprob is nan"):
        score_rows(model, mixture, tmp_path / "c", key_of(model), tokens_per_batch=40, **QUIET)
    good = score_rows(model, rows, tmp_path / "c", key_of(model), **QUIET)
    assert len(good) == 12


def test_progress_lines_where_there_is_no_terminal(tmp_path, capsys):
    model = tiny_model()
    score_rows(model, make_rows(5), tmp_path / "c", key_of(model))
    printed = capsys.readouterr()
    assert printed.out == ""
    tokens = sum(len(row["input_ids"]) for row in make_rows(5))
    assert printed.err.startswith(f"scoring: {tokens} of {tokens} tokens, ")
    assert "tokens/s" in printed.err


def score_slowly(path, rows, queue=None):
    model = tiny_model()
    counted = []
    score = score_module._score
    score_module._score = lambda reference, batch, key: counted.extend(batch) or score(reference, batch, key)
    score_rows(model, rows, path, key_of(model), tokens_per_batch=30, shard_tokens=60, **QUIET)
    if queue is not None:
        queue.put([row.digest for row in counted])


def test_killed_at_random_moments_it_goes_on_where_it_was(tmp_path):
    context, rows = multiprocessing.get_context("fork"), make_rows(150, seed=5)
    model = tiny_model()
    whole = score_rows(model, rows, tmp_path / "whole", key_of(model), tokens_per_batch=30, **QUIET)
    random, path, kept, kills = np.random.default_rng(0), tmp_path / "cache", [0], 0
    for _ in range(8):
        process = context.Process(target=score_slowly, args=(path, rows))
        process.start()
        deadline = time.monotonic() + 20
        # Random, but late enough that something has been written in most rounds.
        while (
            process.is_alive()
            and len(list(path.glob("shard-*.safetensors"))) <= kept[-1]
            and time.monotonic() < deadline
        ):
            time.sleep(float(random.uniform(0, 0.02)))
        time.sleep(float(random.uniform(0, 0.01)))
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.join(20)
        kept.append(len(list(path.glob("shard-*.safetensors"))))
    assert kills >= 4
    assert kept == sorted(kept)
    assert kept[-1] > kept[0]
    queue = context.Queue()
    last = context.Process(target=score_slowly, args=(path, rows, queue))
    last.start()
    rest = queue.get(timeout=60)
    last.join(20)
    assert len(rest) < 150
    cache = ReferenceCache.open(path, key_of(model))
    assert len(cache) == len(whole) == len(set(rows["digest"]))
    for digest in rows["digest"]:
        np.testing.assert_allclose(
            cache.lookup(digest)["ref_logprob"], whole.lookup(digest)["ref_logprob"], atol=2e-5, rtol=0
        )


def test_two_processes_score_each_row_once(tmp_path):
    context, rows = multiprocessing.get_context("fork"), make_rows(60, seed=6)
    queue, path = context.Queue(), tmp_path / "cache"
    parts = (rows.select(range(40)), rows.select(range(20, 60)))
    processes = [context.Process(target=score_slowly, args=(path, part, queue)) for part in parts]
    for process in processes:
        process.start()
    scored = [digest for _ in processes for digest in queue.get(timeout=60)]
    for process in processes:
        process.join(20)
    assert sorted(scored) == sorted(set(rows["digest"]))
    assert len(ReferenceCache.open(path)) == len(set(rows["digest"]))


def test_real_rows_under_a_real_model(tmp_path, real_data):
    import json

    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = real_data / "models" / "stories260K"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with (real_data / "data" / "tinystories" / "tinystories_5k.jsonl").open() as lines:
        texts = [next(iter(json.loads(line).values())) for line, _ in zip(lines, range(20), strict=False)]
    rows = [make_row(tokenizer(text)["input_ids"][:200], prompt=1) for text in texts]
    cache = score_rows(model, rows, tmp_path / "c", CacheKey.of(model, tokenizer), tokens_per_batch=1000, **QUIET)
    with torch.no_grad():
        for row in rows:
            ids = torch.tensor([row["input_ids"]])
            logp = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None]).squeeze(1)
            np.testing.assert_allclose(cache.lookup(row["digest"])["ref_logprob"], logp.numpy(), atol=1e-4)
    mean = np.concatenate([cache.lookup(row["digest"])["ref_logprob"] for row in rows]).mean()
    assert -2.5 < mean < -0.5
