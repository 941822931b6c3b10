"""`ballast evaluate --readiness`: the task that is made of a recipe, what is printed, bad input."""

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ballast.cli import app
from ballast.config.recipe import DataSection, Recipe
from ballast.evaluation import Task
from ballast.pipeline.evaluate import with_readiness
from ballast.pipeline.sources import read_source
from tiny import char_tokenizer, tiny_model

SUMS = [{"prompt": f"{a}+{b}=", "completion": f"{a + b}!", "answer": str(a + b)} for a in range(3) for b in range(3)]
TEXTS = [{"text": "hello there"}, {"text": "you"}]

RECIPE = """\
model: model
data: {train: taught.jsonl}
evaluation:
  tasks:
    - {name: sums, data: rows.jsonl, limit: 4, max_new_tokens: 3}
    - {kind: nll, name: texts, data: texts.jsonl}
"""


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("readiness")
    for name, seed in (("model", 1), ("tuned", 2)):
        tiny_model(seed, initializer_range=0.2).save_pretrained(folder / name)
        char_tokenizer(chat_template="{% for m in messages %}{{ m['content'] }}{% endfor %}").save_pretrained(
            folder / name
        )
    for name, rows in (("rows", SUMS), ("taught", SUMS), ("texts", TEXTS)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    turns = [{"role": "user", "content": "1+1="}, {"role": "assistant", "content": "2"}]
    (folder / "chat.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    (folder / "recipe.yaml").write_text(RECIPE)
    here = Path.cwd()
    os.chdir(folder)
    yield folder
    os.chdir(here)


def run(*words):
    return CliRunner().invoke(app, ["evaluate", *words])


def test_the_command_makes_a_task_of_the_recipe(workspace):
    done = run("recipe.yaml", "--readiness", "--group", "4", "--samples", "5", "--model", "tuned", "--json")
    assert done.exit_code == 0, done.output
    (task,) = json.loads(done.stdout)[0]["tasks"]
    assert (task["kind"], task["settings"]["samples"], task["settings"]["group"]) == ("readiness", 5, 4)
    sources = {name: task["settings"][name] for name in ("data", "demonstrations", "forgetting")}
    assert sources == {"data": "rows.jsonl", "demonstrations": "data.train", "forgetting": "texts.jsonl"}
    assert task["counts"] | {"budget_tokens": 60, "demonstrations_rows": 4, "forgetting_rows": 2} == task["counts"]
    assert task["metrics"]["base_kl"]["value"] > 0
    assert task["metrics"]["demonstrations_kl"]["value"] > 0


def test_texts_are_those_of_the_first_task_that_reads_texts(workspace):
    task = {"kind": "nll", "name": "own", "data": "rows.jsonl"}
    renamed = {"kind": "nll", "name": "renamed", "data": "rows.jsonl", "columns": {"text": "prompt"}}
    of_split = {"kind": "nll", "name": "split", "data": "taught.jsonl", "split": "train"}
    texts = {"kind": "nll", "name": "texts", "data": "texts.jsonl"}

    def forgetting(*others):
        tasks = [Task(**one) for one in (*others, {"name": "sums", "data": "rows.jsonl"})]
        recipe = Recipe.model_validate({"model": "model", "evaluation": {"tasks": tasks}})
        (made,) = with_readiness(recipe).evaluation.tasks
        return made.settings().get("forgetting")

    assert forgetting(task, renamed, of_split, texts) == "texts.jsonl"
    assert forgetting({**texts, "split": "train"}) is None
    assert forgetting({**texts, "columns": {"text": "text"}}) is None
    assert forgetting(task) is None


def test_a_task_that_is_made_asks_as_the_task_it_is_made_of():
    given = {
        "data": "rows.jsonl",
        "verifier": "number",
        "verifier_seconds": 3.0,
        "max_new_tokens": 5,
        "temperature": 0.7,
        "top_p": 0.9,
        "limit": 3,
        "split": "train",
        "columns": {"prompt": "question"},
        "seed": 7,
        "batch_tokens": 100,
    }

    def made(model="model", **values):
        tasks = [{"name": "sums", "samples": 2, **given, **values}]
        recipe = Recipe.model_validate({"model": model, "evaluation": {"tasks": tasks}})
        (found,) = with_readiness(recipe).evaluation.tasks
        return found.settings()

    assert made() | {"kind": "readiness", "name": "readiness", "samples": 8, **given} == made()
    # A greedy task does not make readiness greedy.
    assert made(samples=1, temperature=0.0)["temperature"] == 1.0
    assert made(model=None)["base_kl"] is False


def test_the_command_says_what_was_spent_and_what_it_means(workspace):
    done = run("recipe.yaml", "--readiness")
    assert done.exit_code == 0, done.output
    words = " ".join(done.stdout.split())
    assert "base: 4 prompts × 8 samples × at most 3 tokens" in words
    assert "base: in groups of 8, 0% have mixed rewards, and so a gradient in GRPO; in 100% no answer is right" in words
    assert "mixed@8" in words


def test_a_task_of_the_kind_is_taken_as_it_is(workspace):
    tasks = "evaluation.tasks=[{kind: readiness, name: own, data: rows.jsonl, max_new_tokens: 2, limit: 2, group: 2}]"
    done = run("model=model", tasks, "--readiness", "--json")
    assert done.exit_code == 0, done.output
    (task,) = json.loads(done.stdout)[0]["tasks"]
    assert (task["name"], task["settings"]["samples"]) == ("own", 2)
    over = json.loads(run("model=model", tasks, "--readiness", "--group", "3", "--json").stdout)
    assert (over[0]["tasks"][0]["settings"]["group"], over[0]["tasks"][0]["settings"]["samples"]) == (3, 3)
    # The start against itself.
    assert task["metrics"]["base_kl"]["value"] == pytest.approx(0, abs=1e-6)


def test_conversations_are_demonstrations_too(workspace):
    (row,) = read_source("data.train", DataSection(train=("chat.jsonl",)))
    assert [[turn["content"] for turn in row[name]] for name in ("prompt", "completion")] == [["1+1="], ["2"]]
    done = run("recipe.yaml", "data.train=chat.jsonl", "--readiness", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)[0]["tasks"][0]["counts"]["demonstrations_rows"] == 1


def test_a_dry_run_shows_the_task(workspace):
    done = run("recipe.yaml", "--readiness", "--group", "4", "--dry-run")
    assert done.exit_code == 0
    assert "kind: readiness" in done.stdout
    assert "group: 4" in done.stdout


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("recipe.yaml", "--group", "4"), "--group and --samples belong to --readiness"),
        (("recipe.yaml", "--samples", "4"), "--group and --samples belong to --readiness"),
        (("recipe.yaml", "--readiness", "--group", "1"), "a group of one answer"),
        (("recipe.yaml", "--readiness", "--samples", "2"), "pass@8 cannot be estimated from 2 samples"),
        (("recipe.yaml", "--readiness", "evaluation.tasks=[{kind: nll, data: texts.jsonl}]"), "none generates answers"),
        (("model=model", "--readiness"), "evaluation.tasks"),
        (("recipe.yaml", "--readiness", "data.train=texts.jsonl"), "demonstrations: row 1: no 'prompt'"),
        (("recipe.yaml", "--readiness", "data.train=absent.jsonl"), "absent.jsonl"),
        (("recipe.yaml", "evaluation.tasks.0.group=4"), "group: is an option of kind readiness"),
        (
            ("recipe.yaml", "evaluation.tasks=[{kind: readiness, data: rows.jsonl, forgetting: gone.jsonl}]"),
            "gone.jsonl: no such file",
        ),
        (
            ("model=model", "evaluation.tasks=[{kind: readiness, data: rows.jsonl, demonstrations: data.train}]"),
            "it names none",
        ),
        (("recipe.yaml", "evaluation.tasks.0.kind=readyness"), "did you mean 'readiness'"),
    ],
)
def test_bad_input_is_one_line(workspace, words, expected):
    done = run(*words)
    assert done.exit_code == 2, done.output
    assert expected in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
