"""`ballast sample`: groups in a folder, the same after any interruption; and groups of one's own."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ballast import parts
from ballast.cli import app
from ballast.config.recipe import load_recipe
from ballast.errors import BallastError
from ballast.groups import Group, GroupOptions, Member
from ballast.groups.read import read_groups
from ballast.groups.store import GroupFolder, Part, StoreSettings, data_digest, stored_options
from ballast.pipeline import run_sample
from ballast.reference import tokenizer_fingerprint
from tiny import CHAT_TEMPLATE, char_tokenizer

SETTINGS = (
    "model=lab",
    "data.train=lab:train",
    "data.limit=8",
    "groups={verifier: 'ballast.lab.arithmetic:verify', own: 2, max_new_tokens: 24, file: groups}",
)


@pytest.fixture(scope="module")
def prototype(tmp_path_factory):
    """A folder with groups that were sampled once, and what was said of them."""
    folder = tmp_path_factory.mktemp("prototype")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(parts, "ROWS_PER_PART", 3)
        return folder, run()


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(parts, "ROWS_PER_PART", 3)


@pytest.fixture
def said(prototype):
    """What was said of the groups in the folder ``groups``."""
    shutil.copytree(prototype[0] / "groups", "groups")
    return prototype[1]


@pytest.fixture
def sampled(said):
    """The folder ``groups`` is full."""


def run(*arguments):
    done = CliRunner().invoke(app, ["sample", *SETTINGS, *arguments])
    assert done.exit_code == 0, (done.output, done.exception)
    return " ".join(done.stdout.split())


def refused(*arguments):
    done = CliRunner().invoke(app, ["sample", *SETTINGS, *arguments])
    assert done.exit_code == 2, (done.exit_code, done.output, done.exception)
    (line,) = done.stderr.splitlines()
    return line


def content(folder="groups"):
    return {file.name: file.read_bytes() for file in Path(folder).iterdir() if file.name != ".lock"}


def lab_tokenizer():
    from transformers import AutoTokenizer

    from ballast.lab import base_path

    return AutoTokenizer.from_pretrained(base_path())


def test_sampling_fills_the_folder_and_says_what_is_in_it(said):
    assert sorted(content()) == ["manifest.json", *(f"part-0000{i}.parquet" for i in range(3))]
    groups = read_groups("groups", lab_tokenizer())
    assert [group.row for group in groups] == list(range(8))
    members = [member for group in groups for member in group.members]
    assert [member.origin for member in groups[0].members] == ["expert", "own", "own"]
    own = [member.reward for member in members if member.origin == "own"]
    assert f"16 own answers (mean reward {sum(own) / 16:.3f})" in said
    mixed = sum(len({member.reward for member in group.members}) > 1 for group in groups) / 8
    assert f"{mixed:.0%} of the groups have mixed rewards" in said
    assert f"{sum(not member.ended for member in members)} own answers cut off, 0 verifier errors" in said
    assert 0 < sum(own) < 16


def test_what_is_read_is_what_the_trainer_would_sample(sampled):
    from ballast import models
    from ballast.config.recipe import ModelSection
    from ballast.data import PrepareOptions
    from ballast.groups import GroupRows, sample_groups
    from ballast.groups.sampler import scored_groups
    from ballast.lab import base_path, split

    options = GroupOptions(verifier="ballast.lab.arithmetic:verify", own=2, max_new_tokens=24)
    from datasets import Dataset

    rows = GroupRows(Dataset.from_list(split("train")[:8]), lab_tokenizer(), options, PrepareOptions())
    model = models.load_model(ModelSection(path=str(base_path())))
    parts = [sample_groups(model, rows, part, seed=42, step=0) for part in ([0, 1, 2], [3, 4, 5], [6, 7])]
    wanted = [group for part in parts for group in scored_groups(model, part, batch_tokens=16384).groups]
    assert read_groups("groups", lab_tokenizer()) == wanted


def test_sampling_again_samples_nothing(sampled, monkeypatch):
    before = content()
    monkeypatch.setattr("ballast.groups.sampler.generate", None)
    assert "8 prompts; 8 expert answers" in run()
    assert content() == before


class Stop(BaseException):
    pass


@pytest.mark.parametrize("writes", [0, 1, 2, 3])
@pytest.mark.parametrize("late", [False, True])
def test_a_run_stopped_at_any_write_ends_with_the_same_bytes(writes, late, prototype, monkeypatch):
    write, done = parts.write_atomically, []

    def stopping(path, text):
        if len(done) == writes:
            if late:
                Path(f"{path}.123.tmp").write_bytes(b"half")
            raise Stop
        done.append(path)
        write(path, text)

    monkeypatch.setattr(parts, "write_atomically", stopping)
    with pytest.raises(Stop):
        run_sample(load_recipe(None, SETTINGS), say=lambda _: None)
    monkeypatch.setattr(parts, "write_atomically", write)
    if writes:
        with pytest.raises(BallastError, match=rf"not ended \({writes - 1} of 3 parts\)"):
            read_groups("groups", lab_tokenizer())
    run()
    assert content() == content(prototype[0] / "groups")


def test_a_killed_process_goes_on_with_the_same_bytes(tmp_path, monkeypatch):
    settings = ["data.limit=130", "groups.own=1"]
    command = [sys.executable, "-m", "ballast.cli", "sample", *SETTINGS, *settings]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=tmp_path)
    deadline = time.monotonic() + 120
    while not list(Path("groups").glob("part-*")) and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    monkeypatch.setattr(parts, "ROWS_PER_PART", 64)
    assert 1 <= len(list(Path("groups").glob("part-*"))) < 3
    run(*settings)
    run(*settings, "groups.file=whole")
    assert content() == content("whole")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["seed=1"], "from another seed (42, not 1)"),
        (["groups.own=3"], "other settings (groups.own 2, not 3)"),
        (["groups.judge_cut_off=true"], "other settings (groups.judge_cut_off False, not True)"),
        (["groups.temperature=0.5", "groups.own=3"], "(groups.own 2, not 3); it was sampled with other settings"),
        (["data.train=lab:validation"], "for other rows"),
        (["data.limit=7"], "another number of rows (8, not 7)"),
        (["training.max_length=512"], "another training.max_length (1024, not 512)"),
        (["model.dtype=bfloat16"], "another model; it was sampled in another dtype"),
        (["training.eos_token='#'"], "end-of-text token"),
    ],
)
def test_a_folder_of_other_settings_is_refused_and_left_alone(settings, words, sampled):
    before = content()
    line = refused(*settings)
    assert words in line
    assert line.startswith("groups: ")
    assert content() == before


def test_a_folder_older_than_an_option_has_its_default(sampled):
    manifest = Path("groups/manifest.json")
    written = json.loads(manifest.read_text())
    assert written["settings"]["groups"].pop("judge_cut_off") is False
    manifest.write_text(json.dumps(written))
    run()
    assert "(groups.judge_cut_off False, not True)" in refused("groups.judge_cut_off=true", "groups.own=2")
    assert "groups.temperature" in refused("groups.temperature=0.5")


@pytest.mark.parametrize("settings", [["groups.batch_tokens=4000"], ["groups.seconds=3"], ["groups.refresh=4"]])
def test_what_leaves_the_answers_alone_may_change(settings, sampled):
    run(*settings)


def test_another_process_that_samples_is_not_joined(sampled):
    from filelock import FileLock

    with FileLock("groups/.lock"):
        assert "another process is sampling into this folder" in refused()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Path("groups").write_text("x"), "is a file"),
        (lambda: (Path("groups").mkdir(), Path("groups/notes.txt").touch()), "holds 'notes.txt' and no groups"),
    ],
)
def test_a_place_that_holds_something_else_is_refused(make, words):
    make()
    assert words in refused()


def damage(file, change):
    path = Path("groups") / file
    path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda: Path("groups/part-00001.parquet").unlink(), "not ended (2 of 3 parts)"),
        (lambda: damage("part-00001.parquet", lambda raw: raw[:-30]), "part-00001.parquet: damaged"),
        (lambda: damage("part-00001.parquet", lambda raw: raw[:60] + bytes([raw[60] ^ 1]) + raw[61:]), "damaged"),
        (
            lambda: damage("part-00001.parquet", lambda _: Path("groups/part-00000.parquet").read_bytes()),
            "holds other rows than its place says",
        ),
        (lambda: damage("manifest.json", lambda raw: raw[:40]), "cannot be read as the manifest"),
        (lambda: damage("manifest.json", lambda raw: raw.replace(b'"version": 2', b'"version": 9')), "version (9)"),
        (lambda: damage("manifest.json", lambda raw: raw.replace(b'"ends"', b'"ands"')), "'ends'"),
    ],
)
def test_a_damaged_folder_is_refused(break_it, words, sampled):
    break_it()
    with pytest.raises(BallastError, match=re.escape(words)):
        read_groups("groups", lab_tokenizer())


def settings_for(tokenizer, rows):
    return StoreSettings("m", "float32", tokenizer_fingerprint(tokenizer), (2,), "d", rows, 0, None, {"own": 1})


def written(members, prompt="1+1=", tokenizer=None):
    folder = GroupFolder("made", settings_for(tokenizer or char_tokenizer(), 1))
    with folder.filling():
        folder.write(0, Part((Group(0, tuple(members)),), (prompt,), {"cut_off": 1}))
    return folder


GOOD = Member((20, 30, 2), 2, "own", 0.5, "a", False)


def test_a_part_comes_back_as_it_was():
    prompt = [{"role": "user", "content": "é\n"}]
    members = (GOOD, replace(GOOD, origin="teacher", reward=1 / 3, text="\x00é", ended=True))
    (part,) = written(members, prompt).read()
    assert part == Part((Group(0, members),), (prompt,), {"cut_off": 1})
    assert read_groups("made", char_tokenizer()) == [Group(0, members)]


@pytest.mark.parametrize(
    ("member", "words"),
    [
        (replace(GOOD, ids=(20, 900, 2)), "token id 900 is not in the tokenizer"),
        (replace(GOOD, ids=(20, -1, 2)), "is not in the tokenizer"),
        (replace(GOOD, reward=float("nan")), "rewards are finite"),
        (replace(GOOD, reward=float("inf")), "rewards are finite"),
        (replace(GOOD, origin="oracle"), "origin 'oracle' is none of expert, teacher, own"),
        (replace(GOOD, start=3), "no token to train on"),
        (replace(GOOD, start=0), "no token to train on"),
    ],
)
def test_answers_that_cannot_be_trained_on_are_refused(member, words):
    written([GOOD, member])
    with pytest.raises(BallastError, match=rf"made: prompt 1: .*{words}"):
        read_groups("made", char_tokenizer())


def test_a_prompt_without_an_answer_is_refused():
    written([])
    with pytest.raises(BallastError, match="holds other rows"):
        read_groups("made", char_tokenizer())


def test_answers_longer_than_training_takes_are_refused():
    written([GOOD])
    assert read_groups("made", char_tokenizer(), max_length=3)
    with pytest.raises(BallastError, match=r"have 3 tokens, training.max_length is 2"):
        read_groups("made", char_tokenizer(), max_length=2)


def test_another_tokenizer_is_refused():
    written([GOOD])
    with pytest.raises(BallastError, match="another tokenizer, end-of-text token or chat template"):
        read_groups("made", char_tokenizer(characters="0123456789+="))
    with pytest.raises(BallastError, match="another tokenizer"):
        read_groups("made", char_tokenizer(chat_template=CHAT_TEMPLATE))


def test_the_digest_of_rows_counts_every_column_and_their_order():
    rows = [{"prompt": "a", "answer": 1}, {"prompt": "b", "answer": 2}]
    others = [rows[::-1], rows[:1], [rows[0], {"prompt": "b", "answer": 3}], [rows[0], {**rows[1], "tests": None}]]
    assert len({data_digest(some) for some in [rows, *others]}) == 5
    assert data_digest([{"answer": 1, "prompt": "a"}]) == data_digest(rows[:1])


def test_stored_options_are_those_that_answers_depend_on():
    assert set(stored_options(GroupOptions())) == {
        "verifier", "expert", "teacher", "own", "temperature", "top_p", "max_new_tokens",
        "judge_cut_off", "tolerance",
    }  # fmt: skip


BROUGHT = [
    {"prompt": "1+1=", "origin": "expert", "response": "2", "reward": 1},
    {"prompt": "2+2=", "origin": "own", "response": "5", "reward": -0.5},
    {"prompt": "1+1=", "origin": "teacher", "response": "two", "reward": 0.25},
]


def bring(rows, name="own.jsonl"):
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


def test_a_file_of_ones_own_is_tokenised_and_grouped_by_prompt():
    tokenizer = char_tokenizer()
    ids = {text: tuple(tokenizer(text)["input_ids"]) for text in ("1+1=", "2+2=", "2", "5", "two")}

    def member(prompt, text, origin, reward):
        return Member((*ids[prompt], *ids[text], tokenizer.eos_token_id), 4, origin, reward, text)

    first = (member("1+1=", "2", "expert", 1.0), member("1+1=", "two", "teacher", 0.25))
    expected = [Group(0, first), Group(1, (member("2+2=", "5", "own", -0.5),))]
    assert read_groups(bring(BROUGHT), tokenizer) == expected
    from datasets import Dataset

    Dataset.from_list(BROUGHT).to_parquet("own.parquet")
    assert read_groups("own.parquet", tokenizer) == expected


def test_messages_of_ones_own():
    tokenizer = char_tokenizer(chat_template=CHAT_TEMPLATE)
    prompt, response = [{"role": "user", "content": "1"}], [{"role": "assistant", "content": "2"}]
    ((member,),) = (
        group.members
        for group in read_groups(
            bring([{"prompt": prompt, "origin": "own", "response": response, "reward": 1}]), tokenizer
        )
    )
    assert tokenizer.decode(member.ids[member.start :]).startswith("2<eos>")
    assert member.text == "2"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"origin": "oracle"}, r"own.jsonl: row 1: origin 'oracle' is none of"),
        ({"reward": "high"}, "own.jsonl"),
        ({"reward": None}, "reward None is no finite number"),
        ({"response": ""}, "the response is empty"),
        ({"prompt": ""}, "the prompt is empty"),
    ],
)
def test_rows_of_ones_own_that_are_refused(changes, words):
    with pytest.raises(BallastError, match=words):
        read_groups(bring([{**BROUGHT[0], **changes}]), char_tokenizer())


@pytest.mark.parametrize("column", ["prompt", "origin", "response", "reward"])
def test_a_file_without_a_column_is_refused(column):
    rows = [{name: value for name, value in row.items() if name != column} for row in BROUGHT]
    with pytest.raises(BallastError, match=rf"own.jsonl: no column '{column}'"):
        read_groups(bring(rows), char_tokenizer())


def test_a_file_that_is_not_there_is_refused():
    with pytest.raises(BallastError, match=r"absent: no such file or folder; `ballast sample` fills one"):
        read_groups("absent", char_tokenizer())
