"""What would train on something else than it says is refused, in one line, by name."""

from __future__ import annotations

import pytest
from datasets import Dataset, DatasetDict

from ballast.data import PrepareOptions, prepare, trl
from ballast.errors import BallastError
from data_rows import PLAIN_TEMPLATE, rows, tokenizer


def _fails(message, data, tok=None, *, name="train", **options):
    data = Dataset.from_list(data) if isinstance(data, list) else data
    with pytest.raises(BallastError, match=message) as caught:
        prepare(data, tok or tokenizer(), PrepareOptions(**options), name=name)
    assert "\n" not in str(caught.value), "an error is one line"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"truncation_mode": "keep_stat"}, "truncation_mode='keep_stat' is unknown; did you mean 'keep_start'"),
        ({"packing_strategy": "bdf"}, "packing_strategy='bdf' is unknown; did you mean 'bfd'"),
        ({"max_length": 1}, "max_length=1 leaves no token to predict"),
        ({"max_length": 0}, "max_length=0"),
        ({"packing": True, "max_length": None}, "packing=True needs max_length"),
        ({"packing": True, "truncation_mode": "keep_end"}, "'keep_end' is ignored by packing"),
        ({"completion_only_loss": True}, "completion_only_loss=True needs prompt and completion"),
        ({"assistant_only_loss": True}, "assistant_only_loss=True needs chat messages"),
        ({"eos_token": "<nope>"}, "eos_token='<nope>' is not in the tokenizer's vocabulary"),
        ({"pad_token": "<nope>"}, "pad_token='<nope>' is not in the tokenizer's vocabulary"),
        ({"chat_template_path": "some/tokenizer"}, "is no .jinja file"),
        ({"chat_template_path": "missing.jinja"}, "missing.jinja': no such file"),
        ({"dataset_text_field": "txt"}, r"no column to train on; there are: text.*is 'text' meant for 'txt'"),
    ],
)
def test_options(options, message):
    _fails(message, rows("text"), **options)


def test_kinds_of_data():
    data = Dataset.from_list(rows("text"))
    _fails("eval: streaming data are not prepared as a whole", data.to_iterable_dataset(), name="eval")
    _fails(r"set of splits \(train\)", DatasetDict({"train": data}))
    _fails(r"with_transform\(\) is not supported", data.with_transform(lambda batch: batch))
    _fails("vision rows are not supported .column 'image'", data.add_column("image", [1] * 8))
    _fails("no rows", data.select([]))
    _fails("a datasets.Dataset is needed, not dict", {"text": ["a"]})


def test_columns():
    _fails("no column 'completion' beside 'prompt'.*is 'completions' meant", [{"prompt": "a", "completions": "b"}])
    _fails("chosen and rejected are no demonstrations", [{"chosen": "a", "rejected": "b"}])
    _fails("is 'mesages' meant for 'messages'", [{"mesages": "a"}])
    _fails(r"two formats at once, prompt-completion .* and text", [{"prompt": "a", "completion": "b", "text": "c"}])
    _fails("train: row 2: 'text' is missing", [{"text": "a"}, {"text": None}])
    _fails("row 1: the role 'gpt' means nothing", [{"conversations": [{"from": "gpt", "value": "a"}]}])


def test_tokenizers_that_lack_something():
    _fails("no chat template; give chat_template_path", rows("messages"), tokenizer(None))
    no_end = tokenizer()
    no_end.eos_token = None
    _fails("no eos token to end plain rows with", rows("text"), no_end)
    no_end.pad_token = None
    _fails("neither pad nor eos token", rows("messages"), no_end)
    only_end = tokenizer()
    only_end.pad_token = None
    assert trl.training_tokenizer(only_end, PrepareOptions()).pad_token == only_end.eos_token
    with pytest.raises(BallastError, match="a str is not supported"):
        trl.training_tokenizer("gpt2", PrepareOptions())


def test_templates_without_generation_markers():
    _fails(
        "no {% generation %} markers.*assistant_only_loss=False",
        rows("messages"),
        tokenizer(PLAIN_TEMPLATE),
        assistant_only_loss=True,
    )


def test_a_marked_template_that_marks_nothing_names_the_row():
    bad = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    template = PLAIN_TEMPLATE.replace(
        "{{ eos_token }}",
        "{% if message['content'] != 'b' %}{% generation %}{{ eos_token }}{% endgeneration %}{% endif %}",
    )
    data = [*rows("messages"), bad, *rows("messages")]
    _fails("train: row 9: .*marks no token of its assistant", data, tokenizer(template), assistant_only_loss=True)


def test_a_row_that_the_template_refuses_is_named():
    refuse = "{% if messages[0]['content'] == 'BAD' %}{{ raise_exception('roles must alternate') }}{% endif %}"
    template = refuse + PLAIN_TEMPLATE
    data = [*rows("messages"), {"messages": [{"role": "user", "content": "BAD"}]}, *rows("messages")]
    _fails("train: row 9: cannot be tokenised: roles must alternate", data, tokenizer(template))


def test_token_ids_of_another_tokenizer():
    size = len(tokenizer())
    _fails(f"'input_ids' holds token id {size}, but the tokenizer has {size}", [{"input_ids": [4, size]}])
    _fails("'labels' holds token id", [{"input_ids": [4, 5], "labels": [-100, size]}])
    assert (
        prepare(Dataset.from_list([{"input_ids": [4, size - 1]}]), tokenizer(), PrepareOptions()).report.rows_out == 1
    )
