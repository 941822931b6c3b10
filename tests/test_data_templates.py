"""Rows under the chat templates that TRL ships: its tokens and labels, and a prompt that is the one answered later."""

from __future__ import annotations

from importlib import resources

import pytest
from datasets import Dataset

from ballast.data import PrepareOptions, load_rows, prepare
from ballast.data.trl import training_tokenizer
from ballast.evaluation.generation import encode_rows
from data_rows import chat, wide_tokenizer
from tiny import tiny_model

FOLDER = resources.files("trl") / "chat_templates"
# These are for vision processors: they write a content that is text letter by letter, or not at all.
VISION = ("idefics3", "llava_next", "smolvlm")
NAMES = sorted(
    path.name.removesuffix(".jinja")
    for path in FOLDER.iterdir()
    if path.name.endswith(".jinja") and not path.name.startswith(VISION)
)
MARKED = [name for name in NAMES if name.endswith("_training")]
"""Templates that mark what an assistant wrote."""
THINKING = ("deepseek", "nemotron_3")
SAMPLE = ("gptoss_training", "llama3_training", "qwen3_training")

ASKED = [
    {"prompt": [chat("user", "2+2?")], "completion": [chat("assistant", "four")]},
    {
        "prompt": [chat("user", "Hi"), chat("assistant", "Ho."), chat("user", "3+3?")],
        "completion": [chat("assistant", "It is six.")],
    },
]
TALKS = [{"messages": [*row["prompt"], *row["completion"]]} for row in ASKED]


def template(name: str) -> str:
    return (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")


def ours(rows, name, **options):
    return prepare(load_rows(rows), wide_tokenizer(template(name)), PrepareOptions(max_length=None, **options)).dataset


def theirs(rows, name, folder, **options):
    from trl import SFTConfig, SFTTrainer

    args = SFTConfig(str(folder), use_cpu=True, bf16=False, report_to="none", max_length=None, **options)
    tokenizer = wide_tokenizer(template(name))
    model = tiny_model(vocab=len(tokenizer))
    return SFTTrainer(model, args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer).train_dataset


def same(left, right) -> bool:
    return all(list(left[name]) == list(right[name]) for name in ("input_ids", "labels"))


def test_there_are_templates():
    assert len(NAMES) > 50
    assert len(MARKED) > 20


@pytest.mark.parametrize("name", NAMES)
def test_the_prompt_that_is_answered_is_the_one_that_was_trained_after_or_the_report_says_so(name):
    """Up to the first trained token; the rest is the answer, and all of it is trained."""
    tokenizer, options = wide_tokenizer(template(name)), PrepareOptions(max_length=None)
    made = prepare(load_rows(ASKED), tokenizer, options)
    prompts = encode_rows(training_tokenizer(tokenizer, options), ASKED)
    rows = zip(prompts, made.dataset["input_ids"], made.dataset["labels"], ASKED, strict=True)
    for prompt, ids, labels, row in rows:
        start = next(place for place, label in enumerate(labels) if label != -100)
        rest = tuple(prompt)[start:]
        assert tuple(ids[:start]) == tuple(prompt)[:start]
        # R1 and Nemotron open a thought for the model, which rows without one do not have.
        assert tokenizer.decode(rest) in (("<think>\n", "\n") if name.startswith(THINKING) else ("",))
        assert row["completion"][0]["content"] in tokenizer.decode(ids[start:])
        assert row["prompt"][-1]["content"] in tokenizer.decode(ids[:start])
        assert ids[start:] == labels[start:]
    told = "2 whose prompt is no prefix of prompt+completion" in " ".join(made.report.lines())
    assert told == name.startswith(THINKING)


def _check_equal(name, folder):
    assert same(ours(ASKED, name), theirs(ASKED, name, folder))
    alone = {"assistant_only_loss": True}
    made = ours(TALKS, name, **alone)
    assert same(made, theirs(TALKS, name, folder, **alone))
    tokenizer = wide_tokenizer()
    for labels, row in zip(made["labels"], TALKS, strict=True):
        said = tokenizer.decode([label for label in labels if label != -100])
        assert [message["content"] in said for message in row["messages"]] == [
            message["role"] == "assistant" for message in row["messages"]
        ]


@pytest.mark.parametrize("name", SAMPLE)
def test_tokens_and_labels_are_those_of_trls_own_trainer(name, tmp_path):
    _check_equal(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", MARKED)
def test_tokens_and_labels_of_every_marked_template_are_trls(name, tmp_path):
    _check_equal(name, tmp_path)
