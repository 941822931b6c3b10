"""Columns of numbers that come with the data: for each row, turn or token, through truncation, packing and batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import Dataset

import ballast
from ballast import BallastError
from ballast.data import Collator, PrepareOptions, pack, prepare
from ballast.data.exact import from_columns
from ballast.data.values import spread
from tiny import CHAT_TEMPLATE, char_tokenizer, tiny_model
from training_tools import config, dataset, largest_difference, rows, run, weights

NAN = float("nan")
TWO_TURNS = [-100, 5, 6, -100, -100, 7, 8, 9]

SPREAD = {
    "a number": (0.5, [NAN, 0.5, 0.5, NAN, NAN, 0.5, 0.5, 0.5]),
    "a whole number": (2, [NAN, 2, 2, NAN, NAN, 2, 2, 2]),
    "of turns": ([1.0, 3.0], [NAN, 1, 1, NAN, NAN, 3, 3, 3]),
    "of trained tokens": ([1.0, 2, 3, 4, 5], [NAN, 1, 2, NAN, NAN, 3, 4, 5]),
    "of tokens": ([9.0, 1, 2, 9, None, 3, 4, 5], [NAN, 1, 2, NAN, NAN, 3, 4, 5]),
}


@pytest.mark.parametrize(("value", "expected"), list(SPREAD.values()), ids=list(SPREAD))
def test_a_value_is_spread_over_the_trained_tokens(value, expected):
    np.testing.assert_array_equal(spread(value, TWO_TURNS), np.float32(expected))


def test_a_label_at_the_first_place_is_not_trained():
    np.testing.assert_array_equal(spread([1.0, 2.0], [4, 5, 6]), np.float32([NAN, 1, 2]))
    assert np.isnan(spread(1.0, [-100, -100])).all()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "is missing; it must be a finite number"),
        ("high", "is 'high'"),
        (True, "is True"),
        (NAN, "is nan"),
        (1e39, r"is 1e\+39; it would be infinite in float32, whose largest number is 3.4e\+38: scale it down"),
        (-(10**400), r"is -1000\d{34,36}; it would be infinite in float32"),
        ([[1.0] * 99] * 5, r"is \[1.0, [^;]{0,36}; it must be a finite number, or a list of them"),
        ([1.0, float("inf")], "is inf"),
        ([1.0, None], "is missing"),
        ([], "has 0 values; the row has 2 trained turns, 5 trained tokens and 8 tokens"),
        ([1.0, 2, 3], "has 3 values; the row has 2 trained turns, 5 trained tokens and 8 tokens"),
        ({"a": 1}, "must be a finite number"),
    ],
)
def test_what_cannot_be_spread_is_said(value, message):
    with pytest.raises(BallastError, match=message):
        spread(value, TWO_TURNS)


def _rows(values, **options):
    """Prepare rows of one prompt token each whose completions are 1, 2, 3, … characters long."""
    count = len(values)
    made = from_columns(
        {"prompt": ["p"] * count, "completion": ["abcdefgh"[: n + 1] for n in range(count)], "w": values}
    )
    return prepare(made, char_tokenizer(), PrepareOptions(**options), columns=("w",)).dataset


def _numbers(dataset):
    return [[round(value, 3) for value in row if not np.isnan(value)] for row in dataset["w"]]


def test_columns_are_kept_in_step_with_the_labels():
    ready = _rows([0.5, [1.0, 2, 3], [9.0, 1, 2, 3, 4]])
    assert _numbers(ready) == [[0.5] * 2, [1, 2, 3], [1, 2, 3, 4]]
    for row in ready:
        assert len(row["w"]) == len(row["labels"])
        assert np.isnan(row["w"]).tolist() == [label == -100 for label in row["labels"]]


@pytest.mark.parametrize(
    ("mode", "expected"), [("keep_start", [[1, 2], [1, 2], [1, 2]]), ("keep_end", [[1, 2], [1, 2, 3], [2, 3, 4]])]
)
def test_truncation_cuts_columns_where_it_cuts_tokens(mode, expected):
    values = [[1.0, 2], [1.0, 2, 3], [1.0, 2, 3, 4]]
    assert _numbers(_rows(values, max_length=3, truncation_mode=mode)) == expected


def test_rows_that_are_dropped_do_not_shift_the_others():
    made = [{"prompt": "pppp", "completion": "a", "w": 1.0}, {"prompt": "p", "completion": "ab", "w": 2.0}]
    options = PrepareOptions(max_length=4)
    ready = prepare(Dataset.from_list(made), char_tokenizer(), options, columns=("w",)).dataset
    assert _numbers(ready) == [[2.0] * 3]


def test_chat_rows_without_an_answer_do_not_shift_the_others():
    def chat(*turns):
        return [{"role": role, "content": text} for role, text in turns]

    made = [
        {"messages": chat(("user", "hi")), "w": [1.0]},
        {"messages": chat(("user", "a"), ("assistant", "bc"), ("user", "d"), ("assistant", "e")), "w": [2.0, 3.0]},
    ]
    options = PrepareOptions(assistant_only_loss=True)
    tokenizer = char_tokenizer(chat_template=CHAT_TEMPLATE)
    ready = prepare(Dataset.from_list(made), tokenizer, options, columns=("w",)).dataset
    assert _numbers(ready) == [[2.0] * 3 + [3.0] * 2]


@pytest.mark.parametrize("strategy", ["bfd", "bfd_split", "wrapped"])
def test_packing_keeps_every_value_with_its_token(strategy):
    values = [[float(10 * n + place) for place in range(n + 2)] for n in range(8)]
    options = PrepareOptions(max_length=7, packing=True, packing_strategy=strategy)
    packed = pack(_rows(values, max_length=7, packing=True, packing_strategy=strategy), options, own=("w",))
    letters = {token: place for place, token in enumerate(char_tokenizer()("abcdefgh")["input_ids"])}
    seen = 0
    for row in packed:
        for token, label, value in zip(row["input_ids"], row["labels"], row["w"], strict=True):
            if label in letters and not np.isnan(value):
                assert value % 10 == letters[token]
                seen += 1
    assert seen > 20


def test_rows_that_are_tokens_already_keep_their_columns():
    made = [{"input_ids": [5, 6, 7], "labels": [-100, 6, 7], "w": [1.0, 2.0]}]
    assert _numbers(prepare(Dataset.from_list(made), char_tokenizer(), PrepareOptions(), columns=("w",)).dataset) == [
        [1.0, 2.0]
    ]


def test_preparing_twice_changes_nothing():
    once = _rows([0.5, [1.0, 2, 3]])
    twice = prepare(once, char_tokenizer(), PrepareOptions(), columns=("w",)).dataset
    assert _numbers(once) == _numbers(twice)
    assert once["digest"] == twice["digest"]


def test_batches_have_the_column_where_all_rows_do():
    ready = _rows([0.5, 2.0])
    for padding_free in (False, True):
        collator = Collator(pad_token_id=0, own=("w",), padding_free=padding_free)
        batch = collator([dict(row) for row in ready])
        trained = batch["labels"] != -100
        assert batch["w"].isnan().equal(~trained)
        assert batch["w"][trained].tolist() == [0.5] * 2 + [2.0] * 3
        assert "w" not in collator([{name: row[name] for name in ("input_ids", "labels")} for row in ready])


def test_errors_name_the_row_and_the_column():
    with pytest.raises(BallastError, match="train: row 2: 'w' has 7 values; the row has 1 trained turns"):
        _rows([1.0, [1.0] * 7])
    with pytest.raises(BallastError, match="no column 'v', which the objective reads; there are: prompt, completion"):
        prepare(dataset(), char_tokenizer(), PrepareOptions(), columns=("v",))


@pytest.mark.parametrize("column", ["digest", "labels", "seq_lengths", "counts"])
def test_a_column_that_preparation_would_write_over_is_refused(column):
    named = dataset(2).add_column(column, [0.5, 1.0])
    with pytest.raises(BallastError, match=f"column '{column}', which the objective reads, has a name .*; rename it"):
        prepare(named, char_tokenizer(), PrepareOptions(), columns=(column,))


def _weighted(tmp_path, data, column="weight", **changes):
    trainer = ballast.Trainer(
        tiny_model(dtype=torch.float64),
        config(tmp_path, **changes),
        train_dataset=data,
        processing_class=char_tokenizer(),
        objective=ballast.objective("weighted-sft", column=column),
    )
    trainer.train()
    return trainer


def test_training_weighs_by_row_by_token_and_under_another_name(tmp_path):
    by_row = _weighted(tmp_path / "row", dataset())
    # A character is a token, and one more ends the answer.
    spelt = [{**row, "weight": [row["weight"]] * (len(row["completion"]) + 1)} for row in rows()]
    by_token = _weighted(tmp_path / "token", Dataset.from_list(spelt))
    renamed = _weighted(tmp_path / "name", dataset().rename_column("weight", "how good"), "how good")
    for other in (by_token, renamed):
        assert largest_difference(weights(by_row), weights(other)) == 0
    plain = run(tmp_path / "sft", "sft", model=tiny_model(dtype=torch.float64))
    assert largest_difference(weights(by_row), weights(plain)) > 1e-3


def test_weights_of_1_are_sft(tmp_path):
    ones = Dataset.from_list([{**row, "weight": 1} for row in rows()])
    plain = run(tmp_path / "sft", "sft", model=tiny_model(dtype=torch.float64))
    assert largest_difference(weights(_weighted(tmp_path, ones)), weights(plain)) < 1e-15


@pytest.mark.parametrize(
    "settings",
    [
        {"packing": True, "max_length": 512, "per_device_train_batch_size": 1},
        {"packing": True, "max_length": 64},
        {"padding_free": True, "max_length": None},
    ],
)
def test_packed_is_padded(tmp_path, settings):
    padded = _weighted(tmp_path / "padded", dataset())
    packed = _weighted(tmp_path / "packed", dataset(), **settings)
    assert largest_difference(weights(padded), weights(packed)) < 1e-12


def test_held_out_rows_need_no_column(tmp_path):
    trainer = _weighted(tmp_path, dataset())
    assert trainer.evaluate(dataset(12).remove_columns("weight"))["eval_weight_mean"] == 1.0
    held_out = trainer.evaluate(dataset(12))
    assert held_out["eval_weight_mean"] != 1.0
    assert held_out["eval_loss"] == pytest.approx(trainer.evaluate(dataset(12).remove_columns("weight"))["eval_loss"])


def test_a_missing_column_is_refused_before_a_weight_is_loaded(tmp_path):
    with pytest.raises(BallastError, match="no column 'weight', which the objective reads"):
        _weighted(tmp_path, dataset().remove_columns("weight"))
