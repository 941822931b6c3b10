"""One prompt is the same tokens wherever it is used: trained on, sampled from, measured, rewarded."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

import pytest
from datasets import Dataset

from ballast.data import PrepareOptions, load_rows, prepare
from ballast.data.prompts import left_out_of_prompts
from ballast.errors import BallastError
from ballast.evaluation import Task, evaluate, generation
from ballast.evaluation.likelihood import completion_sequences
from ballast.groups import GroupOptions, GroupRows
from ballast.groups.read import read_file
from ballast.rl import Prompts, RLOptions, reward_verifier
from data_rows import FULL_TEMPLATE, call, chat, tool, wide_tokenizer
from tiny import tiny_model

ANSWER = [chat("assistant", "four")]
ASK = [chat("user", "2+2?")]
CALLS = [
    [*ASK, chat("assistant", "", tool_calls=[made]), chat("tool", "4")] for made in (call("sum", a=2), call("add", b=2))
]
# The second row differs in every column, so that a table would give each the other's keys.
ROWS = {
    "text": [{"prompt": "2+2? ", "completion": "four"}, {"prompt": "a ", "completion": "b"}],
    "messages": [{"prompt": ASK, "completion": ANSWER}] * 2,
    "system prompt": [{"prompt": [chat("system", "Be terse."), *ASK], "completion": ANSWER}] * 2,
    "tools": [
        {"prompt": ASK, "completion": ANSWER, "tools": [tool("sum", a={"type": "integer"})]},
        {"prompt": ASK, "completion": ANSWER, "tools": [tool("weir", station={"enum": ["n", 1]})]},
    ],
    "plain tools": [
        {"prompt": ASK, "completion": ANSWER, "tools": [tool("sum", a={"type": "integer"})]},
        {"prompt": ASK, "completion": ANSWER, "tools": [tool("weir", b={"type": "string"})]},
    ],
    "tools as text": [{"prompt": ASK, "completion": ANSWER, "tools": json.dumps([tool("sum", a={"x": 1})])}] * 2,
    "options": [
        {"prompt": ASK, "completion": ANSWER, "chat_template_kwargs": {"mood": "calm", "enable_thinking": False}},
        {"prompt": ASK, "completion": ANSWER},
    ],
    "calls": [{"prompt": prompt, "completion": ANSWER} for prompt in CALLS],
    "parts": [{"prompt": [chat("user", [{"type": "text", "text": "2+2?"}])], "completion": ANSWER}] * 2,
}
MARKED = FULL_TEMPLATE.replace("[tools", "[TOOLS")
WITHOUT_SYSTEM = FULL_TEMPLATE.replace("{{ m.content }}", "{% if m.role != 'system' %}{{ m.content }}{% endif %}")


@pytest.fixture(params=["full", "qwen3", "path"])
def setting(request, tmp_path):
    """A tokenizer, and options of training that may give it another template."""
    if request.param == "path":
        (tmp_path / "other.jinja").write_text(MARKED)
        return wide_tokenizer(), PrepareOptions(max_length=None, chat_template_path=str(tmp_path / "other.jinja"))
    qwen = (resources.files("trl") / "chat_templates" / "qwen3.jinja").read_text()
    return wide_tokenizer(qwen if request.param == "qwen3" else FULL_TEMPLATE), PrepareOptions(max_length=None)


def trained_prompts(rows, tokenizer, options):
    made = prepare(load_rows(rows), tokenizer, options).dataset
    starts = [next(t for t, label in enumerate(labels) if label != -100) for labels in made["labels"]]
    return [tuple(ids[:start]) for ids, start in zip(made["input_ids"], starts, strict=True)]


def as_trained(tokenizer, options):
    from ballast.data.trl import training_tokenizer

    return training_tokenizer(tokenizer, options)


@pytest.mark.parametrize("kind", ROWS)
def test_prompts_are_the_same_tokens_everywhere(kind, setting):
    rows, (tokenizer, options) = [{**row, "answer": "four"} for row in ROWS[kind]], setting
    trained = trained_prompts(rows, tokenizer, options)
    assert len(set(trained)) == len({json.dumps({**row, "completion": ""}) for row in rows})
    ready, model = as_trained(tokenizer, options), tiny_model(vocab=len(tokenizer), context=2048)
    loaded = load_rows(rows)
    assert generation.encode_prompts(model, ready, list(loaded), 1) == trained
    groups = GroupRows(loaded, tokenizer, GroupOptions(verifier="exact", max_new_tokens=1), options)
    assert [groups.prompt_ids(row) for row in range(2)] == trained
    assert [member.ids[: member.start] for row in range(2) for member in groups.fixed(row)] == trained
    reward = reward_verifier("exact", "verifier")
    asked = Prompts.of(loaded, ready, RLOptions(verifier="exact", prompts=2, group=2, steps=1), reward)
    assert list(asked.ids) == trained


@pytest.mark.parametrize("kind", ROWS)
def test_demonstrations_are_measured_on_the_tokens_that_are_trained(kind, setting):
    tokenizer, options = setting
    trained = prepare(load_rows(ROWS[kind]), tokenizer, options).dataset["input_ids"]
    ready, model = as_trained(tokenizer, options), tiny_model(vocab=len(tokenizer), context=2048)
    sequences = completion_sequences(model, ready, list(load_rows(ROWS[kind])))
    assert [list(one.ids) for one in sequences] == list(trained)


@pytest.mark.parametrize("kind", ["messages", "system prompt"])
def test_prompts_without_tools_and_options_are_what_the_tokenizer_makes_of_them(kind):
    tokenizer = wide_tokenizer()
    for row in ROWS[kind]:
        theirs = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=True)["input_ids"]
        assert (
            generation.encode_prompt(tokenizer, row)
            == generation.encode_prompt(tokenizer, row["prompt"])
            == tuple(theirs)
        )
    assert generation.encode_prompt(tokenizer, "2+2? ") == tuple(tokenizer("2+2? ")["input_ids"])


def test_text_keeps_the_special_tokens_of_its_tokenizer():
    from tiny import char_tokenizer

    tokenizer = char_tokenizer(chat_template=FULL_TEMPLATE, add_bos=True)
    for rows in ([{"prompt": "ab", "completion": "c"}], [{"prompt": ASK, "completion": ANSWER}]):
        assert trained_prompts(rows, tokenizer, PrepareOptions()) == [generation.encode_prompt(tokenizer, rows[0])]
    assert generation.encode_prompt(tokenizer, "ab")[0] == tokenizer.bos_token_id


@pytest.mark.parametrize("given", [list, Dataset.from_list], ids=["rows", "data set"])
def test_a_task_asks_with_the_tools_and_options_of_its_rows(given, monkeypatch):
    tokenizer = wide_tokenizer()
    rows = [{**row, "answer": "four", "chat_template_kwargs": None} for row in ROWS["plain tools"]]
    rows[1]["chat_template_kwargs"] = {"mood": "calm"}
    asked, write = [], generation._write

    def watched(batch):
        asked.extend(batch.prompts)
        return write(batch)

    monkeypatch.setattr(generation, "_write", watched)
    model = tiny_model(vocab=len(tokenizer), context=2048)
    task = {"name": "sums", "data": given(rows), "verifier": "exact", "max_new_tokens": 2, "entropy": True}
    (result,) = evaluate(model, tokenizer, [Task(**task)])
    assert sorted(asked) == sorted(trained_prompts(rows, tokenizer, PrepareOptions()))
    assert "entropy" in result.metrics


def test_a_prompt_that_cannot_be_written_names_its_row():
    model, tokenizer = tiny_model(context=2048), wide_tokenizer("{{ raise_exception('no system') }}")
    rows = [{"prompt": "a"}, {"prompt": ASK}]
    with pytest.raises(BallastError, match=r"^row 2: cannot be tokenised: no system$"):
        generation.encode_prompts(model, tokenizer, rows, 1)
    for row in ({"prompt": None}, {"prompt": []}, {"question": "a"}):
        with pytest.raises(BallastError, match=r"^row 1: 'prompt' is (missing|a list), not text or a list of"):
            generation.encode_prompts(model, wide_tokenizer(), [row], 1)
    with pytest.raises(BallastError, match=r"^row 1: 'tools' is text, but no JSON$"):
        generation.encode_prompts(model, wide_tokenizer(), [{"prompt": ASK, "tools": "x"}], 1)
    with pytest.raises(BallastError, match=r"^row 1: .*a part that is 'image', not 'text'"):
        generation.encode_prompts(model, wide_tokenizer(), [{"prompt": [chat("user", [{"type": "image"}])]}], 1)


# -- groups --


def test_given_answers_are_judged_as_text_whatever_their_parts():
    parts = [chat("assistant", [{"type": "text", "text": "fo"}, {"type": "text", "text": "ur"}])]
    rows = [{"prompt": ASK, "completion": ANSWER, "teachers": [parts, ANSWER], "answer": "four"}]
    options = GroupOptions(verifier="exact", own=0)
    groups = GroupRows(load_rows(rows), wide_tokenizer(), options, PrepareOptions())
    assert [(one.origin, one.text, one.reward) for one in groups.fixed(0)] == [
        ("expert", "four", 1.0),
        ("teacher", "four", 1.0),
        ("teacher", "four", 1.0),
    ]
    picture = [{**rows[0], "teachers": [[chat("assistant", [{"type": "image"}])]]}]
    with pytest.raises(BallastError, match=r"row 1: 'teachers': a message's 'content' has a part that is 'image'"):
        GroupRows(load_rows(picture), wide_tokenizer(), options, PrepareOptions())


def test_groups_say_what_templates_leave_out_of_given_answers_by_their_own_row():
    template = FULL_TEMPLATE.replace("[{{ m.reasoning_content }}]", "")
    rows = [{"prompt": ASK, "completion": ANSWER, "teachers": [ANSWER, ANSWER], "answer": "four"}] * 2
    rows += [{**rows[0], "completion": [chat("assistant", "four", reasoning_content="two and two")]}]
    options = GroupOptions(verifier="exact", own=0)
    lines = GroupRows(load_rows(rows), wide_tokenizer(template), options, PrepareOptions()).lines()
    assert "groups: 1 row of which the chat template leaves out the reasoning (row 3: 'two and two')" in lines[-1]


def test_a_file_of_groups_keeps_tools_apart(tmp_path):
    row = {"prompt": ASK, "origin": "expert", "response": ANSWER, "reward": 1.0}
    rows = [{**row, "tools": [tool("sum")]}, {**row, "tools": [tool("weir")]}, {**row, "tools": [tool("sum")]}]
    (tmp_path / "groups.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    tokenizer = wide_tokenizer()
    groups = read_file(tmp_path / "groups.jsonl", tokenizer)
    assert [len(group.members) for group in groups] == [2, 1]
    assert [group.members[0].ids[: group.members[0].start] for group in groups] == [
        generation.encode_prompt(tokenizer, one) for one in rows[:2]
    ]


# -- a run --


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tokenizer = wide_tokenizer()
    tiny_model(vocab=len(tokenizer), context=512).save_pretrained("start")
    tokenizer.save_pretrained("start")
    Path("other.jinja").write_text(MARKED)
    rows = [{**row, "answer": "four"} for row in ROWS["tools"]]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


@pytest.mark.parametrize("command", ["train", "evaluate", "rl", "compare"])
def test_a_run_measures_every_model_under_the_template_it_trains_with(folder, monkeypatch, command):
    from typer.testing import CliRunner

    from ballast.cli import app

    asked, generate = [], generation.generate

    def watched(model, tokenizer, prompts, *rest, **named):
        asked.append([tokenizer.decode(generation.encode_prompt(tokenizer, prompt)) for prompt in prompts])
        return generate(model, tokenizer, prompts, *rest, **named)

    monkeypatch.setattr("ballast.evaluation.kinds.generate", watched)
    settings = {
        "train": ("objective=sft", "training.max_steps=1", "training.report_to=none"),
        "evaluate": (),
        "rl": ("rl={verifier: exact, steps: 1, prompts: 2, group: 2, max_new_tokens: 2}",),
        "compare": (
            "compare={objectives: [sft], rates: [1e-3], seeds: 1, budget: {steps: 1}, then: {rl: {verifier: exact, "
            "steps: 1, prompts: 2, group: 2, max_new_tokens: 2}}}",
        ),
    }[command]
    given = ("model=start", "data.train=rows.jsonl", "output=out", "training.chat_template_path=other.jinja")
    task = "evaluation.tasks=[{name: sums, data: rows.jsonl, verifier: exact, max_new_tokens: 2}]"
    alone = ("--jobs", "1") if command == "compare" else ()
    done = CliRunner().invoke(app, [command, *alone, *given, task, *settings])
    assert done.exit_code == 0, (done.output, done.exception)
    # Of a comparison: the base model, the trained one, and both after RL.
    assert len(asked) == {"evaluate": 1, "compare": 4}.get(command, 2)
    wanted = [f"[TOOLS {json.dumps(row['tools'])}]<user>2+2?<assistant>" for row in ROWS["tools"]]
    assert asked == [wanted] * len(asked)


SETTINGS = {
    "train": ("objective=sft", "training.max_steps=1", "training.report_to=none", "evaluation.tasks=[{task}]"),
    "evaluate": ("evaluation.tasks=[{task}]",),
    "rl": ("rl={{verifier: exact, steps: 1, prompts: 2, group: 2, max_new_tokens: 2}}",),
    "sample": ("groups={{verifier: exact, own: 2, expert: 0, max_new_tokens: 2, file: groups}}",),
    "compare": (
        "compare={{objectives: [sft], rates: [1e-3], seeds: 1, budget: {{steps: 1}}}}",
        "evaluation.tasks=[{task}]",
        "training.report_to=none",
    ),
}


@pytest.mark.parametrize("command", SETTINGS)
def test_commands_say_what_a_template_leaves_out_of_prompts(folder, command):
    from typer.testing import CliRunner

    from ballast.cli import app

    rows = [{**row, "answer": "four"} for row in ROWS["messages"]]
    rows[1] = {**rows[1], "prompt": [chat("system", "Be terse."), *ASK]}
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("other.jinja").write_text(WITHOUT_SYSTEM)
    task = "{name: sums, data: rows.jsonl, verifier: exact, max_new_tokens: 2}"
    given = ("model=start", "data.train=rows.jsonl", "training.chat_template_path=other.jinja", "output=out")
    given = given[:3] if command == "sample" else given
    done = CliRunner().invoke(app, [command, *given, *(setting.format(task=task) for setting in SETTINGS[command])])
    assert done.exit_code == 0, (done.output, done.exception)
    said = "1 row of which the chat template leaves out the system prompt (row 2: 'Be terse.'): the model answers"
    assert said in " ".join(done.stdout.split())


def test_what_prompts_may_leave_out_without_a_word():
    rows = [{"prompt": "2+2? "}, *ROWS["messages"], {"prompt": [*ASK, *ANSWER, *ASK]}, *ROWS["system prompt"]]
    assert left_out_of_prompts(rows, wide_tokenizer()) == ()
    (line,) = left_out_of_prompts(rows, wide_tokenizer(WITHOUT_SYSTEM))
    assert line.startswith("2 rows of which the chat template leaves out the system prompt (row 5: ")
