"""Commands whose answers an engine samples: what they leave, what they go on with, and what they refuse."""

import contextlib
import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bad_input import refused
from ballast.cli import app
from ballast.compare import Plan
from ballast.compare.run import write_summary
from ballast.errors import BallastError
from ballast.pipeline.engines import COPY
from ballast.records import write as records
from ballast.records.folder import Store
from compare_tools import matrix, run_quietly, write_inputs
from fake_server import FakeServer, Reply
from tiny import char_tokenizer, tiny_model

TASK = {"name": "test", "data": "test.jsonl", "verifier": "compare_tools:liking", "max_new_tokens": 3}
SAMPLES = {"samples": 2, "temperature": 1.0}


@pytest.fixture(scope="module")
def prototype(tmp_path_factory):
    folder = tmp_path_factory.mktemp("engines")
    write_inputs(folder)
    shutil.copytree(folder / "model", folder / "other")
    return folder


@pytest.fixture(autouse=True)
def _here(prototype, tmp_path, monkeypatch):
    for entry in prototype.iterdir():
        (shutil.copytree if entry.is_dir() else shutil.copy)(entry, tmp_path / entry.name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def server():
    with FakeServer(tiny_model(), char_tokenizer()) as one:
        yield one


@pytest.fixture
def managed(monkeypatch):
    """Start servers in this process: each serves the model of its folder; returns the folders."""
    from transformers import AutoModelForCausalLM

    served = []

    class Started:
        def __init__(self, fake):
            self.base_url, self.model = fake.base_url, fake.name

        def wait(self):
            pass

        def ended(self, patience=0.0):
            return None

    @contextlib.contextmanager
    def start(options, folder, dtype):
        assert dtype == "float32"
        served.append(folder)
        model = AutoModelForCausalLM.from_pretrained(folder)
        with FakeServer(model, char_tokenizer(), name=f"ballast-{len(served)}") as fake:
            yield Started(fake)

    monkeypatch.setattr("ballast.engines.vllm.served", start)
    monkeypatch.setattr("ballast.engines.server.command_problem", lambda options: None)
    return served


def ballast(*arguments):
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == 0, (done.output, done.exception)
    return " ".join(done.stdout.split())


def vllm(server, **options):
    return f"engine={json.dumps({'kind': 'vllm', 'base_url': server.base_url, 'retries': 0, **options})}"


def text(server, **options):
    given = {"kind": "openai", "base_url": server.base_url, "model": "tiny", "retries": 0}
    return f"engine={json.dumps(given | options)}"


def tasks(**changes):
    return f"evaluation.tasks={json.dumps([TASK | changes])}"


def test_evaluate_finds_the_greedy_answers_of_our_own_loop_and_says_who_sampled(server):
    ballast("evaluate", "model=model", tasks(entropy=True), "--items", "own")
    said = ballast("evaluate", "model=model", tasks(entropy=True), vllm(server), "--items", "vllm")
    items = [records.read_jsonl(Path(name, "base", "test.jsonl")) for name in ("own", "vllm")]
    assert items[0] == items[1]
    assert "engine: vllm 9.9 (tiny): 9 requests" in said
    assert "nats from the model's" in said
    found = json.loads(ballast_json("evaluate", "model=model", tasks(**SAMPLES), vllm(server), "--json"))
    engine = found[0]["engine"]
    assert engine["kind"] == "vllm"
    assert engine["requests"] == 4 + 5 * 2
    assert 0 <= engine["checked"] < 1e-4
    assert json.loads(ballast_json("evaluate", "model=model", tasks(), "--json"))[0]["engine"]["kind"] == "transformers"


def ballast_json(*arguments):
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == 0, (done.output, done.exception)
    return done.stdout


def test_readiness_samples_by_the_engine_and_measures_entropy_of_its_ids(server):
    given = ("model=model", "data.train=rows.jsonl", tasks(), vllm(server))
    said = ballast("evaluate", "--readiness", "--group", "2", *given)
    assert "engine: vllm 9.9 (tiny): 14 requests" in said
    assert "entropy" in said


def test_text_of_a_server_is_measured_with_its_cost(server):
    said = ballast("evaluate", "model=model", tasks(), text(server, price={"prompt": 1e6, "answer": 0.0}))
    assert "engine: openai (tiny): 9 requests" in said
    assert "cost " in said
    assert "100% of the greedy answers that were checked" in said


SAMPLE = (
    *("sample", "model=model", "data.train=rows.jsonl"),
    "groups={verifier: 'compare_tools:liking', own: 2, max_new_tokens: 3}",
    "groups.file=groups",
)


def test_groups_are_sampled_in_ids_and_a_folder_is_of_one_engine(server):
    said = ballast(*SAMPLE, vllm(server))
    assert "engine: vllm 9.9 (tiny): 28 requests" in said
    manifest = json.loads(Path("groups/manifest.json").read_text())
    assert manifest["settings"]["engine"] == "vllm 9.9"
    asked = len(server.bodies)
    # A full folder starts none, and asks none.
    server.stop()
    assert "12 prompts" in ballast(*SAMPLE, vllm(server))
    assert len(server.bodies) == asked
    [line] = refused(list(SAMPLE))
    assert "it was sampled by another engine (vllm 9.9, not transformers)" in line


def test_sampling_that_a_server_breaks_off_goes_on_to_the_same_groups(server, monkeypatch):
    monkeypatch.setattr("ballast.parts.ROWS_PER_PART", 4)
    ballast(*SAMPLE, "groups.file=whole", vllm(server))
    begun = len(server.bodies)
    server.trouble = lambda number, body: Reply(drop=True) if number > begun + 4 + 12 else None
    assert "cannot be reached" in refused([*SAMPLE, vllm(server, concurrency=1)])[-1]
    parts = [file.name for file in sorted(Path("groups").glob("part-*"))]
    assert parts == ["part-00000.parquet"]
    assert not list(Path("groups").glob("*.tmp"))
    server.trouble = lambda number, body: None
    ballast(*SAMPLE, vllm(server))
    for part in ("part-00000.parquet", "part-00001.parquet", "part-00002.parquet"):
        assert Path("groups", part).read_bytes() == Path("whole", part).read_bytes()


REVISE = (
    *("revise", "model=model", "data.train=rows.jsonl"),
    "revise={verifier: 'compare_tools:liking', rounds: 1, temperature: 0.0, max_new_tokens: 3}",
    "revise.file=revised",
)


@pytest.mark.parametrize("engine", [vllm, text])
def test_drafts_and_revisions_are_the_engines(server, engine):
    ballast(*REVISE, "revise.file=own")
    said = ballast(*REVISE, engine(server))
    assert "requests" in said
    settings = [json.loads(Path(name, "manifest.json").read_text())["settings"] for name in ("own", "revised")]
    assert "engine" not in settings[0]
    assert settings[1]["engine"].startswith(("vllm 9.9", "openai"))
    [line] = refused(list(REVISE))
    assert "it was revised by another engine" in line
    texts = [[row["completion"] for row in rows_of(name)] for name in ("own", "revised")]
    assert texts[0] == texts[1]


def rows_of(folder):
    from pyarrow import parquet

    files = [*Path(folder).glob("part-*.parquet"), *Path(folder, "left-out").glob("part-*.parquet")]
    rows = [row for file in files for row in parquet.read_table(file).to_pylist()]
    return sorted(rows, key=lambda row: json.dumps(row["prompt"]))


ONE = {"rates": [1e-2], "choose_by": None, "seeds": 1}


def compared(folder, output, engine=None, **compare):
    recipe = matrix(folder, output, **{**ONE, **compare})
    kept = tuple(task for task in recipe.evaluation.tasks if task.name == "test")
    recipe = recipe.model_copy(update={"evaluation": recipe.evaluation.model_copy(update={"tasks": kept})})
    return recipe if engine is None else recipe.model_copy(update={"engine": engine})


def test_a_comparison_serves_every_model_and_never_mixes_engines(managed, tmp_path):
    from ballast.engines.options import VllmEngine
    from ballast.report import write_report

    summary = run_quietly(compared(tmp_path, "out", VllmEngine()))
    cells = sorted((tmp_path / "out" / "cells").iterdir())
    assert sorted(managed) == sorted(map(str, [tmp_path / "model", *cells]))
    for folder in (tmp_path / "out" / "base", *cells):
        [entry] = records.read_jsonl(folder / "evals.jsonl")
        assert entry["engine"]["kind"] == "vllm"
        assert 0 <= entry["engine"]["checked"] < 1e-4
        assert entry["engine"].get("model") is None
    assert summary["complete"]
    assert summary["provenance"]["engines"] == ["vllm 9.9"]
    page, _ = write_report([tmp_path / "out"])
    assert "answers sampled by" in page.read_text()
    # It goes on with other ways of asking, not with another engine.
    done = len(managed)
    run_quietly(compared(tmp_path, "out", VllmEngine(concurrency=2, command=["elsewhere"])))
    assert len(managed) == done
    with pytest.raises(BallastError, match="with another engine than the recipe now says"):
        run_quietly(compared(tmp_path, "out"))
    # Cells of another engine that were copied beside are refused in the table, too.
    run_quietly(compared(tmp_path, "own"))
    cell = next(one.name for one in cells if one.name.startswith("prift-mass"))
    shutil.rmtree(tmp_path / "own" / "cells" / cell)
    shutil.copytree(tmp_path / "out" / "cells" / cell, tmp_path / "own" / "cells" / cell)
    words = r"prift-mass.*: its answers were sampled by vllm 9.9, those of .* by transformers.*measure both with one"
    with pytest.raises(BallastError, match=words):
        write_summary(Store(tmp_path / "own"), Plan(compared(tmp_path, "own")))


def test_an_adapter_is_served_in_the_weights_and_its_copy_removed(managed, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    left = tmp_path / "temporary" / f"{COPY}0"  # by a command that was killed
    left.mkdir(parents=True)
    Path(f"{left}.lock").touch()
    train = ("train", "model=model", "model.lora={r: 2, target_modules: all-linear}", "objective=sft")
    settings = "training={max_steps: 2, per_device_train_batch_size: 4, learning_rate: 1e-1, report_to: none}"
    ballast(*train, "data.train=rows.jsonl", "output=lora", settings, tasks(), "engine=vllm")
    entries = records.read_jsonl("lora/evals.jsonl")
    assert [entry["engine"]["kind"] for entry in entries] == ["vllm", "vllm"]
    assert all(entry["engine"]["checked"] < 1e-4 for entry in entries)
    assert managed[0] == "model"
    assert Path(managed[1]).parent == left.parent
    assert list(left.parent.iterdir()) == []
    done = [*train, "data.train=rows.jsonl", "output=lora", settings, tasks()]
    [line] = refused([*done, "--resume"])
    assert "engine: differs from the run to be resumed" in line


def test_a_run_whose_server_dies_measures_again(managed, monkeypatch):
    """Nothing is half written: the trained model stays, and the same command measures it."""
    from ballast.engines.check import check_logprobs

    settings = "training={max_steps: 2, per_device_train_batch_size: 4, save_strategy: 'no', report_to: none}"
    train = ["train", "model=model", "objective=sft", "data.train=rows.jsonl", "output=run", settings, tasks()]
    calls = []

    def second_dies(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 2:
            raise BallastError("engine: http://127.0.0.1: cannot be reached")
        return check_logprobs(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr("ballast.engines.check.check_logprobs", second_dies)
        # Before it may stand how far the measurement came.
        assert "cannot be reached" in refused([*train, "engine=vllm"])[-1]
    assert json.loads(Path("run/run.json").read_text())["status"] == "trained"
    assert not Path("run/evals/trained").exists()
    ballast(*train, "engine=vllm", "--resume")
    assert json.loads(Path("run/run.json").read_text())["status"] == "finished"
    assert [entry["model"] for entry in records.read_jsonl("run/evals.jsonl")] == ["base", "trained"]


GFT = "objective={name: gft, tau: 0.7}"
GROUPS = "groups={verifier: 'compare_tools:liking', own: 2, max_new_tokens: 3}"
URL = "http://127.0.0.1:9/v1"
FIXED = f"engine={{kind: vllm, base_url: '{URL}'}}"
TEXT = f"engine={{kind: openai, base_url: '{URL}', model: x}}"
TRAIN = ("train", "model=model", "data.train=rows.jsonl", "output=run")
EVALUATE = ("evaluate", "model=model", tasks())

BAD = {
    "unknown kind": ((*EVALUATE, "engine=vlm"), "did you mean 'vllm'"),
    "negative rate": ((*EVALUATE, FIXED, "engine.requests_per_minute=-3"), "engine.requests_per_minute"),
    "key unset": ((*EVALUATE, FIXED, "engine.key_variable=NO_SUCH_KEY_HERE"), "NO_SUCH_KEY_HERE is not set"),
    "vllm absent": ((*EVALUATE, "engine=vllm", "engine.command=[no-such-vllm]"), "there is no program 'no-such-vllm'"),
    "server away": ((*EVALUATE, FIXED, "engine.retries=0"), "cannot be reached"),
    "live weights": ((*TRAIN, GFT, GROUPS, FIXED), "with `ballast rounds`"),
    "one model for two": ((*TRAIN, "objective=sft", tasks(), FIXED), "serves one model, and several are measured"),
    "ids of text": ((*SAMPLE, TEXT), "groups train on the tokens that were sampled"),
    "entropy of text": (("evaluate", "model=model", tasks(entropy=True), TEXT), "entropy: is of the tokens"),
    "second reviser": (
        (*EVALUATE[:2], tasks(revise={"how": "reviser", "reviser": "model"}), FIXED),
        "is a second model, and an engine serves one",
    ),
    "reviser": ((*REVISE, "revise.how=reviser", "revise.reviser=model", FIXED), "is a second model"),
    "rounds": (
        (
            *("rounds", "model=model", "data.train=rows.jsonl", "output=run", GFT, GROUPS, FIXED),
            "rounds={steps: [sample, train], count: 2}",
        ),
        "sample asks each round's own",
    ),
    "several models": ((*EVALUATE, FIXED, "--model", "model", "--model", "other"), "serves one model"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_sampled_is_refused_in_a_line(case):
    arguments, words = BAD[case]
    lines = refused(list(arguments))
    assert any(words in line for line in lines), lines
    assert not Path("run").exists()
    assert not Path("groups", "part-00000.parquet").exists()


def test_of_several_processes_each_would_ask(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert any("each of the 2 processes would have a server" in line for line in refused([*EVALUATE, FIXED]))


def test_rounds_sample_by_the_engine_and_train_without_it(managed):
    """What training refuses, with the remedy that it names."""
    settings = "training={max_steps: 1, per_device_train_batch_size: 2, report_to: none, save_strategy: 'no'}"
    rounds = ("data.limit=4", "rounds={steps: [sample, train], count: 2}", "output=rounds", settings, "engine=vllm")
    ballast("rounds", "model=model", "data.train=rows.jsonl", GFT, GROUPS, *rounds)
    assert managed == ["model", "rounds/round-1/train"]
    for number in (1, 2):
        manifest = json.loads(Path(f"rounds/round-{number}/sample/manifest.json").read_text())
        assert manifest["settings"]["engine"] == "vllm 9.9"


def test_without_the_client_the_extra_is_named(monkeypatch):
    from ballast import packages

    found = packages.find_spec
    monkeypatch.setattr(packages, "find_spec", lambda name: None if name == "openai" else found(name))
    [line] = refused([*EVALUATE, FIXED])
    assert "pip install 'ballast-ft[engine]'" in line


def test_a_server_of_another_model_is_refused_before_anything_is_measured(server):
    server.model = tiny_model(5)
    [line] = refused([*EVALUATE, vllm(server), "--items", "items"])
    assert "the model here" in line
    assert not Path("items").exists()
