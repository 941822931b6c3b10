"""`ballast revise` on the lab: what it writes, after any interruption the same, and what reads it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ballast import parts
from ballast.cli import app
from ballast.data import load_rows
from ballast.errors import BallastError
from ballast.evaluation import revising
from ballast.groups.read import read_groups
from ballast.lab import split
from ballast.revise.rows import read_kept
from ballast.revise.summary import summary

VERIFIER = "ballast.lab.arithmetic:verify"
BASE = ("model=lab", "data.train=lab:train", "data.limit=8")
LOOP = (
    f"revise={{verifier: '{VERIFIER}', max_new_tokens: 64, file: rows, templates: again.yaml, feedback: none, "
    "rounds: 1}"
)
TRAIN = (
    "training={max_steps: 2, per_device_train_batch_size: 4, logging_steps: 1, learning_rate: 1e-3, "
    "gradient_checkpointing: false, report_to: none, save_strategy: 'no'}"
)
REVISER = 'reviser: "{prompt}{draft} check. "\nmajor: "major. "\nminor: "minor. "\nno: "no"\n'


@pytest.fixture(scope="module")
def prototype(tmp_path_factory):
    """A folder with revised rows, and what was said of them."""
    folder = tmp_path_factory.mktemp("prototype")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(parts, "ROWS_PER_PART", 3)
        texts()
        return folder, run(LOOP)


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(parts, "ROWS_PER_PART", 3)
    texts()


@pytest.fixture
def said(prototype):
    shutil.copytree(prototype[0] / "rows", "rows")
    return prototype[1]


@pytest.fixture
def revised(said):
    """The folder ``rows`` is full."""


def texts():
    Path("again.yaml").write_text('refine: "{prompt}"\n')
    Path("reviser.yaml").write_text(REVISER)


def run(*settings, command="revise"):
    done = CliRunner().invoke(app, [command, *BASE, *settings])
    assert done.exit_code == 0, (done.output, done.exception)
    return " ".join(done.stdout.split())


def refused(*settings, command="revise"):
    done = CliRunner().invoke(app, [command, *BASE, *settings])
    assert done.exit_code == 2, (done.exit_code, done.output, done.exception)
    (line,) = done.stderr.splitlines()
    return line


def content(folder="rows"):
    files = [file for file in Path(folder).rglob("*") if file.is_file() and file.name != ".lock"]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def writing(monkeypatch, answer):
    """Let ``answer(row, place, step)`` write instead of the model from step 1 on."""
    real = revising.Writer.__call__

    def write(self, asked, step):
        if step == 0:
            return real(self, asked, step)
        texts = [answer(row, place, step) for place, row in asked]
        return [revising.Completion(text, len(text), True, (5,)) for text in texts]

    monkeypatch.setattr(revising.Writer, "__call__", write)


def lab_tokenizer():
    from transformers import AutoTokenizer

    from ballast.lab import base_path

    return AutoTokenizer.from_pretrained(base_path())


def weights(folder):
    from safetensors.torch import load_file

    return load_file(Path(folder) / "model.safetensors")


def test_a_folder_says_what_is_in_it(said):
    assert sorted(content()) == ["manifest.json", *(f"part-0000{place}.parquet" for place in range(3))]
    rows = read_kept("rows")
    assert [row["row"] for row in rows] == list(range(8))
    assert [row["prompt"] for row in rows] == [row["prompt"] for row in split("train")[:8]]
    assert all(row["answer"] == raw["answer"] for row, raw in zip(rows, split("train"), strict=False))
    found = summary(rows, [])
    assert f"{found['changed']} changed" in said
    assert f"drafts {found['reward']['draft']:.3f}, answers {found['reward']['answer']:.3f}" in said
    assert found["wrong_to_right"] > 0 == found["right_to_wrong"]
    for row in rows:
        draft, answer = row["versions"][0], row["versions"][-1]
        assert (row["draft"], row["completion"]) == (draft["text"], answer["text"])
        # A right draft costs nothing more; a wrong one was answered again.
        assert len(row["versions"]) == (1 if draft["reward"] == 1 else 2)
        assert row["spent"] == sum(version["tokens"] for version in row["versions"])


def test_no_rounds_are_what_is_sampled_byte_for_byte(revised):
    groups = f"groups={{verifier: '{VERIFIER}', expert: 0, own: 1, max_new_tokens: 64, file: groups}}"
    run(groups, command="sample")
    run(LOOP.replace("rounds: 1", "rounds: 0"), "revise.file=drafts")
    own = [group.members[0] for group in read_groups("groups", lab_tokenizer())]
    for name in ("drafts", "rows"):
        rows = read_kept(name)
        assert [tuple(row["draft_ids"]) for row in rows] == [one.ids[one.start :] for one in own]
        drafts = [row["versions"][0] for row in rows]
        assert [(one["text"], one["reward"], one["ended"]) for one in drafts] == [
            (one.text, one.reward, one.ended) for one in own
        ]


def test_asking_again_is_a_fresh_sample_of_another_stream(revised):
    from ballast import models
    from ballast.config.recipe import ModelSection
    from ballast.evaluation import GenerationOptions, generate

    model = models.load_model(models.resolve(ModelSection(path="lab")))
    rows = read_kept("rows")
    again = [row for row in rows if len(row["versions"]) == 2]
    options = GenerationOptions(max_new_tokens=64, temperature=1.0, seed=42)
    prompts = [row["prompt"] for row in again]
    fresh = generate(model, lab_tokenizer(), prompts, options, streams=[(2, row["row"]) for row in again])
    assert [row["versions"][1]["text"] for row in again] == [found[0].text for found in fresh]
    assert any(row["versions"][1]["text"] != row["draft"] for row in again)


class Stop(BaseException):
    pass


@pytest.mark.parametrize("writes", range(4))
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

    with monkeypatch.context() as patch:
        patch.setattr(parts, "write_atomically", stopping)
        with pytest.raises(Stop):
            CliRunner().invoke(app, ["revise", *BASE, LOOP])
    if writes:
        with pytest.raises(BallastError, match=rf"revising has not ended \({writes - 1} of 3 parts\)"):
            load_rows("rows")
    run(LOOP)
    assert content() == content(prototype[0] / "rows")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["seed=1"], "from another seed (42, not 1)"),
        (["revise.temperature=0.5"], "other settings (revise.temperature 1.0, not 0.5)"),
        (["revise.accept=verifier"], "(revise.accept 'always', not 'verifier')"),
        (["revise.draft=completion"], "from other drafts"),
        (["data.train=lab:validation"], "for other rows"),
        (["data.limit=7"], "another number of rows (8, not 7)"),
        (["model.dtype=bfloat16"], "another model; it was revised in another dtype"),
        (["revise.templates=other.yaml"], "with other templates"),
    ],
)
def test_a_folder_of_other_settings_is_refused_and_left_alone(settings, words, revised):
    Path("other.yaml").write_text('refine: "{prompt} "\n')
    before = content()
    assert words in refused(LOOP, *settings)
    assert content() == before


def test_a_folder_without_a_part_takes_other_settings(revised):
    for file in Path("rows").glob("part-*"):
        file.unlink()
    run(LOOP, "seed=1")
    assert json.loads(Path("rows/manifest.json").read_text())["settings"]["seed"] == 1


def test_an_oracle_trains_as_the_demonstrations_do(monkeypatch):
    """And a reviser that copies trains on the drafts."""
    demonstrations = {row["prompt"]: row["completion"] for row in split("train")}
    with monkeypatch.context() as patch:
        writing(patch, lambda row, place, step: demonstrations[row["prompt"]])
        run(LOOP, "revise.stop=never")
        assert [row["completion"] for row in read_kept("rows")] == [row["completion"] for row in split("train")[:8]]
    run(TRAIN, "objective=sft", "output=own", command="train")
    run(TRAIN, "objective=sft", "output=revised", "data.train=rows", "data.limit=null", command="train")
    one, other = weights("own"), weights("revised")
    assert all(one[name].equal(other[name]) for name in one)
    drafts = {row["prompt"]: row["draft"] for row in read_kept("rows")}
    with monkeypatch.context() as patch:
        writing(patch, lambda row, place, step: drafts[row["prompt"]])
        run(LOOP, "revise.stop=never", "revise.file=copied")
    for row in load_rows("copied"):
        assert row["completion"] == row["draft"]
    run(TRAIN, "objective=sft", "output=copied-run", "data.train=copied", "data.limit=null", command="train")
    third = weights("copied-run")
    assert not all(one[name].equal(third[name]) for name in one)


def test_a_reviser_says_what_is_kept(monkeypatch):
    said = ["major. #1", "minor. #2", "no", "what"]
    with monkeypatch.context() as patch:
        writing(patch, lambda row, place, step: said[place % 4])
        reviser = "revise={how: reviser, templates: reviser.yaml, max_new_tokens: 64, file: rows}"
        out = run(reviser)
        assert "labels: major 25%, minor 25%, no 25%, unparsed 25%" in out
        assert "mean score" not in out
        found = list(load_rows("rows"))
        assert [row["label"] for row in found] == ["major", "minor", "no", "unparsed"] * 2
        assert [row["completion"] for row in found[:2]] == ["#1", "#2"]
        assert all(row["completion"] == row["draft"] for row in found if row["label"] in ("no", "unparsed"))
        assert "2 to train on" in run(reviser, "revise.keep=[minor]", "revise.file=minor")
        assert [row["label"] for row in load_rows("minor")] == ["minor"] * 2
        # The first part of three rows has one of them, the rest are beside.
        assert sorted(content("minor"))[:2] == ["left-out/part-00000.parquet", "left-out/part-00001.parquet"]
        run(reviser, "revise.keep=[no]", "revise.file=none", "data.limit=2")
        with pytest.raises(BallastError, match="no row was kept"):
            load_rows("none")


def test_a_reviser_without_labels_is_refused_before_anything_is_written():
    line = refused("revise={how: reviser, templates: reviser.yaml, max_new_tokens: 64, file: rows}")
    assert "says none of the labels 'major. ', 'minor. ', 'no' in its first 3 replies" in line
    assert sorted(content()) == ["manifest.json"]


def test_groups_have_the_draft_and_the_revision(revised):
    groups = read_groups("rows", lab_tokenizer())
    rows = read_kept("rows")
    assert [[one.origin for one in group.members] for group in groups] == [["own", "teacher"]] * 8
    for group, row in zip(groups, rows, strict=True):
        draft, answer = group.members
        assert (draft.text, answer.text) == (row["draft"], row["completion"])
        assert draft.ids[draft.start :] == tuple(row["draft_ids"])
        assert (draft.reward, answer.reward) == (row["versions"][0]["reward"], row["versions"][-1]["reward"])
        assert draft.ids[: draft.start] == answer.ids[: answer.start]
    out = run(TRAIN, "objective=gft", "output=gft", "groups.file=rows", "data.train=null", "data.limit=null",
              command="train")  # fmt: skip
    assert "groups: 8 prompts, 16 answers from rows" in out
    # An objective that compares own answers with an expert's learns from the revision as one.
    run(TRAIN, "objective=irft", "output=irft", "groups.file=rows", "data.train=null", "data.limit=null",
        command="train")  # fmt: skip
    logged = json.loads(Path("irft/metrics.jsonl").read_text().splitlines()[0])
    assert logged["loss"] == pytest.approx(0.6931, abs=1e-3)


def test_groups_need_rewards():
    with pytest.MonkeyPatch.context() as patch:
        writing(patch, lambda row, place, step: "no")
        run("revise={how: reviser, templates: reviser.yaml, max_new_tokens: 64, file: rows}")
    with pytest.raises(BallastError, match="nobody has judged its answers"):
        read_groups("rows", lab_tokenizer())


def test_a_comparison_reads_the_rows(revised):
    from ballast.compare import COMPARE_CHECKS
    from ballast.config.recipe import load_recipe

    compare = "compare={objectives: [sft, dft], rates: [1e-4], seeds: 1, budget: {steps: 1}}"
    task = f"evaluation.tasks=[{{name: t, data: 'lab:test', verifier: '{VERIFIER}'}}]"
    settings = ["model=lab", "data.train=rows", compare, task, "output=matrix"]
    assert load_recipe(None, settings, checks=COMPARE_CHECKS).data.train == ("rows",)


def test_drafts_come_with_the_rows_or_from_elsewhere(revised, monkeypatch):
    rows = read_kept("rows")
    writing(monkeypatch, lambda row, place, step: "no")
    reviser = "revise={how: reviser, templates: reviser.yaml, max_new_tokens: 64, file: out}"
    run(reviser, "revise.draft=completion", "revise.file=given")
    found = read_kept("given")
    assert [row["completion"] for row in found] == [row["completion"] for row in split("train")[:8]]
    assert {row["origin"] for row in found} == {"completion"}
    run(reviser, "revise.draft=rows", "revise.file=other")
    assert [row["draft"] for row in read_kept("other")] == [row["completion"] for row in rows]
    run(f"groups={{verifier: '{VERIFIER}', own: 2, max_new_tokens: 64, file: groups}}", command="sample")
    run(reviser, "revise.draft=groups", "revise.file=sampled")
    own = [group.members[1] for group in read_groups("groups", lab_tokenizer())]
    assert [row["draft"] for row in read_kept("sampled")] == [one.text for one in own]
    assert "has no answer to the prompt of row 9" in refused(reviser, "revise.draft=rows", "data.limit=9")


def test_chat_rows_are_revised_as_chats(tmp_path, monkeypatch):
    from tiny import CHAT_TEMPLATE, char_tokenizer, tiny_model

    tiny_model().save_pretrained("chat")
    char_tokenizer(chat_template=CHAT_TEMPLATE).save_pretrained("chat")
    prompt = [{"role": "system", "content": "s"}, {"role": "user", "content": "1+1"}]
    Path("chat.jsonl").write_text(json.dumps({"prompt": prompt, "answer": "2"}) + "\n")
    asked = []
    writing(monkeypatch, lambda row, place, step: asked.append(row["prompt"]) or "[Minor Revise]\ntwo")
    run("model=chat", "data.train=chat.jsonl", "revise={how: reviser, max_new_tokens: 4, file: rows}")
    assert asked[0][0] == prompt[0]
    assert asked[0][1]["content"].startswith("<task>\n1+1\n</task>")
    (row,) = load_rows("rows")
    assert row["prompt"] == prompt
    assert row["completion"] == [{"role": "assistant", "content": "two"}]


@pytest.mark.parametrize("label", ["verifier", "edit", "none", "difficulty"])
def test_pairs_of_groups_train_a_reviser(label):
    run(f"groups={{verifier: '{VERIFIER}', own: 2, max_new_tokens: 64, file: groups}}", command="sample")
    difficulty = ["revise.reviser=lab"] if label == "difficulty" else []
    out = run("groups.file=groups", f"revise={{how: reviser, templates: reviser.yaml, pairs: p.jsonl, label: {label}}}",
              *difficulty)  # fmt: skip
    rows = [json.loads(line) for line in Path("p.jsonl").read_text().splitlines()]
    summary = json.loads(Path("p.summary.json").read_text())
    assert f"{len(rows)} rows of {summary['pairs']} pairs" in out
    assert sum(summary["labels"].values()) == len(rows)
    said = {"no": "no", "major": "major. ", "minor": "minor. ", None: ""}
    for row in rows:
        assert row["prompt"].endswith(f"=?{row['draft']} check. ")
        better = "" if row["label"] == "no" else row["better"]
        assert row["completion"] == said[row["label"]] + better
    assert (summary["thresholds"] is not None) == (label == "difficulty")
    labels = {"verifier": {"major", "no"}, "none": {None}}.get(label, {"major", "minor", "no"})
    assert {row["label"] for row in rows} <= labels
    assert "is there already" in refused("groups.file=groups", "revise={how: reviser, pairs: p.jsonl}")


def test_pairs_of_preferences(tmp_path):
    rows = [
        {"prompt": f"{n}+1=?", "chosen": f"#{n + 1}", "rejected": f"#{n + n % 2}", "answer": str(n + 1)} for n in (1, 2)
    ]
    Path("p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    base = ("data.train=p.jsonl", "data.limit=null", "revise={how: reviser, templates: reviser.yaml, pairs: out.jsonl}")
    assert "revise.verifier: is required and missing: revise.label asks it" in refused(*base)
    run(*base, f"revise.verifier='{VERIFIER}'")
    made = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert [(row["label"], row["completion"]) for row in made] == [("no", "no"), ("major", "major. #3")]


def test_the_last_answer_counts_and_never_the_best(monkeypatch):
    from ballast.config.recipe import ModelSection
    from ballast.evaluation import Task, evaluate
    from ballast.lab import base_path
    from ballast.models import load_model

    rows = split("test")[:6]
    right = {row["prompt"]: "#" + row["answer"] for row in rows}
    model, tokenizer = load_model(ModelSection(path=str(base_path()))), lab_tokenizer()

    def draft(self, asked, step):
        texts = [right[row["prompt"]] if (place + step) % 3 else "#x" for place, row in asked]
        return [revising.Completion(text, 3, True, ()) for text in texts]

    drafts = [[revising.Completion(right[row["prompt"]] if n % 3 else "#x", 3, True, ())] for n, row in enumerate(rows)]
    monkeypatch.setattr("ballast.evaluation.kinds.generate", lambda *_, **__: drafts)
    monkeypatch.setattr(revising.Writer, "__call__", draft)
    task = {"data": rows, "name": "t", "verifier": VERIFIER, "revise": {"rounds": 1, "templates": "again.yaml"}}
    (found,) = evaluate(model, tokenizer, [task])
    values = {name: one.value for name, one in found.metrics.items()}
    # Drafts 0 and 3 are wrong; at step 2 it is 1 and 4.
    assert values["draft_accuracy"] == values["accuracy"] == pytest.approx(4 / 6)
    assert values["right_to_wrong"] == values["wrong_to_right"] == pytest.approx(2 / 6)
    assert values["accuracy"] == pytest.approx(
        values["draft_accuracy"] - values["right_to_wrong"] + values["wrong_to_right"]
    )
    assert [item["scores"] for item in found.items] == [[1.0], [0.0], [1.0]] * 2
    assert values["spent_tokens"] == 6
    oracle = Task(**{**task, "revise": {"rounds": 2, "templates": "again.yaml", "stop": "verifier", "oracle": True}})
    (found,) = evaluate(model, tokenizer, [oracle])
    assert "accuracy" not in found.metrics
    assert found.metrics["oracle_accuracy"].value == 1.0
    assert found.metrics["right_to_wrong"].value == 0.0


def test_a_draft_is_that_of_the_task_without_revisions():
    from ballast.config.recipe import ModelSection
    from ballast.evaluation import evaluate
    from ballast.lab import base_path
    from ballast.models import load_model

    model, tokenizer = load_model(ModelSection(path=str(base_path()))), lab_tokenizer()
    task = {"data": split("test")[:4], "verifier": VERIFIER, "max_new_tokens": 64, "temperature": 1.0}
    plain, revised = evaluate(
        model,
        tokenizer,
        [{**task, "name": "a"}, {**task, "name": "b", "revise": {"rounds": 1, "templates": "again.yaml"}}],
    )
    assert plain.metrics["accuracy"] == revised.metrics["draft_accuracy"]
    assert [item["completions"][0]["text"] for item in plain.items] == [
        item["versions"][0]["text"] for item in revised.items
    ]


def test_a_reviser_is_measured_from_the_command_line():
    task = (
        f"{{name: t, data: 'lab:test', limit: 2, verifier: '{VERIFIER}', max_new_tokens: 64, "
        "revise: {how: reviser, reviser: lab, templates: reviser.yaml}}"
    )
    done = CliRunner().invoke(app, ["evaluate", "model=lab", "--json", f"evaluation.tasks=[{task}]"])
    assert done.exit_code == 0, (done.output, done.exception)
    (entry,) = json.loads(done.stdout)
    assert entry["tasks"][0]["counts"]["label_unparsed"] == 2
    assert entry["tasks"][0]["settings"]["revise"]["reviser"] == "lab"


def test_where_a_part_is_missing_is_said(revised):
    Path("rows/part-00001.parquet").unlink()
    line = refused("data.train=rows", "data.limit=null", "objective=sft", "output=out", TRAIN, command="train")
    assert "rows: revising has not ended (2 of 3 parts)" in line


@pytest.mark.parametrize("name", ["self-refine", "seft"])
def test_the_recipes_pass_every_check(name, monkeypatch):
    from ballast import pipeline
    from ballast.config.recipe import load_recipe
    from ballast.revise.templates import load_templates

    root = Path(__file__).parent.parent
    monkeypatch.chdir(root)
    without = ["revise.reviser=null", "revise.file=runs/rows"] if name == "seft" else []
    recipe = load_recipe(f"recipes/revise/{name}.yaml", without, checks=pipeline.REVISE_CHECKS)
    assert "{draft} {prompt}" in load_templates(recipe.revise).texts.values()


def test_rows_left_out_by_a_run_of_other_settings_are_gone(revised):
    from ballast.revise.rows import LEFT_OUT, RevisionFolder, Settings, read_settings

    settings = read_settings("rows")
    folder = RevisionFolder("rows", Settings(**{**settings, "ends": tuple(settings["ends"])}))
    rows, counts = next(folder.read())
    folder.write(0, [{**row, "kept": False} for row in rows], counts)
    folder.write(0, [{**row, "kept": True} for row in rows], counts)
    assert not (folder.path / LEFT_OUT / folder.file(0).name).exists()
    assert len(next(folder.read())[0]) == len(rows)


def test_a_sampled_draft_keeps_its_ids_for_its_own_tokenizer_alone(revised):
    from ballast.revise.rows import RevisionFolder, Settings, read_settings

    settings = read_settings("rows")
    folder = RevisionFolder("rows", Settings(**{**settings, "ends": tuple(settings["ends"])}))
    rows, counts = next(folder.read())
    folder.write(0, [{**row, "draft_ids": [5, 6, 1]} for row in rows], counts)
    drafts = [group.members[0] for group in read_groups("rows", lab_tokenizer())][:3]
    assert [draft.ids[draft.start :] for draft in drafts] == [(5, 6, 1)] * 3
    manifest = json.loads(Path("rows/manifest.json").read_text())
    manifest["settings"]["tokenizer"] = "another"
    Path("rows/manifest.json").write_text(json.dumps(manifest))
    drafts = [group.members[0] for group in read_groups("rows", lab_tokenizer())][:3]
    assert [lab_tokenizer().decode(draft.ids[draft.start : -1]) for draft in drafts] == [draft.text for draft in drafts]


def test_the_reviser_that_a_task_names_revises(monkeypatch):
    from ballast.config.recipe import ModelSection
    from ballast.evaluation import evaluate
    from ballast.lab import base_path
    from ballast.models import load_model

    model, tokenizer = load_model(ModelSection(path=str(base_path()))), lab_tokenizer()
    other, asked = load_model(ModelSection(path=str(base_path()))), []
    monkeypatch.setattr(
        revising.Writer,
        "__call__",
        lambda self, rows, step: (
            asked.append((self.model, self.options.temperature))
            or [revising.Completion("no", 2, True, ()) for _ in rows]
        ),
    )
    task = {"data": split("test")[:2], "name": "t", "verifier": VERIFIER, "max_new_tokens": 64, "temperature": 1.0}
    loop = {"how": "reviser", "reviser": "r", "templates": "reviser.yaml"}
    (found,) = evaluate(model, tokenizer, [{**task, "revise": loop}], revisers={"r": (other, tokenizer)})
    # A reviser is greedy, whatever its drafts are.
    assert asked == [(other, 0.0)]
    assert found.counts["label_no"] == 2
    with pytest.raises(BallastError, match=r"revise\.reviser r is not given"):
        evaluate(model, tokenizer, [{**task, "revise": loop}])
