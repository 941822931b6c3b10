"""Input that cannot be used: one line on stderr that names the place, exit code 2, and nothing left behind."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

import bad_input
from bad_input import check_refused, edit_json, refused, write_rows
from ballast.cli import app
from tiny import char_tokenizer, tiny_model

ROWS = [{"prompt": f"{i}+{i + 1}=", "completion": str(2 * i + 1)} for i in range(12)]


@pytest.fixture(scope="module")
def prototype(tmp_path_factory) -> Path:
    """A folder with a model, another model, demonstrations, and a cache of the first: each case works on a copy."""
    folder = tmp_path_factory.mktemp("prototype")
    for name, seed in (("model", 0), ("other", 1)):
        tiny_model(seed=seed).save_pretrained(folder / name)
        char_tokenizer().save_pretrained(folder / name)
    write_rows(folder / "rows.jsonl", ROWS)
    write_rows(folder / "task.jsonl", [{"prompt": "1+1=", "answer": "2"}])
    here = Path.cwd()
    os.chdir(folder)
    try:
        done = CliRunner().invoke(app, ["score", "model=model", "data.train=rows.jsonl", "reference.cache=cache"])
        assert done.exit_code == 0, done.output
    finally:
        os.chdir(here)
    return folder


@pytest.fixture
def workspace(prototype, tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "work"
    shutil.copytree(prototype, folder)
    monkeypatch.chdir(folder)
    return folder


class Case(bad_input.Case):
    base = ("model=model", "data.train=rows.jsonl", "objective=prift-mass", "output=out")


def edit(path: str, change: Callable[[bytes], bytes]) -> Callable[[], object]:
    return lambda: Path(path).write_bytes(change(Path(path).read_bytes()))


def data(text: str, path: str = "rows.jsonl") -> Callable[[], object]:
    return lambda: Path(path).write_text(text)


def rows(*changed: dict) -> Callable[[], object]:
    return lambda: write_rows(Path("rows.jsonl"), list(changed))


def flip_last_byte(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


def only_pickled() -> None:
    Path("model/model.safetensors").unlink()
    Path("model/pytorch_model.bin").write_bytes(b"\x80")


def larger_tokenizer() -> None:
    letters = "".join(chr(0x3B1 + i) for i in range(20))
    char_tokenizer(characters=letters + "0123456789+=" + "".join(chr(0x5D0 + i) for i in range(200))).save_pretrained(
        "model"
    )


def no_special_tokens() -> None:
    tokenizer = char_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token = None
    tokenizer.save_pretrained("model")


def small_model() -> None:
    tiny_model(vocab=50).save_pretrained("small")


def lacking_weight() -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file("model/model.safetensors")
    weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, "model/model.safetensors", metadata={"format": "pt"})


def task(**settings) -> str:
    return f"evaluation.tasks=[{json.dumps({'data': 'task.jsonl', **settings})}]"


def weights(*values):
    """Return a change of the rows that gives the first of them these weights."""
    return rows(*({**row, "weight": value} for row, value in zip(ROWS, values, strict=False)))


CHAT = {"messages": [{"role": "user", "content": "1+1="}, {"role": "assistant", "content": "2"}]}
CACHED = ("reference.cache=cache",)
WEIGHTED = ("objective=weighted-sft",)
STREAM = ("data.streaming=true", "training.max_steps=1")
SHARD = "cache/shard-00000.safetensors"

CASES = [
    # rows
    Case("missing column", "data.train (rows.jsonl): no column 'completion'", break_it=rows({"prompt": "1+1="})),
    Case("empty file", "data.train: rows.jsonl: the file is empty", break_it=data("")),
    Case(
        "invalid JSON",
        "rows.jsonl: line 2: invalid JSON",
        break_it=data('{"prompt": "1", "completion": "2"}\n{"prompt": \n'),
    ),
    Case("wrong type", "rows.jsonl: line 3", break_it=rows(*ROWS[:2], {"prompt": 3, "completion": "4"})),
    Case("row is no object", "rows.jsonl", break_it=data("[1, 2]\n[3]\n")),
    Case("not UTF-8", "rows.jsonl", break_it=edit("rows.jsonl", lambda content: content + b"\xff\xfe\n")),
    Case("no trained token", "trained token", break_it=rows({"input_ids": [5, 6, 7], "labels": [-100] * 3})),
    Case("over-long rows", "max_length=3", ("training.max_length=3",)),
    Case("token beyond the model", "token id 900", break_it=rows({"input_ids": [5, 6, 900], "labels": [5, 6, 900]})),
    Case("no such file", "data.train: absent.jsonl: no such file", ("data.train=absent.jsonl",)),
    Case("no such lab split", "lab:trian", ("data.train=lab:trian",)),
    Case("no such column to map", "question", ("data.columns={prompt: question, completion: completion}",)),
    Case("split of a file", "split", ("data.split=test",)),
    Case("held-out rows missing", "data.eval", ("data.eval=absent.jsonl",)),
    Case("chat without template", "chat template", break_it=rows(CHAT)),
    Case("assistant mask on plain rows", "assistant_only_loss", ("training.assistant_only_loss=true",)),
    # model
    Case("no such folder", "model: ./absent: no such folder", ("model=./absent",)),
    Case("hub model offline", "not to be had from the hub", ("model=nobody/nothing",)),
    Case("no configuration", "config.json", break_it=lambda: Path("model/config.json").unlink()),
    Case("broken configuration", "model", break_it=data("{", "model/config.json")),
    Case("unknown model type", "model", break_it=edit_json("model/config.json", model_type="lama")),
    Case("not a causal model", "causal", break_it=edit_json("model/config.json", model_type="vit")),
    Case("pickled weights", "pickled", break_it=only_pickled),
    Case("no weights", "no weights", break_it=lambda: Path("model/model.safetensors").unlink()),
    Case("truncated weights", "model", break_it=edit("model/model.safetensors", lambda content: content[:500])),
    Case("lacking weight", "up_proj", break_it=lacking_weight),
    Case("tokenizer missing", "tokenizer", break_it=lambda: Path("model/tokenizer.json").unlink()),
    Case("vocabulary mismatch", "ids up to", break_it=larger_tokenizer),
    Case("neither pad nor eos token", "eos", break_it=no_special_tokens),
    Case("adapter absent", "model.adapter: ./absent: no such folder", ("model.adapter=./absent",)),
    Case("misspelt LoRA key", "did you mean 'lora_alpha'", ("model.lora={r: 4, lora_alhpa: 8}",)),
    Case("adapter on the head", "lm_head", ("model.lora={r: 4, target_modules: [lm_head]}",)),
    Case("LoRA of no module", "nowhere", ("model.lora={r: 4, target_modules: [nowhere]}",)),
    # reference
    Case("corrupt cache", "shard-00000", CACHED, edit(SHARD, flip_last_byte)),
    Case("truncated cache", "shard-00000", CACHED, edit(SHARD, lambda content: content[:-20])),
    Case("edited manifest", "manifest.json", CACHED, edit_json("cache/manifest.json", rows=3)),
    Case("cache of another model", "another model", ("model=other", *CACHED)),
    Case("cache in another dtype", "dtype", ("model.dtype=bfloat16", *CACHED)),
    Case("cache is a file", "is a file", ("reference.cache=rows.jsonl",)),
    Case("cache is another folder", "model", ("reference.cache=model",)),
    Case("cache in the output", "inside the output", ("reference.cache=out/cache",)),
    Case("score without a cache", "reference.cache", command="score"),
    Case("KL from a cache", "'kl'", ("objective=eksft", *CACHED)),
    Case("adapter-off without adapter", "adapter", ("reference=adapter-off",)),
    Case("reference model absent", "reference.model", ("reference.model=./absent",)),
    Case("reference of another vocabulary", "vocabulary", ("reference.model=small",), small_model),
    Case("two references", "contradict", ("reference={use: model, cache: cache}",)),
    Case(
        "packing that cuts cached rows",
        "wrapped",
        ("training.packing=true", "training.packing_strategy=wrapped", *CACHED),
    ),
    # objective
    Case("misspelt objective", "did you mean 'prift-mass'", ("objective=prift-mas",)),
    Case("misspelt option", "did you mean 'threshold'", ("objective.treshold=0.5",)),
    Case("threshold out of range", "[0, 1]", ("objective.threshold=1.5",)),
    Case("threshold is text", "threshold", ("objective.threshold=high",)),
    Case("objective not importable", "nowhere", ("objective=nowhere:Thing",)),
    Case("objective of another class", "subclass", ("objective=json:JSONDecoder",)),
    Case("no objective", "objective: is required", without=("objective",)),
    # what objectives read beyond the rows
    Case("no column of weights", "no column 'weight', which the objective reads", WEIGHTED),
    Case("a weight is text", "row 2: 'weight' is 'high'", WEIGHTED, weights(1, "high", 0.5)),
    Case("a weight is missing", "row 3: 'weight' is missing", WEIGHTED, weights(1, 2, None)),
    Case(
        "weights of another length",
        "row 1: 'weight' has 5 values; the row has 1 trained turns",
        WEIGHTED,
        weights([1] * 5),
    ),
    Case("no policy's column", "no column 'b', which", ("objective={name: pear, behaviour: column, column: b}",)),
    Case("column that is not read", "has no 'column', it would be ignored", ("objective={name: pear, column: b}",)),
    Case(
        "psft without refresh", "objective.refresh: refresh must lie in [1, ∞]", ("objective={name: psft, refresh: 0}",)
    ),
    Case("psft that never refreshes", "refresh must be a finite number", ("objective={name: psft, refresh: null}",)),
    Case("half a step", "objective.refresh: refresh must be a whole number", ("objective={name: psft, refresh: 2.5}",)),
    Case("more likely tokens than there are", "exceeds the vocabulary of", ("objective={name: eaft, k: 100000}",)),
    Case("temperature 0", "objective.beta: beta must lie in [0.01, 100]", ("objective={name: gem, beta: 0}",)),
    Case("teacher's cache of another vocabulary", "vocabulary", ("reference.model=small", *CACHED), small_model),
    Case("cache that is not the teacher's", "another model", ("reference.model=other", *CACHED)),
    Case("teacher for a divergence", "'kl'", ("objective=eksft", "reference.model=other", *CACHED)),
    # training
    Case("misspelt setting", "did you mean 'learning_rate'", ("training.lerning_rate=1e-5",)),
    Case("setting is text", "training.learning_rate", ("training.learning_rate=small",)),
    Case("negative learning rate", "greater than or equal to 0; got -1e-05", ("training.learning_rate=-1e-5",)),
    Case("learning rate not finite", "finite", ("training.learning_rate=.nan",)),
    Case("unknown scheduler", "did you mean 'cosine'", ("training.lr_scheduler_type=cosinee",)),
    Case("no epochs", "num_train_epochs", ("training.num_train_epochs=0",)),
    Case("seed in the wrong place", "`seed` at the top", ("training.seed=1",)),
    Case("label smoothing", "label_smoothing_factor", ("training.label_smoothing_factor=0.1",)),
    Case("loss type", "objective='dft'", ("training.loss_type=dft",)),
    Case("packing without a length", "max_length", ("training.packing=true", "training.max_length=null")),
    # evaluation
    Case("unknown verifier", "did you mean 'exact'", (task(verifier="exakt"),)),
    Case("verifier not importable", "nowhere", (task(verifier="nowhere:verify"),)),
    Case("task option of another type", "tasks.0.samples: should be", (task(samples="eight"),)),
    Case("answers alike", "temperature", (task(samples=4),)),
    Case("task option misspelt", "did you mean 'verifier'", (task(verifyer="exact"),)),
    Case("task data missing", "evaluation.tasks.0", ("evaluation.tasks=[{data: absent.jsonl}]",)),
    Case("rows without an answer", "answer", ("evaluation.tasks=[{data: rows.jsonl, verifier: exact}]",)),
    Case(
        "code without permission",
        "allow_code_execution",
        (task(kind="code"),),
        data('{"prompt": "def f():\\n", "test": "def check(f): pass", "entry_point": "f"}\n', "task.jsonl"),
    ),
    Case("no room for the answer", "exceeds the model's context", (task(max_new_tokens=200), "evaluation.base=false")),
    Case("nothing to evaluate", "evaluation.tasks", command="evaluate"),
    Case("model to evaluate missing", "absent", (task(),), command="evaluate", flags=("--model", "./absent")),
    # streams
    Case("stream without an end", "data.streaming: a stream has no known end", STREAM[:1]),
    Case("stream to be packed", "training.packing: packing needs the lengths", (*STREAM, "training.packing=true")),
    Case("stream in another order", "shuffle_buffer shuffles", (*STREAM, "training.shuffle_dataset=true")),
    Case(
        "stream by length", "no sampler reads a stream", (*STREAM, "training.train_sampling_strategy=group_by_length")
    ),
    Case(
        "stream in other processes", "training.dataloader_num_workers", (*STREAM, "training.dataloader_num_workers=2")
    ),
    Case("buffer of no stream", "shuffle_buffer is of a stream", ("data.shuffle_buffer=5",)),
    Case("negative buffer", "data.shuffle_buffer", (*STREAM, "data.shuffle_buffer=-1")),
    Case(
        "stream of prompts",
        "sampled for prompts by their number",
        (*STREAM, "objective=gft", "groups={own: 2, verifier: exact}"),
    ),
    Case(
        "stream of an array",
        "an array ends only with its file",
        (*STREAM, "data.train=rows.json"),
        data(json.dumps(ROWS), "rows.json"),
    ),
    Case(
        "stream to be measured",
        "all training rows are needed here",
        (*STREAM, task(kind="readiness", demonstrations="data.train")),
    ),
    Case("stream to be scored", "all training rows are needed here", (*STREAM, *CACHED), command="score"),
    Case("stream without its cache", "no such folder: run `ballast score`", (*STREAM, "reference.cache=absent")),
    Case(
        "stream of rows that were not scored",
        "has no values for 1 of the first 1 rows",
        (*STREAM, *CACHED),
        rows({"prompt": "9+9=", "completion": "18"}),
    ),
    Case("stream of a broken row", "rows.jsonl: line 2", STREAM, rows(ROWS[0], {"prompt": 3, "completion": "4"})),
    Case("stream of nothing to train", "trained token", STREAM, rows({"input_ids": [5, 6], "labels": [-100] * 2})),
    # recipe and output
    Case("misspelt top-level key", "did you mean 'model'", ("modle=lab",)),
    Case("override without =", "'training.max_steps'", ("training.max_steps",)),
    Case("override through a value", "has no keys", ("seed=1", "seed.value=1")),
    Case("no output", "output: is required", without=("output",)),
    Case("resume without a checkpoint", "no checkpoint", flags=("--resume",)),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input_is_refused_in_one_line_and_leaves_nothing(case, workspace):
    check_refused(case, workspace)


def test_the_recipe_that_the_cases_break_works(workspace):
    settings = (*CACHED, "training.max_steps=1", "training.report_to=none", task(max_new_tokens=2))
    done = CliRunner().invoke(app, Case("none", "", settings).arguments())
    assert done.exit_code == 0, done.output
    assert json.loads((workspace / "out" / "run.json").read_text())["status"] == "finished"


def test_a_missing_pad_token_is_handled(workspace):
    tokenizer = char_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained("model")
    done = CliRunner().invoke(app, Case("", "", ("training.max_steps=1",)).arguments())
    assert done.exit_code == 0, done.output


def test_two_problems_are_two_lines(workspace):
    lines = refused(Case("", "", ("training.lerning_rate=1", "data.train=absent.jsonl", "model=./absent")).arguments())
    assert len(lines) == 3
    assert all(line.startswith("command line: ") for line in lines)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model: model\nseed: 1\nseed: 2\n", "recipe.yaml:3: seed: key given twice"),
        ("model: [model\noutput: out\n", "recipe.yaml:2: not valid YAML"),
        (
            "model: model\ndata: {train: rows.jsonl}\nobjective: sft\noutput: out\ntraining:\n  bf17: true\n",
            "recipe.yaml:6",
        ),
        ("- model\n", "recipe.yaml: a recipe is a mapping"),
    ],
)
def test_bad_recipe_files_are_refused_with_their_line(workspace, text, expected):
    (workspace / "recipe.yaml").write_text(text)
    lines = refused(["train", "recipe.yaml"])
    assert len(lines) == 1
    assert lines[0].startswith(expected)


def test_a_recipe_file_that_is_missing_is_named(workspace):
    assert refused(["train", "absent.yaml"]) == ["absent.yaml: cannot read the recipe: No such file or directory"]


@pytest.mark.parametrize("make", [lambda out: (out.mkdir(), (out / "old").touch()), lambda out: out.touch()])
def test_an_output_that_is_there_is_refused_and_left_alone(workspace, make):
    make(workspace / "out")
    before = sorted(workspace.rglob("*"))
    lines = refused(Case("", "").arguments())
    assert len(lines) == 1
    assert "output: out: is" in lines[0]
    assert sorted(workspace.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train", "objective=prift-mas", "model=model", "data.train=rows.jsonl", "output=out"], "prift-mass"),
        (["objectives", "prift-mas"], "did you mean 'prift-mass'"),
        (["score", "model=other", "data.train=rows.jsonl", "reference.cache=cache"], "another model"),
    ],
)
def test_a_real_process_says_one_line_and_exits_with_2(workspace, arguments, expected):
    done = subprocess.run(
        [sys.executable, "-m", "ballast.cli", *arguments], capture_output=True, text=True, timeout=120, cwd=workspace
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert expected in done.stderr
    assert not (workspace / "out").exists()
