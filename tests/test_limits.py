"""No sequence is longer than the model's context and no token id beyond its rows, through whatever door it comes."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

import ballast
from ballast.cli import app
from ballast.data import PrepareOptions, pack, prepare
from ballast.errors import BallastError
from ballast.evaluation import evaluate
from ballast.groups import GroupOptions
from ballast.limits import positions
from ballast.reference import CacheKey, score_rows
from tiny import char_tokenizer, tiny_model
from training_tools import config, run

CONTEXT = 24
ROWS = [{"prompt": "1+1=", "completion": "2" * size} for size in (3, 60, 5, 40)]
NOTE = f"rows are cut at {CONTEXT} tokens for max_length=1024: the model's context ends there"


def rows():
    from datasets import Dataset

    return Dataset.from_list(ROWS)


def learned_positions():
    from transformers import GPT2Config, GPT2LMHeadModel

    settings = GPT2Config(vocab_size=96, n_positions=CONTEXT, n_embd=16, n_layer=1, n_head=2, eos_token_id=2)
    torch.manual_seed(0)
    return GPT2LMHeadModel(settings)


MODELS = {"rotary": lambda: tiny_model(context=CONTEXT), "learned": learned_positions}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_the_trainer_cuts_rows_at_the_context_and_says_so_once(tmp_path, make):
    trainer = run(tmp_path, "sft", model=make(), data=rows())
    assert max(map(len, trainer.train_dataset["input_ids"])) == CONTEXT
    report = trainer.prepare_reports["train"]
    assert (report.truncated, report.notes) == (2, (NOTE,))


def test_a_max_length_within_the_context_stays_what_it_was(tmp_path):
    trainer = run(tmp_path, "sft", model=tiny_model(context=CONTEXT), data=rows(), max_length=10)
    assert max(map(len, trainer.train_dataset["input_ids"])) == 10
    assert trainer.prepare_reports["train"].notes == ()


def test_rows_within_the_context_are_no_reason_for_a_note(tmp_path):
    short = rows().select([0, 2])
    trainer = run(tmp_path, "sft", model=tiny_model(context=CONTEXT), data=short)
    assert trainer.prepare_reports["train"].notes == ()


def test_without_max_length_the_context_is_the_bound():
    options = PrepareOptions(max_length=None, context=CONTEXT)
    report = prepare(rows(), char_tokenizer(), options).report
    assert report.notes == (f"rows are cut at {CONTEXT} tokens without max_length: the model's context ends there",)


def test_a_shorter_reference_bounds_rows_too(tmp_path):
    trainer = run(tmp_path, "eksft", model=tiny_model(context=64), data=rows(), reference=tiny_model(context=20))
    assert max(map(len, trainer.train_dataset["input_ids"])) == 20


@pytest.mark.parametrize(("strategy", "piece", "packed"), [("bfd", 24, 40), ("bfd_split", 24, 40), ("wrapped", 24, 24)])
def test_packs_are_as_long_as_asked_but_no_position_is_beyond_the_context(strategy, piece, packed):
    options = PrepareOptions(max_length=40, context=CONTEXT, packing=True, packing_strategy=strategy)
    ready = prepare(rows(), char_tokenizer(), options).dataset
    assert strategy == "wrapped" or max(map(len, ready["input_ids"])) == piece
    packs = pack(ready, options)
    assert packed - 15 < max(map(len, packs["input_ids"])) <= packed


def test_a_prompt_beyond_the_context_leaves_nothing_to_train():
    from datasets import Dataset

    data = Dataset.from_list([{"prompt": "1" * 30, "completion": "2"}])
    with pytest.raises(BallastError, match=r"lose their trained tokens to the model's context of 24: .*shorten"):
        prepare(data, char_tokenizer(), PrepareOptions(context=CONTEXT))


def test_rows_that_were_prepared_for_another_model_are_not_scored(tmp_path):
    model, tokenizer = tiny_model(context=CONTEXT), char_tokenizer()
    whole = prepare(rows(), tokenizer, PrepareOptions()).dataset
    with pytest.raises(BallastError, match=r"^row 1: 65 tokens exceed the model's context of 24"):
        score_rows(model, whole, tmp_path / "cache", CacheKey.of(model, tokenizer))
    assert not (tmp_path / "cache").exists()


def test_experts_answers_are_cut_and_own_ones_are_refused(tmp_path):
    from datasets import Dataset

    given = {"verifier": "exact", "own": 0}
    data = Dataset.from_list([{**row, "answer": "2", "teachers": ["1"]} for row in ROWS])
    trainer = group_trainer(tmp_path, data, given)
    assert max(len(member.ids) for row in range(4) for member in trainer.groups.rows.fixed(row)) == CONTEXT
    assert trainer.groups.rows.lines()[-1] == "groups: 2 answers truncated to the model's context"
    with pytest.raises(BallastError, match=r"row 1: prompt of 4 tokens \+ groups.max_new_tokens 30 exceeds the model"):
        group_trainer(tmp_path, data, {**given, "own": 2, "max_new_tokens": 30})


def test_answers_of_a_file_are_refused_beyond_the_context(tmp_path):
    answers = [{"prompt": "1+1=", "origin": "own", "response": "2" * size, "reward": size % 2} for size in (3, 60)]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answers))
    with pytest.raises(BallastError, match=r"own.jsonl: prompt 1: 65 tokens exceed the model's context of 24"):
        group_trainer(tmp_path, None, {"file": str(tmp_path / "own.jsonl")})


def group_trainer(tmp_path, data, groups):
    return ballast.Trainer(
        tiny_model(context=CONTEXT),
        config(tmp_path, per_device_train_batch_size=2),
        train_dataset=data,
        processing_class=char_tokenizer(),
        objective="gft",
        groups=GroupOptions(**groups),
    )


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_model(context=CONTEXT).save_pretrained("model")
    char_tokenizer().save_pretrained("model")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return tmp_path


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "objective=sft", "output=out", "training.max_steps=1", "training.report_to=none"],
        ["score", "reference.cache=cache"],
    ],
    ids=["train", "score"],
)
def test_commands_cut_rows_as_the_trainer_does(folder, arguments):
    done = CliRunner().invoke(app, [*arguments, "model=model", "data.train=rows.jsonl"])
    assert done.exit_code == 0, (done.output, done.exception)
    assert f"train: {NOTE}" in " ".join(done.stdout.split())
    assert "train: 2 truncated" in " ".join(done.stdout.split())


def other_tokenizer():
    return char_tokenizer(characters="".join(chr(0x4E00 + place) for place in range(200)))


def test_a_tokenizer_of_another_model_is_refused_by_trainer_and_evaluation(tmp_path):
    refused = r"LlamaForCausalLM: the tokenizer has ids up to 203, the model only \d+ rows"
    with pytest.raises(BallastError, match=refused):
        run(tmp_path, "sft", tokenizer=other_tokenizer())
    task = {"kind": "generate", "name": "t", "data": [{"prompt": "1", "answer": "1"}], "verifier": "exact"}
    with pytest.raises(BallastError, match=refused):
        evaluate(tiny_model(), other_tokenizer(), [task])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"max_position_embeddings": 512}, 512),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}}, 2048),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}}, 4096),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, 1024),
    ],
)
def test_positions_of_a_rotary_model(changes, expected):
    from transformers import LlamaConfig

    assert positions(LlamaConfig(**{"max_position_embeddings": 1024, **changes})) == expected


def test_models_without_a_bound_have_none():
    from transformers import BloomConfig, XLNetConfig

    assert positions(BloomConfig()) is None
    assert positions(XLNetConfig()) is None
