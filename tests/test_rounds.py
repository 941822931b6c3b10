"""`ballast rounds`: the commands by hand, resuming, the table over rounds, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ballast.cli import app
from ballast.config.recipe import load_recipe
from ballast.errors import BallastError, Interrupted
from ballast.pipeline import ROUNDS_CHECKS, rounds, run_rounds, sources
from ballast.records import write as records
from rl_tools import ROWS, tiny_policy, tiny_tokenizer

TRAINING = "training={max_steps: 2, save_steps: 1, learning_rate: 1e-2, report_to: none, logging_steps: 1}"
GROUPS = "groups={verifier: exact, own: 3, max_new_tokens: 4}"
TASKS = (
    "evaluation.tasks=[{name: ready, kind: readiness, data: rows.jsonl, verifier: exact, max_new_tokens: 4, group: 2, "
    "samples: 4, k: [1, 4]}]"
)
GIVEN = ("model=start", "data.train=rows.jsonl", "objective=gft", TRAINING, GROUPS)
SAMPLED = (*GIVEN, "rounds.steps=[sample, train, evaluate]", "rounds.count=2", TASKS)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_policy().save_pretrained("start")
    tiny_tokenizer().save_pretrained("start")
    records.write_jsonl("rows.jsonl", [{**row, "completion": row["answer"]} for row in ROWS])
    return tmp_path


def invoke(verb, *settings):
    return CliRunner().invoke(app, [verb, *settings])


def works(verb, *settings):
    done = invoke(verb, *settings)
    assert done.exit_code == 0, (done.output, done.exception)
    return " ".join(done.stdout.split())


def weights(output):
    from safetensors.torch import load_file

    return load_file(Path(output) / "model.safetensors")


def same(one, other):
    return all(weights(one)[name].equal(weight) for name, weight in weights(other).items())


def figures(output):
    """What was measured, without times."""
    lines = records.read_jsonl(Path(output) / "evals.jsonl")
    return [(line["model"], [task["metrics"] for task in line["tasks"]]) for line in lines]


def test_two_rounds_are_the_commands_by_hand(folder):
    said = works("rounds", *SAMPLED, "output=out")
    model = "start"
    for number in (1, 2):
        seed = ("seed=42", "seed=43")[number - 1]
        file = f"groups.file=hand/{number}/sample"
        works("sample", *GIVEN, f"model={model}", seed, file)
        works("train", *GIVEN, f"model={model}", seed, file, f"output=hand/{number}/train")
        model = f"hand/{number}/train"
        assert same(f"out/round-{number}/train", model)
    assert not same("out/round-1/train", "out/round-2/train")
    assert [line[0] for line in figures("out")] == ["base", "round 1", "round 2"]
    assert "base round 1 round 2" in said
    assert "the last model is in out/round-2/train" in said
    entropy = [line[1][0]["entropy"]["value"] for line in figures("out")]
    assert f"ready: entropy {entropy[0]:.3f} → {entropy[1]:.3f} → {entropy[2]:.3f}" in said
    solved = [line[1][0]["pass@4"]["value"] for line in figures("out")]
    assert f"pass@4 {solved[0]:.3f} → {solved[1]:.3f} → {solved[2]:.3f}; mixed@2" in said
    # The divergence is from the model that the rounds began with.
    divergence = [line[1][0]["base_kl"]["value"] for line in figures("out")]
    assert divergence[0] == 0
    assert divergence[2] > 0


def test_iterations_of_spin_read_the_answers_of_the_round_before_too(folder):
    given = (
        "model=start", "data.train=rows.jsonl", "objective=irft", TRAINING, "groups={own: 1, max_new_tokens: 4}",
        "reference=model",
    )  # fmt: skip
    works("rounds", *given, "rounds={steps: [sample, train], count: 3, previous: 1}", "output=out")
    files = {number: f"out/round-{number}/sample" for number in (1, 2, 3)}
    for number, named in ((1, [files[1]]), (2, [files[2], files[1]]), (3, [files[3], files[2]])):
        record = json.loads(Path(f"out/round-{number}/train/run.json").read_text())["recipe"]
        assert record["groups"]["file"] == named
    both = f"groups.file=[{files[2]}, {files[1]}]"
    works("train", *given, "model=out/round-1/train", "seed=43", both, "output=hand")
    assert same("hand", "out/round-2/train")


def test_rounds_of_rejection_sampling_train_on_the_right_answers(folder):
    given = ("model=start", "data.train=rows.jsonl", "objective=sft", TRAINING, GROUPS)
    works("rounds", *given, "rounds={steps: [sample, train], count: 2}", "output=out")
    works("sample", *given, "groups.file=hand", "rows=hand.jsonl")
    assert Path("out/round-1/right.jsonl").read_bytes() == Path("hand.jsonl").read_bytes()
    works("train", *given, "groups=null", "data.train=hand.jsonl", "output=first")
    assert same("out/round-1/train", "first")
    # Stopped as the first command of round 2 ended: its rows are there and not yet known to be through.
    plan = json.loads(Path("out/rounds.json").read_text())
    Path("out/rounds.json").write_text(json.dumps({**plan, "done": [["sample", "train"]]}))
    shutil.rmtree("out/round-2/train")
    works("rounds", *given, "rounds={steps: [sample, train], count: 2}", "output=out")


def test_rounds_of_revising_train_on_the_revised_rows(folder):
    Path("texts.yaml").write_text(json.dumps({"refine": "{prompt}"}))
    loop = "rounds: 1, feedback: none, stop: verifier, verifier: exact, max_new_tokens: 4, templates: texts.yaml"
    given = ("model=start", "data.train=rows.jsonl", "objective=sft", TRAINING, f"revise={{{loop}}}")
    works("rounds", *given, "rounds={steps: [revise, train], count: 2, previous: 1}", "output=out")
    works("revise", *given, "revise.file=hand")
    works("train", *given, "data.train=hand", "output=first")
    assert same("out/round-1/train", "first")
    record = json.loads(Path("out/round-2/train/run.json").read_text())["recipe"]
    assert record["data"]["train"] == ["out/round-2/revise", "out/round-1/revise"]
    works("rounds", *given, GROUPS, "rounds={steps: [sample, revise, train], count: 1}", "output=drafts")
    record = json.loads(Path("drafts/round-1/train/run.json").read_text())["recipe"]
    assert record["data"]["train"] == ["drafts/round-1/revise"]


def test_rounds_of_a_learnt_reward_and_rl(folder):
    rl = "rl={steps: 2, prompts: 2, group: 4, max_new_tokens: 4, learning_rate: 1e-2}"
    reward = "reward={steps: 2, pairs: 2, learning_rate: 1e-2, held_out: 0}"
    given = ("model=start", "data.train=rows.jsonl", "groups={verifier: exact, own: 2, max_new_tokens: 4}", reward, rl)
    works("rounds", *given, "rounds={steps: [sample, reward, rl], count: 2}", "output=out")
    for number in (1, 2):
        record = json.loads(Path(f"out/round-{number}/rl/run.json").read_text())
        assert record["recipe"]["rl"]["reward_model"] == f"out/round-{number}/reward"
    assert record["recipe"]["model"]["path"] == "out/round-1/rl"
    learnt = json.loads(Path("out/round-2/reward/run.json").read_text())
    assert learnt["recipe"]["model"]["path"] == "out/round-1/rl"


def test_one_round_of_training_is_train_and_rl_starts_from_it(folder):
    rl = "rl={verifier: exact, steps: 2, prompts: 2, group: 4, max_new_tokens: 4, learning_rate: 1e-2}"
    given = ("model=start", "data.train=rows.jsonl", "objective=sft", TRAINING, rl)
    works("rounds", *given, "rounds.steps=[train, rl]", "rounds.count=2", "output=out")
    works("train", *given, "output=first")
    works("rl", *given, "model=first", "output=second")
    assert same("out/round-1/train", "first")
    assert same("out/round-1/rl", "second")
    record = json.loads(Path("out/round-2/train/run.json").read_text())
    assert record["recipe"]["model"]["path"] == "out/round-1/rl"
    assert record["recipe"]["seed"] == 43


STOPS = ("sample", "train", "evaluate")


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("verb", STOPS)
@pytest.mark.parametrize("when", ["before", "after"])
def test_stopped_and_run_again_is_the_same(folder, monkeypatch, verb, number, when):
    works("rounds", *SAMPLED, "output=whole")
    step, seen = rounds.STEPS[verb], []

    def stopped(one):
        seen.append(one.number)
        if one.number == number and when == "before":
            raise KeyboardInterrupt
        step(one)
        if one.number == number:
            raise KeyboardInterrupt

    recipe = load_recipe(None, [*SAMPLED, "output=part"])
    with monkeypatch.context() as patch:
        patch.setitem(rounds.STEPS, verb, stopped)
        with pytest.raises(Interrupted, match="the same command goes on with the rounds in part"):
            run_rounds(recipe, say=lambda _: None, progress=False)
    works("rounds", *SAMPLED, "output=part")
    assert same("whole/round-2/train", "part/round-2/train")
    assert figures("whole") == figures("part")


@pytest.mark.parametrize("saved", [True, False])
def test_a_run_that_was_killed_goes_on_from_its_checkpoint_or_is_done_again(folder, saved):
    works("rounds", *SAMPLED, "output=whole")
    shutil.copytree("whole", "part")
    run = Path("part/round-2/train")
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "status": "running"}))
    for path in (*run.glob("*.safetensors"), run / "config.json"):
        path.unlink()
    shutil.rmtree(run / "checkpoint-2")
    if not saved:
        shutil.rmtree(run / "checkpoint-1")
    plan = json.loads(Path("part/rounds.json").read_text())
    Path("part/rounds.json").write_text(json.dumps({**plan, "done": [list(STOPS), ["sample"]]}))
    records.write_jsonl("part/evals.jsonl", records.read_jsonl("whole/evals.jsonl")[:2])
    works("rounds", *SAMPLED, "output=part")
    assert same("whole/round-2/train", "part/round-2/train")
    assert figures("whole") == figures("part")


def test_what_is_through_is_not_done_again_and_more_rounds_go_on(folder):
    works("rounds", *SAMPLED, "output=out")
    before = {path: path.stat().st_mtime_ns for path in Path("out").rglob("*") if path.is_file()}
    assert "round 1 round 2" in works("rounds", *SAMPLED, "output=out")
    kept = {path: path.stat().st_mtime_ns for path in before}
    assert kept == before
    works("rounds", *SAMPLED, "output=out", "rounds.count=3")
    assert [line[0] for line in figures("out")] == ["base", "round 1", "round 2", "round 3"]
    assert json.loads(Path("out/rounds.json").read_text())["done"] == [list(STOPS)] * 3


def test_a_run_that_was_through_when_the_rounds_were_stopped_is_not_trained_again(folder):
    given = ("model=start", "data.train=rows.jsonl", "objective=sft", TRAINING, "training.save_strategy='no'")
    works("rounds", *given, "rounds={steps: [train], count: 1}", "output=out")
    record = json.loads(Path("out/round-1/train/run.json").read_text())
    plan = json.loads(Path("out/rounds.json").read_text())
    Path("out/rounds.json").write_text(json.dumps({**plan, "done": [[]]}))
    said = works("rounds", *given, "rounds={steps: [train], count: 1}", "output=out")
    assert "out/round-1/train: finished at step 2 already" in said
    assert json.loads(Path("out/round-1/train/run.json").read_text()) == record


def test_an_adapter_goes_on_through_the_rounds(folder):
    lora = "model.lora={r: 2, target_modules: [q_proj]}"
    given = ("model=start", lora, "data.train=rows.jsonl", "objective=sft", TRAINING)
    works("rounds", *given, "rounds={steps: [train], count: 2}", "output=out")
    record = json.loads(Path("out/round-2/train/run.json").read_text())["recipe"]["model"]
    assert (record["path"], record["adapter"], record["lora"]) == ("start", "out/round-1/train", None)
    assert Path("out/round-2/train/adapter_model.safetensors").is_file()


def test_a_half_is_drawn_anew_in_every_round(folder):
    given = ("model=start", "data.train=rows.jsonl", "objective=sft", TRAINING, "training.half=0.5")
    works("rounds", *given, "rounds={steps: [train], count: 2}", "output=out")
    halves = [json.loads(Path(f"out/round-{number}/train/run.json").read_text())["half"] for number in (1, 2)]
    assert halves[0]["digest"] != halves[1]["digest"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("rounds.steps=[smaple, train]",), "rounds.steps.0: 'smaple' is not allowed; did you mean 'sample'?"),
        (("rounds.steps=[]",), "rounds.steps: nothing trains, so every round would be the first one again"),
        (
            ("rounds.steps=[sample, evaluate]",),
            "rounds.steps: nothing after sample reads what it writes; let revise or",
        ),
        (("rounds.steps=[train, sample]",), "rounds.steps: nothing after sample reads what it writes; let revise or"),
        (("rounds.steps=[sample, train, train]",), "rounds.steps: train comes twice"),
        (("rounds.steps=[evaluate, sample, train]",), "rounds.steps: sample after evaluate would not be measured"),
        (("rounds.count=0",), "rounds.count: should be greater than or equal to 1"),
        (("rounds.previous=-1",), "rounds.previous: should be greater than or equal to 0"),
        (
            ("rounds={steps: [train], previous: 1}", "evaluation.tasks=[]", "groups=null", "objective=sft"),
            "rounds.prev",
        ),
        (("rounds.conut=3",), "rounds.conut: unknown key; did you mean 'count'?"),
        (("rounds=null",), "rounds: is required and missing; say what is repeated"),
        (("rounds.steps=[sample, train, rl, evaluate]",), "rl: is required and missing: rounds.steps has rl"),
        (("rounds.steps=[sample, train]",), "evaluation.tasks: would be ignored: rounds.steps lacks evaluate"),
        (("evaluation.tasks=[]",), "evaluation.tasks: is empty, so there is nothing to measure"),
        (("groups.file=there",), "groups.file: would be ignored: each round has a folder of its own for that"),
        (("objective=sft", "groups.verifier=null"), "rows: needs groups.verifier: without one no answer is right"),
        (("rows=there/right.jsonl",), "rows.file: would be written over by the next round"),
        (
            ("rounds.steps=[revise, train, evaluate]", "rows=null", "revise={verifier: exact}"),
            "groups: would be ignored: revise makes what train reads",
        ),
        (
            ("rounds.steps=[train, evaluate]", "objective=sft", "groups=null", "rows=right.jsonl"),
            "rows: would be ignored: rounds.steps lacks sample; add it, or leave rows out",
        ),
        (("revise={verifier: exact}",), "revise: would be ignored: rounds.steps lacks revise"),
        (("reward={}",), "reward: would be ignored: rounds.steps lacks reward"),
        (("rl={verifier: exact}",), "rl: would be ignored: rounds.steps lacks rl"),
        (
            ("rounds.steps=[sample, reward, train, evaluate]",),
            "rounds.steps: nothing after reward reads what it writes",
        ),
        (("rounds.steps=[revise, train, evaluate]",), "revise: is required and missing: rounds.steps has revise"),
        (
            (
                "rounds.steps=[revise, train, evaluate]",
                "objective=sft",
                "groups=null",
                "revise={verifier: exact, file: there}",
            ),
            "revise.file: would be ignored: each round has a folder of its own for that",
        ),
        (
            ("rounds.steps=[sample, revise, train, evaluate]", "revise={verifier: exact, draft: completion}"),
            "revise.draft: would be ignored: sample comes before",
        ),
        (
            ("rounds.steps=[sample, reward, rl, evaluate]", "rl={verifier: exact, reward: reft}"),
            "rl.reward: would be ignored: reward comes before",
        ),
        (("groups.verifier=nobody",), "groups.verifier"),
        (("model=nowhere/at/all",), "model: nowhere/at/all: no such folder"),
        (("data.train=gone.jsonl",), "data.train: gone.jsonl"),
        (("training.half=2",), "training.half.fraction: should be less than or equal to 1; got 2"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(folder, settings, message):
    done = invoke("rounds", *SAMPLED, "output=out", *settings)
    assert done.exit_code == 2, (done.output, done.exception)
    assert any(message in line for line in done.stderr.splitlines()), done.stderr
    assert len(done.stderr.splitlines()) <= 2, done.stderr
    assert not Path("out").exists()


def test_another_recipe_another_model_and_a_foreign_folder_are_refused(folder, monkeypatch):
    works("rounds", *SAMPLED, "output=out", "rounds.count=1")
    done = invoke("rounds", *SAMPLED, "output=out", "training.learning_rate=0.5")
    assert "output: out: its rounds began with another training.learning_rate and would change midway" in done.stderr
    done = invoke("rounds", *SAMPLED, "output=out", "rounds.previous=1")
    assert "began with another rounds.previous" in done.stderr
    records.write_jsonl("rows.jsonl", [{"prompt": "ab", "completion": "b", "answer": "b"}] * 4)
    done = invoke("rounds", *SAMPLED, "output=out")
    assert "data.train: rows.jsonl is another than when the rounds in out began" in done.stderr
    Path("foreign").mkdir()
    Path("foreign/thesis.txt").write_text("")
    assert "foreign: holds 'thesis.txt', which is of no rounds" in invoke("rounds", *SAMPLED, "output=foreign").stderr
    with pytest.raises(BallastError, match=r"output: foreign: holds 'thesis\.txt'"):
        run_rounds(load_recipe(None, [*SAMPLED, "output=foreign"]))
    Path("out/rounds.json").write_text("{")
    assert "out/rounds.json: " in invoke("rounds", *SAMPLED, "output=out").stderr
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "`ballast rounds` works in one process" in invoke("rounds", *SAMPLED, "output=new").stderr
    with pytest.raises(BallastError, match="rounds: go in one process"):
        load_recipe(None, [*SAMPLED, "output=new"], checks=ROUNDS_CHECKS)


def test_the_inputs_on_record_are_those_that_the_rounds_began_with(folder, monkeypatch):
    def train(one):
        sources.forget()  # as training does
        records.write_jsonl("rows.jsonl", [{"prompt": "ab", "completion": "b", "answer": "b"}] * 4)

    monkeypatch.setitem(rounds.STEPS, "train", train)
    given = ("model=start", "data.train=rows.jsonl", "objective=sft", TRAINING, "rounds.steps=[train]", "output=out")
    monkeypatch.setattr(rounds.models, "section_of", lambda path, like: like)
    works("rounds", *given, "rounds.count=1")
    done = invoke("rounds", *given, "rounds.count=2")
    assert "data.train: rows.jsonl is another than when the rounds in out began" in done.stderr, done.output


def test_a_dry_run_prints_the_recipe_and_writes_nothing(folder):
    done = invoke("rounds", *SAMPLED, "output=out", "--dry-run")
    assert done.exit_code == 0, done.output
    assert "rounds:" in done.stdout
    assert not Path("out").exists()


def test_two_rounds_on_the_lab(folder):
    given = (
        "model=lab", "data.train=lab:train", "data.limit=16", "objective=gft",
        "groups={verifier: 'ballast.lab.arithmetic:verify', own: 3, max_new_tokens: 48}",
        "training={max_steps: 2, per_device_train_batch_size: 8, learning_rate: 3e-5, save_strategy: 'no'}",
        "rounds={steps: [sample, train, evaluate], count: 2}",
        "evaluation.tasks=[{name: ready, kind: readiness, data: 'lab:test', limit: 12, group: 4, max_new_tokens: 48, "
        "verifier: 'ballast.lab.arithmetic:verify'}]",
    )  # fmt: skip
    said = works("rounds", *given, "output=out")
    assert "out/round-2/sample: 16 prompts; 16 expert answers" in said
    assert [line[0] for line in figures("out")] == ["base", "round 1", "round 2"]
    assert 0.5 < figures("out")[2][1][0]["pass@4"]["value"] <= 1
