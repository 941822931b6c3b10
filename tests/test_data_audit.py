"""What a chat template leaves out of a row is counted with an example, and refused where an answer is gone."""

from __future__ import annotations

from importlib import resources

import pytest

from ballast.data import PrepareOptions, load_rows, prepare
from ballast.errors import BallastError
from data_rows import CHAT_TEMPLATE, FULL_TEMPLATE, PLAIN_TEMPLATE, call, chat, tool, trained_text, wide_tokenizer

TEMPLATES = sorted(
    path.name.removesuffix(".jinja")
    for path in (resources.files("trl") / "chat_templates").iterdir()
    if path.name.endswith(".jinja") and not path.name.endswith("_training.jinja")
)
# These are for vision processors: they write a content that is text letter by letter, or not at all.
VISION = ("idefics3", "llava_next", "smolvlm")


def trl_template(name: str) -> str:
    return (resources.files("trl") / "chat_templates" / f"{name}.jinja").read_text()


def prepared(rows, template, **options):
    rows = rows if isinstance(rows[0], dict) else [{"messages": messages} for messages in rows]
    return prepare(load_rows(rows), wide_tokenizer(template), PrepareOptions(max_length=None, **options))


def notes(rows, template, **options):
    """What the report says of texts: not of tokens by role, nor of an end token that the tiny tokenizer has not."""
    said = prepared(rows, template, **options).report.notes
    return [note for note in said if not note.startswith("all messages") and "end token" not in note]


TALK = [
    chat("user", "Hi <b> & 'you'"),
    chat("assistant", "One\n\n  two."),
    chat("user", "So?"),
    chat("assistant", "Yes."),
]
THOUGHT = "<think>\nfirst I add\n</think>\n\nfour"


@pytest.mark.parametrize("name", [name for name in TEMPLATES if name not in VISION])
def test_templates_that_write_everything_are_not_accused(name):
    assert notes([TALK] * 2, trl_template(name)) == []


@pytest.mark.parametrize("name", ["qwen2_5", "qwen3", "llama3_1", "gemma4", "glm4moe", "gptoss", "nemotron_3_nano"])
def test_calls_results_and_tools_are_found_however_they_are_written(name):
    called = call("weir_level", station='the "north"\nweir', hour=9, deep={"k": ["x", 1.5, True, None]})
    messages = [
        chat("user", "Level?"),
        chat("assistant", "", tool_calls=[called]),
        chat("tool", '1.2 "m"\nof water', name="weir_level"),
        chat("assistant", "Twelve."),
    ]
    rows = [{"messages": messages, "tools": [tool("weir_level", station={"type": "string"})]}]
    assert notes(rows, trl_template(name)) == []


STRIPPED = {
    "r1, tags": ("deepseek_r1_distill", chat("assistant", THOUGHT)),
    "r1, key": ("deepseek_r1_distill", chat("assistant", "four", reasoning_content="first I add")),
    "v3, tags": ("deepseekv3", chat("assistant", THOUGHT)),
    "llama, key": ("llama3", chat("assistant", "four", reasoning_content="first I add")),
}


@pytest.mark.parametrize("case", STRIPPED)
def test_reasoning_that_a_template_strips_is_counted(case):
    name, answer = STRIPPED[case]
    rows = [TALK, [chat("user", "2+2?"), answer], [chat("user", "3+1?"), answer]]
    made = prepared(rows, trl_template(name))
    assert made.report.left_out["reasoning"] == 2
    (note,) = notes(rows, trl_template(name))
    assert note.startswith("2 rows of which the chat template leaves out the reasoning (row 2: 'first I add')")
    assert "first I add" not in "".join(trained_text(made, wide_tokenizer()))


def test_reasoning_of_earlier_turns_counts_too():
    turns = [chat("user", "a?"), chat("assistant", THOUGHT), chat("user", "b?"), chat("assistant", THOUGHT + "!")]
    (note,) = notes([turns[:2], turns], trl_template("qwen3"))
    assert note.startswith("1 row of which the chat template leaves out the reasoning (row 2")


WITHOUT = {
    "system prompt": "{% if m.role != 'system' %}{{ m.content }}{% endif %}",
    "question": "{% if m.role != 'user' %}{{ m.content }}{% endif %}",
    "tool result": "{% if m.role != 'tool' %}{{ m.content }}{{ m.tool_calls }}{% endif %}",
    "tool call": "{{ m.content }}",
    "developer message": "{% if m.role != 'developer' %}{{ m.content }}{% endif %}",
}
ROWS = {
    "system prompt": [chat("system", "Be terse."), *TALK],
    "question": TALK,
    "tool result": [TALK[0], chat("assistant", "x", tool_calls=[call("f", a=1)]), chat("tool", "1.2 m"), TALK[3]],
    "tool call": [TALK[0], chat("assistant", "Let me see.", tool_calls=[call("weir", a=1)]), *TALK[2:]],
    "developer message": [chat("developer", "Be terse."), *TALK],
}


@pytest.mark.parametrize("what", WITHOUT)
def test_other_texts_that_are_left_out_are_named(what):
    template = f"{{% for m in messages %}}{WITHOUT[what]}{{{{ eos_token }}}}{{% endfor %}}"
    (note,) = notes([TALK if what != "question" else ROWS[what], ROWS[what]], template)
    count, rows = (2, "rows") if what == "question" else (1, "row")
    assert note.startswith(f"{count} {rows} of which the chat template leaves out the {what} (row {3 - count}: ")
    assert "chat_template_path" in note


def test_tools_and_options_that_a_template_does_not_read_are_named():
    row = {"messages": TALK, "tools": [tool("weir")], "chat_template_kwargs": {"enable_thinking": False, "mood": "x"}}
    said = notes([{"messages": TALK}, row], PLAIN_TEMPLATE)
    assert said[0].startswith("1 row of which the chat template leaves out the tools (row 2: 'weir')")
    assert said[1].startswith("1 row with chat_template_kwargs that the chat template does not read (row 2: 'enable_th")
    assert notes([{**row, "chat_template_kwargs": {"mood": "x"}}], FULL_TEMPLATE) == []


def test_a_text_that_occurs_only_as_another_one_is_left_out():
    once = "{% for m in messages %}{% if not loop.last %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
    with pytest.raises(BallastError, match=r"train: row 1: the chat template leaves out a whole message .*'a'"):
        prepared([[chat("user", "a"), chat("assistant", "a")]], once)


def test_an_answer_that_is_gone_is_refused_by_row():
    gone = "{% for m in messages %}{% if 'BAD' not in m.content %}{{ m.content }}{% endif %}{{ eos_token }}{% endfor %}"
    bad = [chat("user", "q"), chat("assistant", "BAD")]
    with pytest.raises(BallastError, match=r"^train: row 2: .*whole message of the assistant, 'BAD', so nothing of it"):
        prepared([TALK, bad], gone)
    marked = gone.replace("{{ m.content }}", "{% generation %}{{ m.content }}{% endgeneration %}")
    with pytest.raises(BallastError, match=r"^train: row 3: .*'BAD'"):
        prepared([TALK, [chat("user", "no answer")], bad + TALK], marked, assistant_only_loss=True)
    # Of a prompt's history nothing is trained: it is counted.
    rows = [{"prompt": [*bad, chat("user", "q2")], "completion": [chat("assistant", "fine")]}]
    (note,) = notes(rows, gone)
    assert note.startswith("1 row of which the chat template leaves out the answer (row 1: 'BAD')")
    rows = [{"prompt": [chat("user", "q2")], "completion": bad[1:]}]
    with pytest.raises(BallastError, match=r"row 1: .*'BAD'"):
        prepared(rows, gone)


def test_calls_that_no_template_writes_are_refused():
    row = [chat("user", "Level?"), chat("assistant", "", tool_calls=[call("weir", a="b")]), chat("assistant", "Ho")]
    with pytest.raises(BallastError, match=r"row 1: the chat template leaves out a whole message .*'weir'"):
        prepared([row], trl_template("llama3"))


# -- the end of an answer --


def test_an_answer_without_an_end_token_is_reported():
    endless = PLAIN_TEMPLATE.replace("{{ eos_token }}", "")
    said = prepared([TALK] * 3, endless).report.notes
    assert said[0].startswith("3 rows whose answer ends without an end token (row 1: ")
    assert "not learn to stop" in said[0]
    assert not any("end token" in note for note in prepared([TALK], PLAIN_TEMPLATE).report.notes)
    assert not any("end token" in note for note in prepared([TALK[:3]], endless).report.notes), "no answer at the end"


def test_an_answer_with_another_end_token_is_reported():
    tok = wide_tokenizer(PLAIN_TEMPLATE.replace("{{ eos_token }}", "<end_of_turn>"))
    tok.add_tokens(["<end_of_turn>"])
    rows = load_rows([{"messages": TALK}])
    (note, _) = prepare(rows, tok, PrepareOptions()).report.notes
    assert note.startswith(
        "1 row whose answer ends with another token than the tokenizer's end token (row 1: '<end_of_"
    )
    assert "set eos_token to it" in note
    assert len(prepare(rows, tok, PrepareOptions(eos_token="<end_of_turn>")).report.notes) == 1


# -- lists of content --


def test_text_parts_are_one_text():
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo."}]
    rows = [
        {"prompt": [chat("user", [{"type": "text", "text": "Hi"}])], "completion": [chat("assistant", parts)]},
        {"prompt": [chat("user", "Hi")], "completion": [chat("assistant", "Hello.")]},
    ]
    for template in (PLAIN_TEMPLATE, trl_template("qwen2_5"), trl_template("llama3_1")):
        made = prepared(rows, template)
        assert made.dataset[0] == made.dataset[1]


PARTS = {
    "image": {"type": "image"},
    "input_audio": {"type": "input_audio", "input_audio": {}},
    "none": {"text": "a"},
}


@pytest.mark.parametrize("name", PARTS)
def test_other_parts_are_refused_by_row(name):
    rows = [TALK, [chat("user", [{"type": "text", "text": "a"}, PARTS[name]]), chat("assistant", "b")]]
    kind = PARTS[name].get("type")
    with pytest.raises(
        BallastError, match=rf"row 2: 'messages': a message's 'content' has a part that is {kind!r}, not"
    ):
        load_rows([{"messages": messages} for messages in rows])
    with pytest.raises(BallastError, match=r"row 1: .*'text' is a number, not text"):
        load_rows([{"messages": [chat("user", [{"type": "text", "text": 3}])]}])


# -- template options --


def test_options_in_some_rows_only_are_no_error():
    rows = [{"messages": TALK}, {"messages": TALK, "chat_template_kwargs": {"mood": "calm"}}]
    texts = trained_text(prepared(rows, FULL_TEMPLATE), wide_tokenizer())
    assert ["[mood calm]" in text for text in texts] == [False, True]


BAD = {
    "tools": ({"tools": {"name": "x"}}, "'tools' is an object, not a list of tools"),
    "text": ({"tools": "x"}, "'tools' is text, but no JSON"),
    "options": ({"chat_template_kwargs": "x"}, "'chat_template_kwargs' is text, not an object"),
    "ours": ({"chat_template_kwargs": {"tokenize": False}}, "'chat_template_kwargs' may not set 'tokenize'"),
}


@pytest.mark.parametrize("name", BAD)
def test_options_that_cannot_be_used_are_refused_by_row(name):
    columns, message = BAD[name]
    with pytest.raises(BallastError, match=f"row 2: {message}"):
        load_rows([{"messages": TALK}, {"messages": TALK, **columns}])


# -- whose tokens are trained --


def test_messages_say_once_whose_tokens_are_trained():
    rows = [[chat("system", "be"), *TALK], TALK]
    (note,) = prepared(rows, PLAIN_TEMPLATE).report.notes
    texts = {
        role: sum(len(m["content"]) for row in rows for m in row if m["role"] == role) for role in ("system", "user")
    }
    answers = sum(len(m["content"]) for row in rows for m in row if m["role"] == "assistant")
    total = sum(map(len, prepared(rows, PLAIN_TEMPLATE).dataset["input_ids"]))
    rest = total - answers - sum(texts.values())
    assert note.startswith(
        f"all messages are trained: of {total} tokens {answers} are the assistant's (system {texts['system']}, user "
        f"{texts['user']}, template {rest})"
    )
    assert "assistant_only_loss=True" in note
    assert "prompt and completion" in note


def test_nothing_is_said_where_answers_alone_are_trained():
    marked = PLAIN_TEMPLATE.replace(
        "{{ message['content'] }}{{ eos_token }}",
        "{% generation %}{{ message['content'] }}{{ eos_token }}{% endgeneration %}",
    )
    assert prepared([TALK], marked, assistant_only_loss=True).report.notes == ()
    rows = [{"prompt": TALK[:1], "completion": TALK[1:2]}]
    assert prepared(rows, PLAIN_TEMPLATE).report.notes == ()


def test_answers_outside_the_generation_markers_are_counted():
    last = CHAT_TEMPLATE.replace(
        "{% if message['role'] == 'assistant' %}", "{% if loop.last and message['role'] == 'assistant' %}"
    )
    said = notes([TALK[:2], TALK], last, assistant_only_loss=True)
    wanted = "1 row with an answer that the chat template does not mark as the assistant's (row 2: 'One"
    assert [note.startswith(wanted) for note in said] == [False, True]
    assert notes([TALK], CHAT_TEMPLATE, assistant_only_loss=True) == []


def test_rows_of_text_among_chats_have_no_answer_to_mask():
    rows = [{"prompt": TALK[:1], "completion": TALK[1:2]}, {"prompt": "a", "completion": "b"}]
    report = prepared(rows, CHAT_TEMPLATE, assistant_only_loss=True).report
    assert (report.rows_out, report.dropped_no_trained_token) == (1, 1)


def test_rows_keep_their_numbers_where_others_are_left_out():
    marked = PLAIN_TEMPLATE.replace(
        "{% if message['role'] == 'assistant' %}{{ message['content'] }}",
        "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'].split('</think>')[-1] }}",
    ).replace("{{ eos_token }}", "{{ eos_token }}{% endgeneration %}")
    rows = [[chat("user", "no answer")], TALK, [chat("user", "q"), chat("assistant", THOUGHT)]]
    (note,) = notes(rows, marked, assistant_only_loss=True)
    assert "(row 3: 'first I add')" in note
