"""`Trainer` says of data what the command line says, and trains on rows of a data set as they stand."""

from __future__ import annotations

import json

import pytest
from datasets import Audio, Dataset, Features, Value

import ballast
from ballast.data import PrepareOptions, prepare
from data_rows import PLAIN_TEMPLATE, call, chat, rows, tool, wide_tokenizer
from tiny import tiny_model
from training_tools import config


def trainer(tmp_path, data, tokenizer, **settings):
    model = tiny_model(vocab=len(tokenizer), context=512)
    return ballast.Trainer(
        model, config(tmp_path, **settings), train_dataset=data, processing_class=tokenizer, objective="sft"
    )


NO_MASKS = {
    "no markers": (rows("messages"), PLAIN_TEMPLATE, r"no \{% generation %\} markers .*give prompt and completion"),
    "no template": (rows("messages"), None, "no chat template; give chat_template_path"),
    "plain rows": (rows("prompt-completion"), PLAIN_TEMPLATE, "assistant_only_loss=True needs chat messages"),
}


@pytest.mark.parametrize("case", NO_MASKS)
def test_the_trainer_says_what_the_command_line_says_where_no_answer_can_be_told(case, tmp_path):
    given, template, message = NO_MASKS[case]
    data, tokenizer = Dataset.from_list(given), wide_tokenizer(template)
    with pytest.raises(ballast.BallastError, match=message) as said:
        trainer(tmp_path, data, tokenizer, assistant_only_loss=True)
    with pytest.raises(ballast.BallastError) as prepared:
        prepare(data, tokenizer, PrepareOptions(assistant_only_loss=True))
    assert str(said.value) == str(prepared.value)


def test_streams_are_refused_before_anything_is_read_of_them(tmp_path):
    stream = Dataset.from_list(rows("text")).to_iterable_dataset()
    with pytest.raises(
        ballast.BallastError, match="train: streaming data are not prepared as a whole: pass prepare_stream"
    ):
        trainer(tmp_path, stream, wide_tokenizer(), max_steps=1)


def test_a_data_set_in_memory_trains_on_its_calls_and_tools_as_they_stand(tmp_path):
    given = [
        {"messages": [chat("user", "?"), chat("assistant", "", tool_calls=[one])], "tools": [schema]}
        for one, schema in (
            (call("a", x=1), tool("a", x={"const": 1})),
            (call("b", y="z"), tool("b", y={"enum": ["z"]})),
        )
    ]
    tokenizer = wide_tokenizer()
    made = trainer(tmp_path, Dataset.from_list(given), tokenizer)
    for ids, row in zip(made.train_dataset["input_ids"], given, strict=True):
        text = tokenizer.decode(ids)
        assert f"[tools {json.dumps(row['tools'])}]" in text
        assert f"[call {json.dumps(row['messages'][1]['tool_calls'][0]['function'])}]" in text
    assert any("keys that are null" in note for note in made.prepare_reports["train"].notes)


def test_columns_that_nobody_trains_on_are_not_decoded(tmp_path):
    features = Features({"text": Value("string"), "sound": Audio()})
    data = Dataset.from_list([{"text": "a", "sound": {"bytes": b"none", "path": None}}] * 8).cast(features)
    made = trainer(tmp_path, data, wide_tokenizer())
    assert wide_tokenizer().decode(made.train_dataset["input_ids"][0]) == "a<eos>"
