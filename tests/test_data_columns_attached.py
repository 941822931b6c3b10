"""A cached value stays with its token: through truncation, splitting, packing and collation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import Dataset

from ballast.data import Collator, PrepareOptions, align, attach, pack, prepare
from ballast.errors import BallastError
from data_rows import rows, tokenizer

PACKINGS = [
    {},
    {"packing": True},
    {"packing": True, "packing_strategy": "bfd_split"},
    {"packing": True, "shuffle_dataset": True},
]
LOSSES = [
    ("text", {}),
    ("prompt-completion", {}),
    ("messages", {"assistant_only_loss": True}),
    ("chat-prompt-completion", {}),
]


def _trained(labels):
    return [t for t, label in enumerate(labels) if t > 0 and label != -100]


def _marking_cache(dataset):
    """A cache whose values say where they belong: the position in the row, and the target token itself."""
    return {
        row["digest"]: {
            "position_mark": np.array(_trained(row["labels"]), dtype=np.float32),
            "token_mark": np.array([row["labels"][t] for t in _trained(row["labels"])], dtype=np.float32),
        }
        for row in dataset
    }


def _attached(kind, options):
    prepared = prepare(Dataset.from_list(rows(kind)), tokenizer(), options).dataset
    return attach(prepared, _marking_cache(prepared).__getitem__, ["position_mark", "token_mark"])


@pytest.mark.parametrize("packing", PACKINGS, ids=str)
@pytest.mark.parametrize(("kind", "loss"), LOSSES, ids=str)
@pytest.mark.parametrize("multiple", [None, 8])
def test_marks_survive_truncation_packing_and_collation(kind, loss, packing, multiple):
    options = PrepareOptions(max_length=40, **loss, **packing)
    packed = pack(_attached(kind, options), options)
    collate = Collator(0, ("position_mark", "token_mark"), padding_free=options.packing, pad_to_multiple_of=multiple)
    seen = 0
    for start in range(0, len(packed), 3):
        batch = collate([packed[i] for i in range(start, min(start + 3, len(packed)))])
        labels = batch["labels"]
        positions = batch.get("position_ids", torch.arange(labels.shape[1]).expand_as(labels))
        trained = labels != -100
        trained[:, 0] = False
        assert batch["token_mark"].shape == batch["input_ids"].shape == labels.shape
        assert torch.equal(batch["token_mark"][trained].long(), labels[trained])
        assert torch.equal(batch["position_mark"][trained].long(), positions[trained])
        assert batch["position_mark"][~trained].isnan().all()
        seen += int(trained.sum())
    assert seen == prepare(Dataset.from_list(rows(kind)), tokenizer(), options).report.trained_tokens


def test_marks_survive_many_chunks_shuffles_and_subsets():
    # More rows than one write batch, reordered: the list columns must still share their offsets to be packed.
    prepared = prepare(Dataset.from_list(rows("prompt-completion", 2500)), tokenizer(), PrepareOptions()).dataset
    attached = attach(prepared, _marking_cache(prepared).__getitem__, ["token_mark"])
    options = PrepareOptions(max_length=64, packing=True)
    packed = pack(attached.shuffle(seed=3).select(range(0, 2500, 2)), options)
    collate = Collator(0, ("token_mark",), padding_free=True)
    batch = collate([packed[i] for i in range(len(packed))])
    trained = batch["labels"] != -100
    assert torch.equal(batch["token_mark"][trained].long(), batch["labels"][trained])
    assert packed.num_rows < 1250


def test_wrapped_packing_is_refused_with_cached_columns_only():
    options = PrepareOptions(max_length=40, packing=True, packing_strategy="wrapped")
    attached = _attached("text", options)
    with pytest.raises(BallastError, match=r"wrapped.*position_mark"):
        pack(attached, options)
    assert len(pack(attached.select_columns(["input_ids", "labels", "digest"]), options)) > 0


def test_align_spreads_values_over_trained_positions():
    column = align(np.array([0.5, 0.25], dtype=np.float32), [7, -100, 8, 9])
    assert column.dtype == np.float32
    np.testing.assert_array_equal(column, np.array([np.nan, np.nan, 0.5, 0.25], dtype=np.float32))
    with pytest.raises(BallastError, match="3 values for a row of 2 trained tokens"):
        align(np.zeros(3), [7, -100, 8, 9])


def test_attach_names_row_and_field_that_do_not_fit():
    prepared = prepare(Dataset.from_list(rows("text")), tokenizer(), PrepareOptions()).dataset
    cache = _marking_cache(prepared)
    with pytest.raises(BallastError, match=r"row 1 .*no field 'ref_mass'"):
        attach(prepared, cache.__getitem__, ["ref_mass"])
    cache[prepared["digest"][2]]["token_mark"] = np.zeros(2, dtype=np.float32)
    with pytest.raises(BallastError, match=r"row 3 .*'token_mark': 2 values"):
        attach(prepared, cache.__getitem__, ["token_mark"])
    with pytest.raises(BallastError, match="no 'digest' column"):
        attach(prepared.remove_columns("digest"), cache.__getitem__, ["token_mark"])
    with pytest.raises(BallastError, match="already have a column 'labels'"):
        attach(prepared, cache.__getitem__, ["labels"])


def test_attach_reads_the_cache_afresh():
    prepared = prepare(Dataset.from_list(rows("text")), tokenizer(), PrepareOptions()).dataset
    cache = _marking_cache(prepared)
    first = attach(prepared, cache.__getitem__, ["token_mark"])
    for entry in cache.values():
        entry["token_mark"] = entry["token_mark"] + 1
    second = attach(prepared, cache.__getitem__, ["token_mark"])
    assert first["token_mark"][0][1] + 1 == second["token_mark"][0][1]


def test_values_at_untrained_positions_are_blanked():
    examples = [{"input_ids": [5, 6, 7], "labels": [5, -100, 7], "ref_mass": [0.1, 0.2, 0.3]}]
    padded = Collator(0, ("ref_mass",), pad_to_multiple_of=4)(examples)["ref_mass"]
    assert padded.isnan().tolist() == [[False, True, False, True]]
    assert Collator(0, ("ref_mass",), padding_free=True)(examples)["ref_mass"].isnan().tolist() == [[True, True, False]]


def test_a_value_missing_for_a_trained_token_stops_the_batch():
    rows_ = [{"input_ids": [5, 6, 7], "labels": [-100, 6, 7], "ref_mass": [float("nan"), 0.5, float("nan")]}]
    with pytest.raises(BallastError, match="'ref_mass' has no value for a trained token"):
        Collator(0, ("ref_mass",))(rows_)
    with pytest.raises(BallastError, match="no column 'ref_logprob'"):
        Collator(0, ("ref_logprob",))(rows_)


@pytest.mark.parametrize("padding_free", [False, True])
@pytest.mark.parametrize("multiple", [None, 16])
def test_ids_and_labels_are_trls(padding_free, multiple):
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    options = PrepareOptions(max_length=40, packing=padding_free)
    packed = pack(_attached("prompt-completion", options), options)
    examples = [packed[i] for i in range(3)]
    theirs = DataCollatorForLanguageModeling(0, padding_free=padding_free, pad_to_multiple_of=multiple)(examples)
    ours = Collator(0, ("token_mark",), padding_free, multiple)(examples)
    if padding_free:
        assert ours.pop("row_ends").diff(prepend=torch.zeros(1)).tolist() == [len(one["labels"]) for one in examples]
    assert set(ours) == set(theirs) | {"token_mark"}
    for key, value in theirs.items():
        assert torch.equal(torch.as_tensor(ours[key]), torch.as_tensor(value)), key
    assert ("seq_idx" in ours) == padding_free
