"""Groups that cannot be used: one line that names the place, exit code 2, and nothing left behind."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

import bad_input
from bad_input import check_refused, write_rows
from ballast.cli import app
from tiny import CHAT_TEMPLATE, char_tokenizer, tiny_model

ROWS = [
    {"prompt": f"{i}+{i + 1}=", "completion": str(2 * i + 1), "answer": str(2 * i + 1), "teachers": ["1", "2"]}
    for i in range(6)
]
GROUPS = {"verifier": "exact", "own": 2, "max_new_tokens": 8}
OWN = {"prompt": "1+1=", "origin": "own", "response": "2", "reward": 1.0}


@pytest.fixture(scope="module")
def prototype(tmp_path_factory) -> Path:
    """A folder with a model, rows, groups of one's own and groups that were sampled: each case works on a copy."""
    folder = tmp_path_factory.mktemp("prototype")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, seed in (("model", 0), ("other", 1)):
            tiny_model(seed=seed).save_pretrained(name)
            char_tokenizer(chat_template=CHAT_TEMPLATE).save_pretrained(name)
        char_tokenizer(characters="0123456789+=").save_pretrained("other")
        write_rows("rows.jsonl", ROWS)
        write_rows("own.jsonl", [OWN, {**OWN, "origin": "expert", "reward": 0}])
        (folder / "judging.py").write_text("def judge(completion, row):\n    return 1.0\n")
        done = CliRunner().invoke(app, Case("", "", ("groups.file=sampled",), command="sample").arguments())
        assert done.exit_code == 0, done.output
        unjudged = ("objective=irft", "groups={own: 2, max_new_tokens: 8, file: unjudged}")
        done = CliRunner().invoke(app, Case("", "", unjudged, command="sample").arguments())
        assert done.exit_code == 0, done.output
        assert "nobody judged them" in " ".join(done.stdout.split())
    return folder


@pytest.fixture
def workspace(prototype, tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "work"
    shutil.copytree(prototype, folder)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    return folder


class Case(bad_input.Case):
    base = ("model=model", "data.train=rows.jsonl", "objective=gft", "output=out", f"groups={json.dumps(GROUPS)}")


def rows(change: Callable[[dict], dict | None], place: int = 2) -> Callable[[], object]:
    """Change one row, so that the line must say which; the columns are those of all rows."""
    return lambda: write_rows("rows.jsonl", [change(row) if i == place else row for i, row in enumerate(ROWS)])


def all_rows(change: Callable[[dict], dict]) -> Callable[[], object]:
    return lambda: write_rows("rows.jsonl", [change(row) for row in ROWS])


def without_column(name: str) -> Callable[[], object]:
    return all_rows(lambda row: {key: value for key, value in row.items() if key != name})


def own(*changed: dict) -> Callable[[], object]:
    return lambda: write_rows("own.jsonl", list(changed))


def one_part_less() -> None:
    next(Path("sampled").glob("part-*")).unlink()


def edited_manifest() -> None:
    path = Path("sampled/manifest.json")
    path.write_text(path.read_text()[:50])


def earlier_version() -> None:
    path = Path("sampled/manifest.json")
    path.write_text(path.read_text().replace('"version": 2', '"version": 1'))


def chat(row: dict) -> dict:
    return {
        "messages": [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}],
        "answer": row["answer"],
    }


DATA = "data.train (rows.jsonl): "
FILE = ("groups={file: own.jsonl}",)
BARE = ("data.train", "groups")
SAMPLED = ("groups.file=sampled",)
IRFT = ("objective={name: irft}",)

CASES = [
    # objective and groups
    Case("no groups", "groups: is required and missing: objective gft trains on groups", without=("groups",)),
    Case("empty groups", "groups.verifier: is required and missing", ("groups={}",)),
    Case(
        "groups nobody reads", "objective dft trains on demonstrations, so groups would be ignored", ("objective=dft",)
    ),
    Case("misspelt key", "groups.onw: unknown key; did you mean 'own'?", ("groups.onw=3", "training.max_steps=1")),
    Case("tau below 0", "objective.tau: tau must lie in [0, ∞]", ("objective.tau=-0.1",)),
    Case("groups in training", "training.groups: would be overridden here", ("training.groups={own: 1}",)),
    Case("no step per round", "groups.refresh: should be greater than or equal to 1; got 0", ("groups.refresh=0",)),
    Case("greedy answers alike", "groups.temperature: 0 with own = 2", ("groups.temperature=0",)),
    Case(
        "temperature below 0",
        "groups.temperature: should be greater than or equal to 0; got -1",
        ("groups.temperature=-1",),
    ),
    Case("nobody in the group", "expert, teacher and own are all 0", ("groups={own: 0, expert: 0, teacher: 0}",)),
    # IRFT
    Case("irft without groups", "groups: is required and missing: objective irft", IRFT, without=("groups",)),
    Case("irft without own answers", "groups.own: 0, and objective irft compares", (*IRFT, "groups.own=0")),
    Case("irft without an expert", "groups.expert: 0, and objective irft compares", (*IRFT, "groups.expert=0")),
    Case("unknown link", "objective.link: link must be one of sigmoid, hinge, none", (*IRFT, "objective.link=logit")),
    Case("no beta", "objective.beta: beta must lie in", (*IRFT, "objective.beta=0")),
    Case(
        "nobody to judge cut-off answers",
        "groups.judge_cut_off: true without groups.verifier",
        (*IRFT, "groups={own: 2, judge_cut_off: true}"),
    ),
    Case(
        "round without groups",
        "reference: 'round' is the model as it was when a round of answers was sampled, and objective sft trains on",
        ("objective=sft", "reference=round"),
        without=("groups",),
    ),
    Case("another round", "reference.use: 'rounds' is not allowed; did you mean 'round'", (*IRFT, "reference=rounds")),
    Case("round and a cache", "reference: use: round and cache", (*IRFT, "reference={use: round, cache: cache}")),
    Case(
        "a file of one member",
        "groups.file: own.jsonl: prompt 1: has no own answer, so there is nothing to compare",
        (*IRFT, *FILE),
        own({**OWN, "origin": "expert"}),
        without=BARE,
    ),
    Case(
        "a file without an expert",
        "groups.file: own.jsonl: prompt 1: has no expert answer",
        (*IRFT, *FILE),
        own(OWN),
        without=BARE,
    ),
    Case(
        "a file without the model that sampled",
        "groups.file: own.jsonl: prompt 1: has no log-probabilities of the model that sampled it",
        (*IRFT, *FILE, "reference=round"),
        without=BARE,
    ),
    Case(
        "the same answers twice",
        "groups.file: sampled is named twice",
        ("groups.file=[sampled, sampled]",),
    ),
    Case(
        "one of two files is not there",
        "groups.file: absent: no such file or folder",
        ("groups.file=[sampled, absent]",),
    ),
    Case(
        "a folder that nobody judged",
        "groups.file: unjudged: prompt 1: nobody has judged its answers, and the objective reads rewards",
        ("groups={file: unjudged}",),
    ),
    Case(
        "into two folders",
        "groups.file: names 2 folders, and one is filled at a time",
        ("groups.file=[new, newer]",),
        command="sample",
    ),
    Case(
        "into a folder of an earlier version",
        "sampled: was begun by an earlier version, whose answers have no log-probabilities",
        SAMPLED,
        earlier_version,
        command="sample",
    ),
    # verifier
    Case("no verifier", "groups.verifier: is required", ("groups={own: 2}",)),
    Case("misspelt verifier", "groups.verifier: unknown verifier 'exakt'; did you mean", ("groups.verifier=exakt",)),
    Case("verifier not importable", "cannot import module 'nowhere'", ("groups.verifier='nowhere:judge'",)),
    Case("verifier lacks the function", "has no 'jugde'", ("groups.verifier='judging:jugde'",)),
    Case(
        "programs without permission",
        "groups.allow_code_execution: verifier program runs what the model writes",
        ("groups.verifier=program",),
    ),
    Case(
        "tolerance below 0",
        "groups.tolerance: should be greater than or equal to 0; got -0.1",
        ("groups.verifier=program", "groups.allow_code_execution=true", "groups.tolerance=-0.1"),
    ),
    Case(
        "tolerance nobody reads",
        "groups.tolerance: would be ignored: only verifier program reads it",
        ("groups.tolerance=0.1",),
    ),
    Case(
        "self-training without groups",
        "groups: is required and missing: objective self-train",
        ("objective=self-train",),
        without=("groups",),
    ),
    Case(
        "self-training without a verifier",
        "groups.verifier: is required and missing",
        ("objective=self-train", "groups={own: 2}"),
    ),
    Case(
        "options that self-train lacks",
        "objective.tau: unknown option 'tau'; it has no options",
        ("objective={name: self-train, tau: 0.5}",),
    ),
    Case("clock without an end", "groups.seconds: should be a finite number; got inf", ("groups.seconds=.inf",)),
    # rows
    Case("no answer to judge by", f"{DATA}row 1: no 'answer' to judge by", break_it=without_column("answer")),
    Case("one row without an answer", f"{DATA}row 3: no 'answer'", break_it=rows(lambda row: {**row, "answer": None})),
    Case("no expert", "groups.expert to 0", break_it=without_column("completion")),
    Case(
        "one row without expert",
        f"{DATA}row 3: no expert's answer ('completion' is missing or empty); fill it in, or set groups.expert to 0",
        break_it=rows(lambda row: {**row, "completion": ""}),
    ),
    Case(
        "teachers is text",
        f"{DATA}row 1: 'teachers' is str, not a list",
        break_it=all_rows(lambda row: {**row, "teachers": "2"}),
    ),
    Case(
        "a teacher without an answer",
        f"{DATA}row 3: 'teachers' holds ''",
        break_it=rows(lambda row: {**row, "teachers": ["1", ""]}),
    ),
    Case(
        "teachers are numbers",
        f"{DATA}row 1: 'teachers' holds 2",
        break_it=all_rows(lambda row: {**row, "teachers": [2]}),
    ),
    Case(
        "empty group in one row",
        f"{DATA}row 3: the group is empty",
        ("groups={verifier: exact, own: 0, expert: 0}",),
        rows(lambda row: {**row, "teachers": []}),
    ),
    Case("messages alone", f"{DATA}groups: no column 'prompt'", break_it=all_rows(chat)),
    Case("empty prompt", f"{DATA}row 3: the prompt is empty", break_it=rows(lambda row: {**row, "prompt": ""})),
    Case(
        "answer beyond the context",
        f"{DATA}row 3: prompt of 110 tokens + groups.max_new_tokens 30 exceeds the model's context 128",
        ("groups.max_new_tokens=30",),
        rows(lambda row: {**row, "prompt": "1" * 110}),
    ),
    Case(
        "answer beyond max_length",
        f"{DATA}row 3: prompt of 20 tokens + groups.max_new_tokens 8 exceeds training.max_length 24",
        ("training.max_length=24",),
        rows(lambda row: {**row, "prompt": "1" * 20}),
    ),
    Case(
        "prompt beyond max_length",
        f"{DATA}row 3: prompt of 40 tokens leaves nothing of training.max_length 24",
        ("training.max_length=24", "groups.own=0"),
        rows(lambda row: {**row, "prompt": "1" * 40}),
    ),
    # training
    Case("packing", "training.packing: True does not go with groups", ("training.packing=true",)),
    Case("cut at the start", "training.truncation_mode: keep_end does not", ("training.truncation_mode=keep_end",)),
    Case("loss on prompts", "training.completion_only_loss: False", ("training.completion_only_loss=false",)),
    Case("assistant mask", "training.assistant_only_loss: True", ("training.assistant_only_loss=true",)),
    Case("shuffling twice", "training.shuffle_dataset: True", ("training.shuffle_dataset=true",)),
    Case("sharded model", "training.fsdp: a sharded model cannot sample", ("training.fsdp=full_shard",)),
    Case("cached reference", "reference.cache: holds demonstrations", ("reference.cache=cache",)),
    Case(
        "streaming",
        "data.streaming: answers are sampled for prompts by their number, so all are read",
        ("data.streaming=true", "training.max_steps=2"),
    ),
    # groups sampled beforehand
    Case(
        "no such file",
        "groups.file: absent: no such file or folder; `ballast sample` fills it",
        ("groups.file=absent",),
    ),
    Case("file and rows", "data.train: would be ignored", FILE, without=("groups",)),
    Case("file and sampling", "groups.own: would be ignored", ("groups={file: own.jsonl, own: 2}",), without=BARE),
    Case(
        "file without a column",
        "groups.file: own.jsonl: no column 'reward'",
        FILE,
        own({key: value for key, value in OWN.items() if key != "reward"}),
        without=BARE,
    ),
    Case("file of nobody", "own.jsonl: row 1: origin 'me'", FILE, own({**OWN, "origin": "me"}), without=BARE),
    Case("file beyond max_length", "training.max_length is 5", (*FILE, "training.max_length=5"), without=BARE),
    Case(
        "file with half an answer", "own.jsonl: row 1: the response", FILE, own({**OWN, "response": ""}), without=BARE
    ),
    Case("sampled by another tokenizer", "another tokenizer", ("model=other", *SAMPLED), without=("data.train",)),
    Case("sampled with other settings", "groups.own: 3 would be ignored", (*SAMPLED, "groups.own=3")),
    Case("sampled without", "groups.judge_cut_off: True would be ignored", (*SAMPLED, "groups.judge_cut_off=true")),
    Case("sampled for other rows", "was sampled for other rows", SAMPLED, rows(lambda row: {**row, "answer": "0"})),
    Case("cut elsewhere", "training.max_length: 64, but the answers", (*SAMPLED, "training.max_length=64")),
    Case("sampling not ended", "sampling has not ended (0 of 1 parts)", SAMPLED, one_part_less),
    Case("damaged manifest", "groups.file: sampled/manifest.json: cannot be read", SAMPLED, edited_manifest),
    Case("packing with a file", "training.packing: True", (*SAMPLED, "training.packing=true")),
    # sampling
    Case("no place to sample to", "groups.file: is required and missing", command="sample"),
    Case("nothing to sample", "groups: is required and missing", without=("groups",), command="sample"),
    Case(
        "no rows to sample", "data.train: is required", ("groups.file=new",), command="sample", without=("data.train",)
    ),
    Case("into a file", "groups.file: rows.jsonl: is a file", ("groups.file=rows.jsonl",), command="sample"),
    Case("into another folder", "holds 'chat_template.jinja' and no groups", ("groups.file=model",), command="sample"),
    Case("over other settings", "groups.own 2, not 3", (*SAMPLED, "groups.own=3"), command="sample"),
    Case("sampling without judge", "groups.verifier: is required", ("groups={file: new}",), command="sample"),
    Case("sampling with packing", "training.packing", ("groups.file=new", "training.packing=true"), command="sample"),
    Case(
        "row without expert to sample",
        f"{DATA}row 3: no expert's answer",
        ("groups.file=new",),
        rows(lambda row: {**row, "completion": ""}),
        command="sample",
    ),
    Case("scoring groups", "reference.cache: holds demonstrations", ("reference.cache=cache",), command="score"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_groups_are_refused_in_one_line_and_leave_nothing(case, workspace, monkeypatch):
    if case.command != "sample":
        monkeypatch.setattr("ballast.models.load_model", None)  # refused before a weight is read
    check_refused(case, workspace)


def test_groups_of_a_run_may_not_change_on_resuming(workspace):
    settings = ("training.max_steps=1", "training.save_steps=1", "training.report_to=none")
    done = CliRunner().invoke(app, Case("", "", settings).arguments())
    assert done.exit_code == 0, (done.output, done.exception)
    again = Case("", "", (*settings, "groups.own=3")).arguments()
    done = CliRunner().invoke(app, [again[0], "--resume", *again[1:]])
    assert done.exit_code == 2
    assert "groups: differs from the run to be resumed" in done.stderr


@pytest.mark.parametrize(
    "settings",
    [
        ("training.dataset_num_proc=1",),
        ("groups.file=sampled",),
        ("groups.file=sampled", "groups.refresh=2"),
        ("objective=irft", "reference=round"),
        ("objective=irft", "groups={own: 1, max_new_tokens: 8}"),
        ("objective=irft", "groups={file: unjudged}", "reference=round"),
        ("objective=irft", "groups={file: [sampled, unjudged]}"),
    ],
)
def test_the_recipe_that_the_cases_break_works(settings, workspace):
    settings = (*settings, "training.max_steps=1", "training.report_to=none")
    done = CliRunner().invoke(app, Case("", "", settings).arguments())
    assert done.exit_code == 0, (done.output, done.exception)
    assert json.loads(Path("out/run.json").read_text())["status"] == "finished"
    assert os.path.exists("out/model.safetensors")


def test_chat_rows_work(workspace):
    turns = [
        {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "completion": [{"role": "assistant", "content": row["completion"]}],
            "teachers": [[{"role": "assistant", "content": "1"}]],
            "answer": row["answer"],
        }
        for row in ROWS
    ]
    write_rows("rows.jsonl", turns)
    settings = ("training.max_steps=1", "training.logging_steps=1", "training.report_to=none")
    done = CliRunner().invoke(app, Case("", "", settings).arguments())
    assert done.exit_code == 0, (done.output, done.exception)
    assert "6 expert answers (mean reward 1.000), 6 teacher answers" in " ".join(done.stdout.split())


def test_a_file_of_ones_own_needs_no_rows(workspace):
    settings = (*FILE, "training.max_steps=1", "training.report_to=none")
    done = CliRunner().invoke(app, Case("", "", settings, without=BARE).arguments())
    assert done.exit_code == 0, (done.output, done.exception)
