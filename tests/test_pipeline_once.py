"""What a command reads, hashes and verifies: each thing once, however many ask for it."""

import json
from collections import Counter
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ballast.cli import app
from ballast.config.recipe import Recipe
from ballast.pipeline import run_evaluate, run_train
from rl_tools import ROWS, tiny_policy, tiny_tokenizer
from tiny import char_tokenizer, tiny_model

SUMS = [{"prompt": f"{i}+{i}=", "completion": str(2 * i), "answer": str(2 * i)} for i in range(8)]
TASKS = [
    {"name": "sums", "data": "task.jsonl", "max_new_tokens": 3, "base_kl": True},
    {
        "name": "ready",
        "kind": "readiness",
        "data": "task.jsonl",
        "max_new_tokens": 3,
        "group": 2,
        "demonstrations": "data.train",
        "forgetting": "texts.jsonl",
    },
]
RECIPE = {
    "model": "model",
    "data": {"train": "rows.jsonl", "eval": "held_out.jsonl"},
    "objective": "prift-mass",
    "reference": {"cache": "cache"},
    "training": {"max_steps": 1, "report_to": "none"},
    "evaluation": {"tasks": TASKS},
    "output": "out",
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, seed in (("model", 1), ("other", 2)):
        tiny_model(seed).save_pretrained(name)
        char_tokenizer().save_pretrained(name)
    for name, rows in (("rows", SUMS), ("held_out", SUMS[:2]), ("task", SUMS[:3]), ("texts", [{"text": "hello"}])):
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("recipe.json").write_text(json.dumps(RECIPE))
    return tmp_path


@pytest.fixture
def counted(monkeypatch):
    """Counts files read by name, models hashed, and parts of caches verified."""
    from ballast.data import load
    from ballast.reference import cache, fingerprint, writer

    found = Counter()

    def count(module, function, name):
        real = getattr(module, function)

        def counting(*arguments, **options):
            found[name(*arguments, **options)] += 1
            return real(*arguments, **options)

        monkeypatch.setattr(module, function, counting)

    count(load, "read_file", lambda path, *_, **__: Path(path).name)
    count(fingerprint, "model_fingerprint", lambda *_, sample=None, **__: "weights" if sample is None else "sample")
    for module in (writer, cache):
        count(module, "verify_shard", lambda _, shard, **__: shard.file)
    return found


def run(*words):
    done = CliRunner().invoke(app, [*words])
    assert done.exit_code == 0, (done.output, done.exception)


EVERY_FILE = {"rows.jsonl": 1, "held_out.jsonl": 1, "task.jsonl": 1, "texts.jsonl": 1}
OF_TASKS = {"rows.jsonl": 1, "task.jsonl": 1, "texts.jsonl": 1}


def test_train_reads_every_file_and_hashes_and_verifies_once(folder, counted):
    run("score", "recipe.json")
    assert counted == {"rows.jsonl": 1, "held_out.jsonl": 1, "weights": 1}  # the cache is made, nothing to verify
    counted.clear()
    run("train", "recipe.json")
    assert counted == {**EVERY_FILE, "weights": 1, "sample": 1, "shard-00000.safetensors": 1}


def test_train_from_python_does_too(folder, counted):
    run_train(Recipe.model_validate(RECIPE), say=lambda _: None, progress=False)
    assert counted == {**EVERY_FILE, "weights": 1, "sample": 1}


def test_a_new_adapter_is_no_reason_to_hash_the_weights_again(folder, counted):
    run("train", "recipe.json", "model.lora={r: 2}")
    assert counted == {**EVERY_FILE, "weights": 1, "sample": 1}


def test_an_adapter_that_moves_the_start_is(folder, counted):
    done = CliRunner().invoke(app, ["train", "recipe.json", "model.lora={r: 2, init_lora_weights: false}"])
    assert done.exit_code == 2
    assert "this cache does not belong to this run: it was scored by another model" in done.stderr
    assert counted["weights"] == 2


def test_evaluate_reads_the_tasks_once_for_all_models(folder, counted):
    run("evaluate", "recipe.json", "--model", "model", "--model", "other")
    assert counted == OF_TASKS
    counted.clear()
    run_evaluate(Recipe.model_validate(RECIPE), paths=("model", "other"), say=lambda _: None)
    assert counted == OF_TASKS


def test_evaluate_loads_the_base_model_once_for_all_models(folder, monkeypatch):
    from ballast import models

    loaded, real = [], models.load_model
    monkeypatch.setattr(
        models, "load_model", lambda section, **given: loaded.append(section.path) or real(section, **given)
    )
    run("evaluate", "recipe.json", "--model", "other", "--model", "model")
    assert loaded == ["other", "model", "model"]


def test_rl_reads_every_file_once(folder, counted):
    tiny_policy().save_pretrained("policy")
    tiny_tokenizer().save_pretrained("policy")
    Path("prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    settings = "{verifier: exact, steps: 1, prompts: 2, group: 4, max_new_tokens: 2}"
    task = "{name: held out, data: prompts.jsonl, max_new_tokens: 2, base_kl: true}"
    run("rl", "model=policy", "data.train=prompts.jsonl", f"rl={settings}", f"evaluation.tasks=[{task}]", "output=rl")
    assert counted == {"prompts.jsonl": 1}


def test_stored_groups_are_read_once(folder, monkeypatch):
    from ballast.groups import store

    groups = "{verifier: exact, own: 2, max_new_tokens: 2, file: groups}"
    settings = ("model=model", "data.train=rows.jsonl", f"groups={groups}")
    run("sample", *settings)
    read, real = [], store._from_parquet
    monkeypatch.setattr(store, "_from_parquet", lambda file: read.append(file.name) or real(file))
    run("train", *settings, "objective=gft", "training={max_steps: 1, report_to: none}", "output=out")
    assert read == ["part-00000.parquet"]


def test_a_comparison_reads_hashes_and_verifies_once_a_run(folder, counted):
    compare = {"objectives": ["prift-mass"], "rates": [1e-3], "seeds": 2, "budget": {"steps": 1}}
    kept = {key: value for key, value in RECIPE.items() if key not in ("objective", "reference", "training")}
    Path("compare.json").write_text(json.dumps({**kept, "training": {"report_to": "none"}, "compare": compare}))
    run("compare", "compare.json", "--jobs", "1")
    # The first run trains on what the checks, the scores and the base model's measurements were made of.
    assert counted.pop("weights") == 1 + 2
    assert counted.pop("shard-00000.safetensors") == 2
    # The report shows the tokens of some rows.
    assert counted == {**dict.fromkeys(EVERY_FILE, 2), "rows.jsonl": 2 + 1}


def test_what_was_read_is_read_again_by_the_next_command(folder, counted):
    for _ in range(2):
        run("evaluate", "recipe.json", "--model", "model")
    assert counted["task.jsonl"] == 2
