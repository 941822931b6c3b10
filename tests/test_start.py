"""From a model and a file to a recipe: what is found in rows, how they are split, what fits into the time."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import typer
from typer.testing import CliRunner

from ballast.advise.regime import ABOVE, BELOW, EQUAL, UNKNOWN
from ballast.cli import app, start
from ballast.compare import COMPARE_CHECKS
from ballast.config.recipe import ModelSection, load_recipe
from ballast.errors import BallastError
from ballast.lab import split as lab_split
from ballast.objectives import list_objectives
from ballast.start import plan as planning
from ballast.start import probe as probing
from ballast.start.answers import choose, judged
from ballast.start.columns import PAIRS, recognise
from ballast.start.end import end_token
from ballast.start.plan import SIZES, Room, Size, plan
from ballast.start.probe import Probe, gain, quantile
from ballast.start.recipe import PROMPTS, RECIPE, TEST, TRAIN, TRAINING, VALIDATION, Written, text
from ballast.start.rows import demonstrations, split
from ballast.start.run import ASKED, Request, _put, _rows, is_made
from tiny import CHAT_TEMPLATE, char_tokenizer, tiny_model

PROBE = Probe(
    accuracy=0.5,
    items=32,
    max_new_tokens=64,
    cut_off=0.0,
    answer_seconds=0.08,
    score_seconds=0.02,
    step_seconds=1.0,
    load_seconds=1.0,
    memory=10**9,
    weights=10**6,
)
ROOM = Room(steps=1000, validation=1000, test=1000)


def cli(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


# What is found in rows.


@pytest.mark.parametrize(("prompt", "answer"), PAIRS)
@pytest.mark.parametrize("write", [str, str.upper, str.title])
def test_usual_names_of_columns_are_known_in_any_case(prompt, answer, write):
    found = recognise(["id", write(prompt), write(answer)], "rows.jsonl")
    named = found.columns or {"prompt": "prompt", "completion": "completion"}
    assert named == {"prompt": write(prompt), "completion": write(answer)}


def test_chats_and_alpaca_are_read_as_data_columns_reads_them():
    assert recognise(["messages", "prompt", "answer"], "x").columns is None
    assert recognise(["conversations"], "x").columns == "sharegpt"
    assert recognise(["instruction", "input", "output"], "x").columns == "alpaca"
    assert recognise(["problem", "solution", "answer"], "x").columns == {"prompt": "problem", "completion": "solution"}


@pytest.mark.parametrize(
    ("rows", "texts", "verifier", "answers"),
    [
        ([{}] * 2, ["5 - 2 = 3 left.\n#### 3", "So #### 1,200"], "last-number", ["3", "1200"]),
        ([{"answer": "7"}], ["It is 7."], "last-number", ["7"]),
        ([{}], [r"Thus $\boxed{\frac{1}{2}}$ is it."], "math", [r"\frac{1}{2}"]),
        ([{}], ["Paris"], "exact", ["Paris"]),
        (
            [{}],
            ["Both of them together, carried out by hand as the book asks, come to 12."],
            "last-number",
            ["12"],
        ),
        ([{"answer": "B"}], ["B"], "exact", ["B"]),
    ],
)
def test_the_verifier_that_finds_demonstrations_right_is_chosen(rows, texts, verifier, answers):
    found = choose(rows, texts)
    assert (found.judge.verifier, found.share) == (verifier, 1)
    assert judged(found.judge, rows, texts) == answers


def test_rows_that_nothing_can_judge_have_no_verifier_and_wrong_ones_are_left_out():
    prose = "In 1945 the war ended, and with it an age; what came then is told in the next chapter."
    assert choose([{}] * 3, [prose] * 3) is None
    rows = [{"answer": "7"}, {"answer": "8"}, {"answer": None}, {}]
    found = choose(rows[:2] * 2, ["It is 7.", "It is 7.", "It is 7.", "It is 8."])
    assert (found.judge.verifier, found.share) == ("last-number", 0.75)
    assert judged(found.judge, rows, ["It is 7."] * 4) == ["7", None, None, None]


def test_the_verifier_is_chosen_on_rows_from_everywhere():
    prose = "The war ended, and with it an age; what came then is told in the next chapter, and the one after."
    assert choose([{}] * 2000, ["It is 7."] * 100 + [prose] * 1900) is None
    assert choose([{}] * 2000, ["It is 7.", prose, "It is 7.", "It is 7."] * 500).share == pytest.approx(0.75, abs=0.15)


def test_rows_become_chats_where_there_is_a_template_and_keep_a_line_apart_where_there_is_none():
    rows = [{"prompt": "Ask? ", "completion": " Reply."}]
    (chat,) = demonstrations(rows, chat=True, as_written=False)
    assert chat["prompt"] == [{"role": "user", "content": "Ask?"}]
    assert chat["completion"] == [{"role": "assistant", "content": "Reply."}]
    assert demonstrations(rows, chat=False, as_written=False) == [{"prompt": "Ask?\n", "completion": "Reply."}]
    assert demonstrations(rows, chat=False, as_written=True) == rows
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    (made,) = demonstrations([{"messages": turns, "tools": "[]"}], chat=True, as_written=False)
    assert made == {"prompt": turns[:1], "completion": turns[1:], "tools": "[]"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": [{"role": "user", "content": "a"}]}, "row 1: its last message is not the assistant's"),
        ({"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]},
         "row 1: is a chat, and the tokenizer has no chat template"),
    ],
)  # fmt: skip
def test_rows_that_demonstrate_nothing_are_named(row, message):
    with pytest.raises(BallastError, match=message):
        demonstrations([row], chat=False, as_written=False)


def test_no_prompt_is_in_two_parts_and_the_order_of_the_rows_does_not_decide():
    rows = [{"prompt": f"{number % 150}", "completion": f"{number}"} for number in range(300)]
    parts = split(rows)
    prompts = [{row["prompt"] for row in part} for part in (parts.train, parts.validation, parts.test)]
    assert [len(one) for one in prompts] == [105, 15, 30]
    assert sum(map(len, prompts)) == len(set.union(*prompts)) == 150
    assert len(parts.train) == 2 * 105
    other = split(rows[::-1])
    assert {row["prompt"] for row in other.test} == prompts[2]
    assert [row for row in rows if row in parts.train] == parts.train


# What fits into the time.


@pytest.mark.parametrize("seconds", [0, 60, 600, 3600, 10**6])
def test_the_most_thorough_size_that_fits_is_taken(seconds):
    found = plan(["sft", "dft"], PROBE, seconds, lora=False, room=ROOM)
    place = next(n for n, size in enumerate(SIZES) if size == found.size)
    assert found.seconds <= seconds or place == len(SIZES) - 1
    if place:
        larger = plan(["sft", "dft"], PROBE, 10**9, lora=False, room=ROOM)
        assert larger.seconds > found.seconds
        assert planning._sized(["sft", "dft"], PROBE, SIZES[place - 1], False, ROOM).seconds > seconds


def test_the_cost_is_that_of_all_runs():
    found = planning._sized(["sft"], PROBE, Size(2, 1, 3, 10, 20, 30, 5), False, Room(8, 1000, 1000))
    run = planning.OVERHEAD + 2 * 1.0 + 8 * 1.0
    chosen = 20 * 0.08  # right or wrong is all that chooses
    tuning, reported, base = 2 * (run + chosen), 3 * (run + chosen + 70 * 0.1), 70 * 0.1
    assert found.seconds == pytest.approx(tuning + reported + base)
    assert (found.runs, found.disk) == (5, 3 * 10**6)
    single = planning._sized(["sft"], PROBE, Size(1, 1, 3, 10, 0, 30, 0), False, Room(8, 1000, 1000))
    assert (single.runs, single.seconds) == (3, pytest.approx(3 * (run + 3) + 3))
    side_by_side = planning._sized(["sft"], PROBE, Size(2, 1, 3, 10, 20, 30, 5), False, Room(8, 1000, 1000, jobs=2))
    assert side_by_side.seconds == pytest.approx(tuning / 2 + 2 * reported / 3 + base)
    few = planning._sized(["sft"], PROBE, Size(2, 1, 3, 10, 20, 30, 15), False, Room(8, 7, 12))
    assert (few.size.validation, few.size.items, few.size.sampled) == (7, 12, 12)


def test_every_regime_has_objectives_that_exist_sft_first():
    assert set(planning.WORTH) == {ABOVE, BELOW, EQUAL, UNKNOWN}
    names = {info.name for info in list_objectives()}
    for worth in planning.WORTH.values():
        assert worth[0][0] == "sft"
        assert {name for name, _ in worth} <= names


def test_a_limit_cuts_off_no_more_than_its_share():
    lengths = [*range(1, 101)]
    assert [quantile(lengths, share) for share in (0.95, 0.99, 1.0)] == [95, 99, 100]
    assert quantile([7], 0.95) == 7


@pytest.mark.parametrize("judge", [None, "last-number"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("lora", "more"), [(False, {}), (True, {"eos_token": "<eos>", "bf16": True})])
def test_every_recipe_passes_the_checks_of_compare(judge, size, lora, more, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = Path("out: put#")
    folder.mkdir()
    for number, name in enumerate((TRAIN, VALIDATION, TEST, PROMPTS), start=1):
        row = {"prompt": f"1+{number}=?", "completion": f"#{number + 1}", "answer": f"{number + 1}"}
        (folder / name).write_text(json.dumps(row) + "\n")
    made = planning._sized(["sft", "dft"], PROBE, size, lora, ROOM)
    written = text(
        Written(
            "ballast init",
            "lab",
            folder,
            "1 row",
            judge,
            "why",
            lora,
            {**TRAINING, **more},
            {"sft": "a", "dft": "b"},
            made,
            PROBE,
        )
    )
    (folder / RECIPE).write_text(written)
    recipe = load_recipe(folder / RECIPE, checks=COMPARE_CHECKS)
    assert recipe.compare.seeds == size.seeds
    assert recipe.compare.rates == made.rates
    assert recipe.data.train == (str(folder / TRAIN),)
    # What is commented out works as well.
    commented = [
        line for line in written.splitlines() if line.lstrip().startswith(("# then", "# rl", "#   ver", "#   ma"))
    ]
    commented += [line for line in written.splitlines() if line.startswith("#   data")]
    assert len(commented) == (0 if judge is None else 5)
    for line in commented:
        written = written.replace(line, line.replace("# ", "", 1))
    (folder / RECIPE).write_text(written)
    recipe = load_recipe(folder / RECIPE, checks=COMPARE_CHECKS)
    assert (recipe.rl is None) == (judge is None)


def test_numbers_as_answers_are_refused_with_the_columns_that_read_them(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"question": f"{n}+1", "answer": n + 1}) + "\n" for n in range(80)))
    with pytest.raises(BallastError, match=r"line 1: 'completion' is a number, .* columns={'completion': '{NAME}'}"):
        _rows(Request("lab", str(file)), False, print)
    parts, _, judge = _rows(Request("lab", str(file), {"prompt": "question", "completion": "{answer}"}), False, print)
    assert judge.judge.said == "the column answer"
    assert {row["answer"] for row in parts.test} == {row["completion"] for row in parts.test}


def test_rows_set_apart_that_nothing_can_judge_are_refused(tmp_path, monkeypatch):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"{n}+1", "completion": f"{n + 1}"}) + "\n" for n in range(80)))
    monkeypatch.setattr("ballast.start.run._held", lambda *_: [])
    with pytest.raises(BallastError, match="of the rows set apart none can be judged"):
        _rows(Request("lab", str(file)), False, print)


@pytest.mark.parametrize(
    ("plain", "half", "ratio"),
    [
        ([9, 2.4, 3], [9, 1.5, 1.2], 2),
        ([9, 2.4, 2.4], [9, 2, 2], pytest.approx(1.2)),
        ([9, 2.3, 2.4], [9, 2, 2], None),
        ([9, 2, 2], [1, 4, 4], None),
        ([9, 2, 2], [], None),
    ],
)
def test_bfloat16_is_taken_where_a_step_is_a_fifth_faster(plain, half, ratio):
    assert gain(plain, half) == ratio


@pytest.mark.parametrize(("bf16", "line"), [(None, None), (2.24, "  bf16: true  # a step is 2.2 times as fast here")])
def test_the_recipe_says_why_it_computes_in_bfloat16(bf16, line, tmp_path):
    made = planning._sized(["sft"], PROBE, SIZES[-1], False, ROOM)
    training = {**TRAINING, **({} if bf16 is None else {"bf16": True})}
    probe = replace(PROBE, bf16=bf16)
    written = text(
        Written("ballast init", "lab", tmp_path, "1 row", None, "why", False, training, {"sft": "a"}, made, probe)
    )
    found = [one for one in written.splitlines() if "bf16" in one]
    assert found == ([] if line is None else [f"{line}; the weights stay float32"])


# What ends an answer.


def without_end(folder, *, generation=None, config=None):
    model, tokenizer = tiny_model(vocab=len(char_tokenizer())), char_tokenizer()
    model.config.eos_token_id, model.generation_config.eos_token_id = config, generation
    tokenizer.eos_token = None
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return ModelSection(path=str(folder)), tokenizer


def test_an_end_token_is_found_named_or_missed_at_once(tmp_path):
    said = []
    section, tokenizer = without_end(tmp_path / "a", generation=[5, 2], config=7)
    assert end_token(section, tokenizer, None, said.append) == {"eos_token": tokenizer.convert_ids_to_tokens(5)}
    assert said == ["end token:  , by the model's configuration; the tokenizer names none"]
    assert end_token(section, tokenizer, "<eos>", said.append) == {"eos_token": "<eos>"}
    section, tokenizer = without_end(tmp_path / "b", config=2)
    assert end_token(section, tokenizer, None, said.append) == {"eos_token": "<eos>"}
    section, tokenizer = without_end(tmp_path / "c")
    with pytest.raises(BallastError, match=r"no answer would be taught to end; .* --eos-token TOKEN"):
        end_token(section, tokenizer, None, said.append)
    with pytest.raises(BallastError, match="--eos-token: '<nope>' is not in the tokenizer's vocabulary"):
        end_token(section, tokenizer, "<nope>", said.append)
    assert end_token(section, char_tokenizer(), None, said.append) == {}


# The commands.


@pytest.fixture
def small(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(planning, "SIZES", (Size(1, 1, 2, 2, 0, 8, 0),))
    rows = [{"Question": row["prompt"], "Answer": row["completion"]} for row in lab_split("train")[:80]]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_init_writes_a_recipe_and_rows_that_belong_together(small):
    done = cli("init", "lab", "rows.jsonl")
    assert done.exit_code == 0, done.output
    said = done.stdout.replace("\n", " ")
    for words in (
        "80; Question asks and Answer answers; as plain text",
        "verifier last-number on the number that an answer ends with: finds 100%",
        "56 to train on, 8 to choose by, 16 to report",
        "1.2 M parameters; all weights are trained",
        "next: ballast compare runs/try-rows/recipe.yaml",
    ):
        assert words in said, said
    folder = Path("runs/try-rows")
    assert {one.name for one in folder.iterdir()} == {RECIPE, TRAIN, VALIDATION, TEST, PROMPTS, ASKED}
    asked = [json.loads(line) for line in (folder / PROMPTS).read_text().splitlines()]
    assert (len(asked), set(asked[0])) == (56, {"prompt", "answer"})
    assert {one.name for one in Path("runs").iterdir()} == {"try-rows"}
    tests = [json.loads(line) for line in (folder / TEST).read_text().splitlines()]
    assert all(row["answer"] == row["completion"].rpartition("#")[2] for row in tests)
    load_recipe(folder / RECIPE, checks=COMPARE_CHECKS)
    again = cli("init", "lab", "rows.jsonl")
    assert (again.exit_code, "has this recipe already" in again.stderr) == (2, True)


def test_try_ends_with_a_decision_and_goes_on_where_it_was_stopped(small):
    done = cli("try", "lab", "rows.jsonl", "--yes", "--output", "out")
    assert done.exit_code == 0, done.output
    assert "After fine-tuning," in done.stdout
    assert Path("out/runs/report.html").is_file()
    command = next(line for line in done.stdout.splitlines() if line.startswith("train it: ballast "))
    words = shlex.split(command.removeprefix("train it: ballast "))
    trained = cli(*words, "training.max_steps=2", "evaluation.tasks=[]")
    assert trained.exit_code == 0, trained.output
    assert Path("out/runs-final/model.safetensors").is_file()
    taken = next(line for line in done.stdout.splitlines() if line.startswith("or take a run as it is: "))
    assert Path(taken.rpartition(" ")[2], "model.safetensors").is_file()
    before = Path("out/runs/summary.json").read_bytes()
    again = cli("try", "lab", "rows.jsonl", "--yes", "--output", "out")
    assert again.exit_code == 0
    assert "out/recipe.yaml: goes on" in again.stdout
    assert Path("out/runs/summary.json").read_bytes() == before


def test_scoring_all_rows_is_part_of_the_cost():
    free, dear = (plan(["sft"], PROBE, 1e9, lora=False, room=replace(ROOM, scoring=one)) for one in (0.0, 1000.0))
    assert dear.seconds == free.seconds + 1000
    assert plan(["sft"], PROBE, free.seconds, lora=False, room=ROOM).size == free.size
    assert plan(["sft"], PROBE, free.seconds, lora=False, room=replace(ROOM, scoring=1000.0)).size != free.size


def test_who_said_no_is_asked_again_and_another_time_is_another_plan(small, monkeypatch):
    asked = []

    def confirm(*_, **__):
        asked.append(1)
        raise typer.Abort

    monkeypatch.setattr(start, "sys", SimpleNamespace(stdin=SimpleNamespace(isatty=lambda: True)))
    monkeypatch.setattr(typer, "confirm", confirm)
    for count in (1, 2):
        assert cli("try", "lab", "rows.jsonl", "--output", "o k", "--minutes", "3").exit_code == 1
        assert len(asked) == count
        assert {one.name for one in Path("o k").iterdir()} == {RECIPE, TRAIN, VALIDATION, TEST, PROMPTS, ASKED}
    lines = Path("o k", RECIPE).read_text().splitlines()
    assert lines[0].startswith("# Written by `ballast try lab rows.jsonl --minutes 3 --output 'o k'`.")
    assert lines[1].startswith("#   ballast compare 'o k/recipe.yaml' ")
    other = cli("try", "lab", "rows.jsonl", "--yes", "--output", "o k", "--minutes", "5")
    assert (other.exit_code, len(other.stderr.splitlines())) == (2, 1)
    assert "--minutes: 5: would be ignored: o k was planned for 3 min" in other.stderr


@pytest.mark.parametrize("output", [".", "../link", "../there", "../new"])
def test_an_empty_folder_is_filled_whatever_it_is(output, tmp_path, monkeypatch):
    for name in ("there", "made", "here"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    for name in (ASKED, RECIPE):
        (tmp_path / "made" / name).write_text(name)
    monkeypatch.chdir(tmp_path / "here")
    _put(tmp_path / "made", Path(output))
    assert {one.name for one in Path(output).iterdir()} == {ASKED, RECIPE}


def test_a_chat_model_is_asked_as_a_chat(small):
    tiny_model(vocab=len(char_tokenizer())).save_pretrained("chat")
    char_tokenizer(chat_template=CHAT_TEMPLATE).save_pretrained("chat")
    done = cli("init", "chat", "rows.jsonl", "--columns", "{prompt: Question, completion: Answer}")
    assert done.exit_code == 0, done.output
    row = json.loads(Path("runs/try-rows", TRAIN).read_text().splitlines()[0])
    assert [turn["role"] for turn in (*row["prompt"], *row["completion"])] == ["user", "assistant"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("lab", "none.jsonl"), "none.jsonl: no such file or folder"),
        (("nowhere/at/all", "rows.jsonl"), "nowhere/at/all: no such folder"),
        (("lab", "odd.jsonl"), "odd.jsonl: no prompt and answer among the columns (a, b)"),
        (("lab", "few.jsonl"), "few.jsonl: 10 different prompts are too few"),
        (("lab", "rows.jsonl", "--columns", "{prompt: Ask}"), "no column 'Ask'"),
        (("lab", "rows.jsonl", "--output", "full"), "--output: full: is not empty"),
        (("lab", "rows.jsonl", "--output", "other"), "--output: other: was made for another model or other data"),
        (("lab", "chats.jsonl"), "chats.jsonl: row 1: is a chat, and the tokenizer has no chat template"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(words, message, small):
    Path("odd.jsonl").write_text('{"a": 1, "b": 2}\n' * 100)
    Path("few.jsonl").write_text("".join(json.dumps({"prompt": f"{n}", "answer": "1"}) + "\n" for n in range(10)))
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    Path("chats.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    for folder, content in (("full", "no json"), ("other", json.dumps(Request("lab", "x").plain()))):
        Path(folder).mkdir()
        Path(folder, ASKED).write_text(content)
    before = sorted(Path().rglob("*"))
    done = cli("init", *words)
    assert (done.exit_code, len(done.stderr.splitlines())) == (2, 1), done.output
    assert message in done.stderr
    assert sorted(Path().rglob("*")) == before


def test_a_tokenizer_without_end_is_told_of_before_a_weight_is_read_and_the_advice_works(small, monkeypatch):
    without_end(Path("model"))
    with monkeypatch.context() as patched:
        patched.setattr("ballast.models.load_model", None)
        done = cli("init", "model", "rows.jsonl")
    assert (done.exit_code, len(done.stderr.splitlines())) == (2, 1)
    assert "--eos-token TOKEN" in done.stderr
    done = cli("init", "model", "rows.jsonl", "--eos-token", "<eos>")
    assert done.exit_code == 0, done.output
    written = Path("runs/try-rows", RECIPE).read_text()
    assert '  eos_token: "<eos>"  # ends an answer; the tokenizer names none' in written
    assert "--eos-token '<eos>'" in written.splitlines()[0]
    load_recipe(Path("runs/try-rows", RECIPE), checks=COMPARE_CHECKS)


def test_bfloat16_is_timed_with_the_adapter_that_trains(small, monkeypatch):
    monkeypatch.setattr(probing, "_may_gain", lambda *_: True)
    monkeypatch.setattr(probing, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(probing, "gain", lambda plain, half: 3.0 if len(plain) == len(half) == probing.STEPS else None)
    monkeypatch.setattr(planning, "LORA_ABOVE", 0)
    done = cli("init", "lab", "rows.jsonl")
    assert done.exit_code == 0, done.output
    assert "arithmetic in bfloat16 makes a step 3.0 times as fast here: it is taken" in done.stdout
    recipe = load_recipe("runs/try-rows/recipe.yaml", checks=COMPARE_CHECKS)
    assert recipe.training["bf16"] is True
    assert recipe.model.lora is not None


@pytest.mark.parametrize("adapter", [False, True])
def test_what_is_timed_as_bfloat16_is_computed_in_it(small, monkeypatch, adapter):
    # accelerate leaves a model that it has prepared before as it is, and so in float32.
    seen, train, linear = [], probing._train, torch.nn.Linear.forward

    def watched(*given):
        found = set()

        def forward(layer, states):
            found.add(torch.is_autocast_enabled("cpu"))
            return linear(layer, states)

        with monkeypatch.context() as patched:
            patched.setattr(torch.nn.Linear, "forward", forward)
            times = train(*given)
        seen.append(found)
        return times

    monkeypatch.setattr(probing, "_train", watched)
    monkeypatch.setattr(probing, "_may_gain", lambda *_: True)
    monkeypatch.setattr(probing, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(planning, "LORA_ABOVE", 0 if adapter else 10**12)
    done = cli("init", "lab", "rows.jsonl")
    assert done.exit_code == 0, done.output
    assert [True in found for found in seen] == [False, True]


@pytest.mark.parametrize("what", ["rows", "weights"])
def test_a_folder_made_of_other_rows_or_weights_is_not_gone_on_with(small, what):
    tiny_model(vocab=len(char_tokenizer())).save_pretrained("model")
    char_tokenizer().save_pretrained("model")
    assert cli("init", "model", "rows.jsonl").exit_code == 0
    folder, request = Path("runs/try-rows"), Request("model", "rows.jsonl")
    assert is_made(folder, request)
    if what == "rows":
        Path("rows.jsonl").write_text(Path("rows.jsonl").read_text() + '{"Question": "9+9?", "Answer": "#18"}\n')
    else:
        tiny_model(seed=1, vocab=len(char_tokenizer())).save_pretrained("model")
    done = cli("try", "model", "rows.jsonl", "--yes")
    assert (done.exit_code, len(done.stderr.splitlines())) == (2, 1)
    named = "rows of rows.jsonl" if what == "rows" else "weights of model"
    assert f"was made of other {named}, which changed since then" in done.stderr
    assert done.stderr.endswith("ballast compare runs/try-rows/recipe.yaml\n")
    if what == "rows":
        # The folder has a copy of its own: what is gone has not changed.
        Path("rows.jsonl").unlink()
        assert is_made(folder, request)


def test_what_a_killed_command_left_in_a_folder_does_not_fill_it(tmp_path):
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / ".o.1234").mkdir()
    assert not is_made(tmp_path / "o", Request("lab", "x"))


def test_try_does_not_begin_unasked(small):
    done = cli("try", "lab", "rows.jsonl")
    assert (done.exit_code, "add --yes" in done.stderr) == (2, True)
    assert not Path("runs").exists()


def test_a_folder_serves_the_model_data_and_minutes_that_it_was_made_for(tmp_path):
    (tmp_path / ASKED).write_text(json.dumps(Request("lab", "x", minutes=5).plain()))
    assert is_made(tmp_path, Request("lab", "x"))
    assert is_made(tmp_path, Request("lab", "x", minutes=5))
    with pytest.raises(BallastError, match="--minutes: 9: would be ignored"):
        is_made(tmp_path, Request("lab", "x", minutes=9))
    with pytest.raises(BallastError, match="was made for another model"):
        is_made(tmp_path, Request("lab-code", "x"))
    assert not is_made(tmp_path / "new", Request("lab", "x"))
