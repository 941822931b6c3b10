"""Long sequences: memory grows with the tokens alone, and nothing of tokens × vocabulary is ever alive."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

import ballast
from ballast import head
from ballast.head import projection, tiles
from ballast.reference import CacheKey, score_rows
from head_meter import Meter
from tiny import char_tokenizer, tiny_model
from training_tools import OBJECTIVES, config, objective

VOCAB, LENGTHS = 2048, (256, 512, 1024)
CHUNK = 16
"""Rows of logits at a time."""


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(projection, "CPU_CHUNK_LIMIT", CHUNK * VOCAB)
    monkeypatch.setattr(head, "DENSE_LIMIT", CHUNK * VOCAB)
    for name in ("CPU_TILE_LIMIT", "SMALL_TILE"):
        monkeypatch.setattr(tiles, name, CHUNK * VOCAB)


def dataset():
    from datasets import Dataset

    ids = [[4 + place * 7 % 50 for place in range(length)] for length in LENGTHS]
    return Dataset.from_list([{"input_ids": one, "labels": one, "weight": 0.5} for one in ids])


def model():
    return tiny_model(vocab=VOCAB, context=LENGTHS[-1], layers=1)


def metered(work) -> list[Meter]:
    """Return what each of the lengths took; nothing stays alive between them."""
    found = []
    for place in range(len(LENGTHS)):
        with Meter(VOCAB) as meter:
            work(place)
        found.append(meter)
    return found


def check(meters: list[Meter]) -> None:
    for length, meter in zip(LENGTHS, meters, strict=True):
        assert meter.largest < length * VOCAB / 4, (length, meter.largest)
        # Nor of tokens × tokens: the widest thing that a token has is a row of the feed-forward layer.
        assert meter.largest <= max(CHUNK * VOCAB, 64 * length), (length, meter.largest)
    peaks = [meter.peak for meter in meters]
    assert all(longer <= 2.1 * shorter for shorter, longer in pairwise(peaks)), peaks


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_step_of_training_takes_memory_in_proportion_to_its_tokens(name, tmp_path):
    data = dataset()
    trainer = ballast.Trainer(
        model(),
        config(tmp_path, max_length=None),
        train_dataset=data,
        processing_class=char_tokenizer(),
        objective=objective(name),
    )
    trainer.model.train()
    rows = [dict(row) for row in trainer.train_dataset]

    def step(place):
        (batch,) = trainer.step_batches(iter([trainer.data_collator([rows[place]])]), 1)
        trainer.model.zero_grad(set_to_none=True)
        trainer.compute_loss(trainer.model, batch).backward()

    check(metered(step))


def test_evaluation_takes_memory_in_proportion_to_its_tokens(tmp_path):
    data = dataset()
    trainer = ballast.Trainer(
        model(), config(tmp_path, max_length=None), train_dataset=data, processing_class=char_tokenizer()
    )
    trainer.model.eval()

    def measure(place):
        with torch.no_grad():
            trainer.compute_loss(trainer.model, trainer.data_collator([dict(trainer.train_dataset[place])]))

    check(metered(measure))


def test_scoring_takes_memory_in_proportion_to_its_tokens(tmp_path):
    start, key = model(), CacheKey(model="m", dtype="float32", tokenizer="t")
    data = ballast.data.prepare(dataset(), char_tokenizer(), ballast.data.PrepareOptions(max_length=None)).dataset

    def score(place):
        score_rows(start, data.select([place]), tmp_path / str(place), key)

    check(metered(score))


def test_the_meter_sees_logits_of_all_tokens_at_once():
    whole = model()

    def logits(place):
        ids = torch.full((1, LENGTHS[place]), 5)
        whole(input_ids=ids, labels=ids).loss.backward()

    with pytest.raises(AssertionError):
        check(metered(logits))
