"""Real data sets load and prepare under a real tokenizer."""

from __future__ import annotations

import pytest

from ballast.data import PrepareOptions, load_rows, prepare

SOURCES = {
    "gsm8k": ("gsm8k/train.jsonl", {"prompt": "{question}\n", "completion": "answer"}),
    "svamp": ("svamp/SVAMP.json", {"prompt": "{Body} {Question}\n", "completion": "Equation"}),
    "math": (
        "math/math_train_7500.parquet",
        {"prompt": "reward_model.ground_truth.question", "completion": "reward_model.ground_truth.solution"},
    ),
    "tinystories": ("tinystories/tinystories_5k.jsonl", None),
}


@pytest.fixture(scope="module")
def stories_tokenizer(real_data):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(real_data / "models" / "stories260K")


@pytest.mark.parametrize("name", SOURCES)
def test_real_rows_prepare_to_trls_tokens(name, real_data, stories_tokenizer, tmp_path):
    from trl import SFTConfig, SFTTrainer

    from tiny import tiny_model

    file, columns = SOURCES[name]
    data = load_rows(real_data / "data" / file, columns=columns, limit=200)
    args = SFTConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none", max_length=256)
    prepared = prepare(data, stories_tokenizer, PrepareOptions.from_training_args(args))
    theirs = SFTTrainer(
        tiny_model(vocab=512), args, train_dataset=data, processing_class=stories_tokenizer
    ).train_dataset
    assert prepared.dataset["input_ids"][:] == theirs["input_ids"][:]
    assert prepared.dataset["labels"][:] == theirs["labels"][:]
    report = prepared.report
    assert report.rows_out + report.dropped_no_trained_token == report.rows_in == 200
    assert 0 < report.trained_tokens < report.tokens


def test_whole_files_load(real_data):
    data = real_data / "data"
    assert load_rows(data / "gsm8k", split="test").num_rows == 1319
    assert load_rows(data / "code" / "HumanEval.jsonl.gz").num_rows == 164
    assert load_rows(data / "medqa" / "us_4options_test.jsonl")["answer_idx"][0] in "ABCD"
    mapping = {"prompt": "reward_model.ground_truth.question", "completion": "reward_model.ground_truth.solution"}
    assert load_rows(data / "math" / "math_train_7500.parquet", columns=mapping).num_rows == 7500
