"""Revisions that cannot be made: one line that names the place, exit code 2, and nothing left behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

import bad_input
from bad_input import check_refused, write_rows
from ballast.cli import app
from tiny import CHAT_TEMPLATE, char_tokenizer, tiny_model

ROWS = [{"prompt": f"{n}+{n}=", "completion": str(2 * n), "answer": str(2 * n)} for n in range(6)]
PAIRS = [{"prompt": f"{n}+{n}=", "chosen": str(2 * n), "rejected": str(3 * n), "answer": "1"} for n in range(6)]
REVISE = {"verifier": "exact", "max_new_tokens": 8, "file": "out", "feedback": "none", "templates": "again.yaml"}
REVISER = "{how: reviser, reviser: model, templates: again.yaml, max_new_tokens: 8, file: out}"
PAIRING = "{how: reviser, verifier: exact, pairs: pairs.jsonl}"
DATA = "data.train (rows.jsonl): "


@pytest.fixture(scope="module")
def prototype(tmp_path_factory) -> Path:
    """A folder with a model, rows, texts and revised rows: each case works on a copy."""
    folder = tmp_path_factory.mktemp("prototype")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        tiny_model().save_pretrained("model")
        char_tokenizer(chat_template=CHAT_TEMPLATE).save_pretrained("model")
        write_rows("rows.jsonl", ROWS)
        write_rows("pairs-in.jsonl", PAIRS)
        Path("again.yaml").write_text('refine: "{prompt}"\nreviser: "{prompt}{draft}"\n')
        (folder / "judging.py").write_text("def judge(completion, row):\n    return 1.0\n")
        done = CliRunner().invoke(app, Case("", "", ("revise.file=full",)).arguments())
        assert done.exit_code == 0, (done.output, done.exception)
    return folder


@pytest.fixture
def workspace(prototype, tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "work"
    shutil.copytree(prototype, folder)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    return folder


class Case(bad_input.Case):
    base = ("model=model", "data.train=rows.jsonl", f"revise={json.dumps(REVISE)}")
    verb = "revise"


def rows(change: Callable[[dict], dict], place: int = 2) -> Callable[[], object]:
    """Change one row, so that the line must say which."""
    return lambda: write_rows("rows.jsonl", [change(row) if n == place else row for n, row in enumerate(ROWS)])


def without(row: dict, name: str) -> dict:
    return {key: value for key, value in row.items() if key != name}


def text(content: str) -> Callable[[], object]:
    return lambda: Path("again.yaml").write_text(content)


def damage(file: str) -> Callable[[], object]:
    return lambda: Path(file).write_bytes(Path(file).read_bytes()[:-30])


CASES = [
    Case("no section", "revise: is required and missing", without=("revise",)),
    Case("no file", "revise.file: is required and missing", ("revise.file=null",)),
    Case("unknown way", "revise.how: 'refine' is not allowed", ("revise.how=refine",)),
    Case("unknown key", "revise.round: unknown key; did you mean 'rounds'?", ("revise.round=2",)),
    Case("no model", "model: is required and missing", without=("model",)),
    Case("no data", "data.train: is required and missing", without=("data.train",)),
    Case("no data beside groups", "data.train: is required and missing; name the rows with the prompts",
         ("groups.file=full",), without=("data.train",)),
    Case("stop without verifier", "revise.verifier: is required and missing: revise.stop asks it",
         ("revise.verifier=null",)),
    Case("accept without verifier", "revise.verifier: is required and missing: revise.accept asks it",
         ("revise.verifier=null", "revise.stop=never", "revise.accept=verifier")),
    Case("unknown verifier", "revise.verifier: unknown verifier 'exakt'; did you mean 'exact'?",
         ("revise.verifier=exakt",)),
    Case("unknown module", "cannot import module 'nowhere'", ("revise.verifier='nowhere:judge'",)),
    Case("programs without leave", "revise.allow_code_execution: verifier program runs what the model writes",
         ("revise.verifier=program",)),
    Case("tolerance of nothing", "revise.tolerance: would be ignored", ("revise.tolerance=0.1",)),
    Case("texts missing", "revise.templates: absent.yaml: cannot be read: No such file",
         ("revise.templates=absent.yaml",)),
    Case("text without prompt", "revise.templates: again.yaml: refine: has no {prompt}", break_it=text("refine: x")),
    Case("unknown placeholder", "again.yaml: refine: unknown placeholder {promt}",
         break_it=text("refine: '{promt} {prompt}'")),
    Case("answer shown", "{completion} shows the right answer; set revise.hint: completion",
         break_it=text("refine: '{prompt} {completion}'")),
    Case("no reviser there", "revise.reviser: runs/absent/reviser: no such folder",
         ("revise={how: reviser, reviser: runs/absent/reviser, file: out}",)),
    Case("reviser without weights", "revise.reviser: half: has no weights",
         ("revise={how: reviser, reviser: half, file: out}",),
         break_it=lambda: (Path("half").mkdir(), shutil.copy("model/config.json", "half"))),
    Case("reviser is a file", "revise.reviser: rows.jsonl: is a file",
         ("revise={how: reviser, reviser: rows.jsonl, file: out}",)),
    Case("a folder of others", "full: it was revised from another seed (42, not 1)",
         ("revise.file=full", "seed=1")),
    Case("a folder of other texts", "full: it was revised with other templates", ("revise.file=full",),
         break_it=text('refine: "{prompt} "')),
    Case("a damaged part", "part-00000.parquet: damaged", ("revise.file=full",),
         break_it=damage("full/part-00000.parquet")),
    Case("a damaged manifest", "manifest.json: cannot be read as the manifest of revisions", ("revise.file=full",),
         break_it=damage("full/manifest.json")),
    Case("a file in place of the folder", "revise.file: rows.jsonl: is a file", ("revise.file=rows.jsonl",)),
    Case("another folder", "revise.file: model: holds 'chat_template.jinja' and no revisions", ("revise.file=model",)),
    Case("a row without prompt", DATA + "row 3: no 'prompt'", break_it=rows(lambda row: {**row, "prompt": ""})),
    Case("a row without answer", DATA + "row 3: no 'answer' to judge by",
         break_it=rows(lambda row: without(row, "answer"))),
    Case("a row without completion", DATA + "row 3: no completion, which revise.draft: completion reads",
         ("revise.draft=completion",), break_it=rows(lambda row: {**row, "completion": ""})),
    Case("a better answer that is a number", DATA + "row 1: 'chosen' is a number, not a list of messages",
         ("revise=" + PAIRING,),
         break_it=lambda: write_rows("rows.jsonl", [{"prompt": "x", "chosen": 5, "rejected": "y", "answer": "z"}])),
    Case("no completion to hint at", DATA + "row 3: no completion, which revise.hint: completion reads",
         ("revise.hint=completion", "revise.templates=null", "revise.feedback=verifier"),
         break_it=rows(lambda row: {**row, "completion": ""})),
    Case("a prompt without room", DATA + "row 3: prompt of 130 tokens leaves nothing of the model's context 128",
         break_it=rows(lambda row: {**row, "prompt": "1" * 130})),
    Case("drafts that are not there", "revise.draft: drafts.jsonl: no such file or folder",
         ("revise.draft=drafts.jsonl",)),
    Case("drafts of other prompts", "revise.draft: other.jsonl has no answer to the prompt of row 1",
         ("revise.draft=other.jsonl",),
         break_it=lambda: write_rows("other.jsonl", [{"prompt": "x", "completion": "y"}])),
    Case("two drafts of a prompt", "revise.draft: other.jsonl: row 7: a second answer to its prompt",
         ("revise.draft=other.jsonl",),
         break_it=lambda: write_rows("other.jsonl", [*ROWS, {**ROWS[0], "completion": "9"}])),
    Case("nothing to write", "revise.rounds: 0 with draft: completion has nothing to write",
         ("revise.draft=completion", "revise.rounds=0")),
    Case("pairs without a reviser", "revise.how: must be reviser where revise.pairs is written",
         ("revise={pairs: pairs.jsonl, label: edit}",)),
    Case("pairs that are there", "revise.pairs: rows.jsonl: is there already",
         ("revise={how: reviser, pairs: rows.jsonl}", "groups.file=full")),
    Case("a summary of pairs that is there", "revise.pairs: p.summary.json: is there already",
         ("revise={how: reviser, pairs: p.jsonl, label: edit}",), break_it=lambda: Path("p.summary.json").touch()),
    Case("pairs of another kind", "let its name end in .jsonl", ("revise={how: reviser, pairs: p.csv, label: edit}",)),
    Case("difficulty without a reviser", "difficulty is what a reviser that was trained without labels finds likely",
         ("revise={how: reviser, pairs: p.jsonl, label: difficulty}",)),
    Case("pairs without preferences", DATA + "row 1: no 'chosen'", (f"revise={PAIRING}",)),
    Case("pairs of rows that were revised", "groups.file: full: pairs are made of a folder of `ballast sample`",
         (f"revise={PAIRING}", "groups.file=full")),
    Case("pairs that teach nothing", "none of 6 pairs teaches anything",
         (f"revise={PAIRING}", "data.train=pairs-in.jsonl"),
         break_it=lambda: write_rows("pairs-in.jsonl", [{**row, "chosen": "x", "rejected": "x"} for row in PAIRS])),
    Case("training on a damaged part", "part-00000.parquet: damaged", ("data.train=full",
         "objective=sft", "output=out"), command="train", without=("revise",),
         break_it=damage("full/part-00000.parquet")),
    Case("training on a part of it", "full: revising has not ended (0 of 1 parts)", ("data.train=full",
         "objective=sft", "output=out"), command="train", without=("revise",),
         break_it=lambda: Path("full/part-00000.parquet").unlink()),
    Case("groups without rewards", "nobody has judged its answers",
         ("groups.file=unjudged", "objective=gft", "output=o"),
         command="train", without=("revise", "data.train"),
         break_it=lambda: CliRunner().invoke(app, Case("", "", ("revise.file=unjudged", "revise.verifier=null",
                                                               "revise.stop=never")).arguments())),
    Case("evaluating with an oracle", "evaluation.tasks.0.revise.stop: verifier tells the loop what is measured",
         ("evaluation.tasks=[{data: rows.jsonl, revise: {stop: verifier}}]",), command="evaluate", without=("revise",)),
    Case("evaluating without a text", "evaluation.tasks.0: absent.yaml: cannot be read",
         ("evaluation.tasks=[{data: rows.jsonl, revise: {templates: absent.yaml}}]",), command="evaluate",
         without=("revise",)),
    Case("evaluating several drafts", "evaluation.tasks.0.samples: 2 drafts of a prompt cannot be revised",
         ("evaluation.tasks=[{data: rows.jsonl, samples: 2, temperature: 1, revise: {}}]",), command="evaluate",
         without=("revise",)),
    Case("evaluating without the reviser", "evaluation.tasks.0: revise.reviser: runs/absent/reviser: no such folder",
         ("evaluation.tasks=[{data: rows.jsonl, revise: {how: reviser, reviser: runs/absent/reviser}}]",),
         command="evaluate", without=("revise",)),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_is_refused(case, workspace):
    check_refused(case, workspace)


def test_a_reviser_that_never_says_a_label(workspace):
    done = CliRunner().invoke(app, ["revise", "model=model", "data.train=rows.jsonl", f"revise={REVISER}"])
    assert done.exit_code == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("revise.reviser: model says none of the labels '[Major Revise]\\n', ")
    assert sorted(file.name for file in Path("out").iterdir() if file.name != ".lock") == ["manifest.json"]
