"""Preparation gives TRL's tokens and labels, and counts every row that is lost on the way."""

from __future__ import annotations

import pytest
from datasets import Dataset

from ballast.data import PrepareOptions, pack, prepare, row_digest
from ballast.errors import BallastError
from data_rows import PLAIN_TEMPLATE, rows, tokenizer, trl_dataset

LOSSES = [
    ("text", {}),
    ("text", {"completion_only_loss": False}),
    ("prompt-completion", {}),
    ("prompt-completion", {"completion_only_loss": True}),
    ("prompt-completion", {"completion_only_loss": False}),
    ("messages", {}),
    ("messages", {"assistant_only_loss": True}),
    ("chat-prompt-completion", {}),
    ("chat-prompt-completion", {"completion_only_loss": False}),
    ("chat-prompt-completion", {"assistant_only_loss": True}),
    ("chat-prompt-completion", {"assistant_only_loss": True, "completion_only_loss": False}),
]
# "cut" is a length that truncates some rows of the kind and leaves each a trained token.
CUT = {"text": 22, "prompt-completion": 22, "messages": 54, "chat-prompt-completion": 54}
LAYOUTS = [
    {"max_length": None},
    {"max_length": "cut"},
    {"max_length": 30, "truncation_mode": "keep_end"},
    {"max_length": "cut", "packing": True},
    {"max_length": "cut", "packing": True, "packing_strategy": "bfd_split"},
    {"max_length": "cut", "packing": True, "packing_strategy": "wrapped"},
    {"max_length": "cut", "packing": True, "shuffle_dataset": True, "seed": 7},
    {"max_length": None, "shuffle_dataset": True},
]


def _name(value):
    return ",".join(f"{k}={v}" for k, v in value.items()) or "default" if isinstance(value, dict) else value


@pytest.mark.parametrize("layout", LAYOUTS, ids=_name)
@pytest.mark.parametrize(("kind", "loss"), LOSSES, ids=_name)
def test_tokens_and_labels_are_trls(kind, loss, layout, tmp_path):
    data = Dataset.from_list(rows(kind))
    length = CUT[kind] if layout["max_length"] == "cut" else layout["max_length"]
    theirs, args = trl_dataset(data, tmp_path, **loss, **{**layout, "max_length": length})
    options = PrepareOptions.from_training_args(args)
    prepared = prepare(data, tokenizer(), options)
    assert prepared.report.dropped_no_trained_token == 0, "the rows of this test are chosen to survive"
    ours = pack(prepared.dataset, options)
    assert ours["input_ids"][:] == theirs["input_ids"][:]
    assert ours["labels"][:] == theirs["labels"][:]
    if options.packing and options.packing_strategy != "wrapped":
        assert ours["seq_lengths"][:] == theirs["seq_lengths"][:]


@pytest.mark.parametrize("kind", CUT)
def test_the_layouts_above_do_truncate_and_split(kind):
    data = Dataset.from_list(rows(kind))
    assert prepare(data, tokenizer(), PrepareOptions(max_length=CUT[kind])).report.truncated > 1
    split = PrepareOptions(max_length=CUT[kind], packing=True, packing_strategy="bfd_split")
    assert prepare(data, tokenizer(), split).report.added_by_split > 1


def test_template_without_markers_is_swapped_for_trls_training_template(tmp_path):
    from trl.chat_template_utils import qwen2_5_chat_template

    data = Dataset.from_list(rows("messages"))
    theirs, args = trl_dataset(data, tmp_path, template=qwen2_5_chat_template, assistant_only_loss=True)
    ours = prepare(data, tokenizer(qwen2_5_chat_template), PrepareOptions.from_training_args(args)).dataset
    assert ours["labels"][:] == theirs["labels"][:]
    assert ours["input_ids"][:] == theirs["input_ids"][:]


def test_chat_template_path_and_eos_token_are_honoured(tmp_path):
    path = tmp_path / "other.jinja"
    path.write_text("{% for m in messages %}[{{ m['content'] }}]{% endfor %}")
    data = Dataset.from_list(rows("messages"))
    theirs, args = trl_dataset(data, tmp_path, chat_template_path=str(path))
    before = tokenizer()
    ours = prepare(data, before, PrepareOptions.from_training_args(args)).dataset
    assert ours["input_ids"][:] == theirs["input_ids"][:]
    assert before.chat_template == tokenizer().chat_template, "the caller's tokenizer stays as it was"
    text = Dataset.from_list(rows("text"))
    theirs, args = trl_dataset(text, tmp_path, eos_token="z")
    ours = prepare(text, tokenizer(), PrepareOptions.from_training_args(args)).dataset
    assert ours["input_ids"][:] == theirs["input_ids"][:]
    assert ours["input_ids"][0][-1] == tokenizer().convert_tokens_to_ids("z")


def test_conversations_with_known_roles_are_read_as_trl_reads_them(tmp_path):
    turns = [
        {"conversations": [{"from": m["role"], "value": m["content"]} for m in row["messages"]]}
        for row in rows("messages")
    ]
    theirs, args = trl_dataset(Dataset.from_list(turns), tmp_path)
    ours = prepare(Dataset.from_list(turns), tokenizer(), PrepareOptions.from_training_args(args)).dataset
    assert ours["input_ids"][:] == theirs["input_ids"][:]


def test_tokenised_rows_are_truncated_and_named(tmp_path):
    data = Dataset.from_list(
        [{"input_ids": [5, 6, 7, 8], "labels": [-100, 6, -100, 8]}, {"input_ids": [9, 4], "labels": [9, 4]}]
    )
    theirs, args = trl_dataset(data, tmp_path, max_length=3)
    ours = prepare(data, tokenizer(), PrepareOptions.from_training_args(args)).dataset
    assert ours["input_ids"][:] == theirs["input_ids"][:] == [[5, 6, 7], [9, 4]]
    assert ours["labels"][:] == theirs["labels"][:]
    masked = Dataset.from_list([{"input_ids": [5, 6, 7], "completion_mask": [0, 0, 1]}])
    options = PrepareOptions(completion_only_loss=True)
    assert prepare(masked, tokenizer(), options).dataset["labels"][:] == [[-100, -100, 7]]
    again = prepare(ours, tokenizer(), PrepareOptions(max_length=3)).dataset
    assert again[:] == ours[:], "preparing prepared rows changes nothing"


def test_rows_without_a_trained_token_are_dropped_and_counted():
    data = Dataset.from_list(
        [
            {"prompt": "abcdefgh", "completion": "x"},
            {"prompt": "ab", "completion": "xyz"},
            {"prompt": "", "completion": "xyz" * 9},
        ]
    )
    prepared = prepare(data, tokenizer(), PrepareOptions(max_length=8))
    report = prepared.report
    assert (report.rows_in, report.rows_out, report.dropped_no_trained_token, report.truncated) == (3, 2, 1, 2)
    labels = prepared.dataset["labels"][:]
    # "ab" is masked; of the row without a prompt the first label is there but untrained: nothing predicts it.
    assert report.trained_tokens == 4 + 7
    assert report.tokens == sum(map(len, labels)) == 6 + 8
    assert any("1 dropped" in line for line in report.lines())


def test_a_lone_first_label_is_no_trained_token():
    data = Dataset.from_list([{"input_ids": [5, 6], "labels": [5, -100]}, {"input_ids": [5, 6], "labels": [-100, 6]}])
    assert prepare(data, tokenizer(), PrepareOptions()).report.dropped_no_trained_token == 1


def test_split_fragments_cover_the_row_and_untrained_ones_are_dropped():
    data = Dataset.from_list([{"prompt": "abcdefgh", "completion": "wxyz"}])
    options = PrepareOptions(max_length=4, packing=True, packing_strategy="bfd_split")
    prepared = prepare(data, tokenizer(), options)
    whole = prepare(data, tokenizer(), PrepareOptions()).dataset[0]["input_ids"]
    assert prepared.dataset["input_ids"][:] == [whole[8:12]]
    # The last fragment is the end token alone: it starts a row, so nothing predicts it.
    report = prepared.report
    assert (report.added_by_split, report.dropped_no_trained_token, report.rows_out) == (3, 3, 1)


def test_conversations_without_an_assistant_are_dropped_and_counted():
    data = Dataset.from_list([*rows("messages", 2), {"messages": [{"role": "user", "content": "hm"}]}])
    report = prepare(data, tokenizer(), PrepareOptions(assistant_only_loss=True)).report
    assert (report.rows_in, report.rows_out, report.dropped_no_trained_token) == (3, 2, 1)


def test_prompts_that_are_no_prefix_are_counted(tmp_path):
    # The generation prompt opens a block that the full conversation does not have.
    template = PLAIN_TEMPLATE.replace("%}<assistant>{%", "%}<assistant><think>{%")
    data = Dataset.from_list(rows("chat-prompt-completion"))
    theirs, args = trl_dataset(data, tmp_path, template=template)
    prepared = prepare(data, tokenizer(template), PrepareOptions.from_training_args(args))
    assert prepared.report.prompt_not_prefix == 8
    assert any("no prefix" in line for line in prepared.report.lines())
    assert prepared.dataset["labels"][:] == theirs["labels"][:]
    assert prepare(data, tokenizer(), PrepareOptions()).report.prompt_not_prefix == 0


def test_an_end_of_turn_left_untrained_is_reported():
    template = PLAIN_TEMPLATE.replace(
        "{{ message['content'] }}{{ eos_token }}",
        "{% generation %}{{ message['content'] }}{% endgeneration %}{{ eos_token }}",
    )
    report = prepare(
        Dataset.from_list(rows("messages")), tokenizer(template), PrepareOptions(assistant_only_loss=True)
    ).report
    assert any("end-of-turn" in line for line in report.lines())
    healthy = prepare(Dataset.from_list(rows("messages")), tokenizer(), PrepareOptions(assistant_only_loss=True)).report
    assert healthy.notes == ()


def test_formats_set_on_the_data_do_not_matter():
    data = Dataset.from_list(rows("prompt-completion"))
    plain = prepare(data, tokenizer(), PrepareOptions()).dataset[:]
    assert prepare(data.with_format("numpy"), tokenizer(), PrepareOptions()).dataset[:] == plain
    assert prepare(data, tokenizer(), PrepareOptions(num_proc=2)).dataset[:] == plain


def test_digests_name_exact_ids_and_labels():
    assert row_digest([1, 2, 3], [-100, 2, 3]) == row_digest((1, 2, 3), (-100, 2, 3))
    distinct = {
        row_digest([1, 2, 3], [-100, 2, 3]),
        row_digest([1, 2, 3], [-100, -100, 3]),
        row_digest([1, 2, 4], [-100, 2, 3]),
        row_digest([1, 2], [3, -100, 2, 3]),
        row_digest([1, 2, 3, -100], [2, 3]),
    }
    assert len(distinct) == 5
    assert all(len(digest) == 32 for digest in distinct)


def test_digests_are_stable_across_releases():
    # A cache on disk is found by these names: changing one orphans every cache.
    assert row_digest([1, 2, 3], [-100, 2, 3]) == "091057739bc92155a60a5ce2e34f4e2a"


def test_shuffles_subsets_and_mixtures_keep_the_digests():
    data = Dataset.from_list(rows("prompt-completion"))
    options = PrepareOptions(max_length=16)
    base = set(prepare(data, tokenizer(), options).dataset["digest"])
    assert len(base) == 8
    assert set(prepare(data.shuffle(seed=1), tokenizer(), options).dataset["digest"]) == base
    assert set(prepare(data.select([5, 2]), tokenizer(), options).dataset["digest"]) < base
    assert not base & set(prepare(data, tokenizer(), PrepareOptions(max_length=12)).dataset["digest"]) - _short(
        data, 12
    )


def _short(data, length):
    kept = prepare(data, tokenizer(), PrepareOptions(max_length=None)).dataset
    return {row["digest"] for row in kept if len(row["input_ids"]) <= length}


def test_options_come_from_training_arguments(tmp_path):
    from trl import SFTConfig

    args = SFTConfig(str(tmp_path), use_cpu=True, bf16=False, packing=True, max_length=9, dataset_num_proc=3, seed=5)
    options = PrepareOptions.from_training_args(args)
    assert (options.packing, options.max_length, options.num_proc, options.seed) == (True, 9, 3, 5)
    assert PrepareOptions.from_training_args(args, packing=False).packing is False


def test_all_rows_lost_is_an_error_that_says_why():
    data = Dataset.from_list([{"prompt": "abcdefgh", "completion": "x"}])
    with pytest.raises(BallastError, match=r"max_length=4.*after 8 tokens of prompt.*raise max_length"):
        prepare(data, tokenizer(), PrepareOptions(max_length=4))
    masked = Dataset.from_list([{"input_ids": [5, 6], "labels": [-100, -100]}])
    with pytest.raises(BallastError, match="labels are all -100"):
        prepare(masked, tokenizer(), PrepareOptions())
    users = Dataset.from_list([{"messages": [{"role": "user", "content": "hm"}]}])
    with pytest.raises(BallastError, match="no row has a message of the assistant"):
        prepare(users, tokenizer(), PrepareOptions(assistant_only_loss=True))
