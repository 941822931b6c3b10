"""`ballast advise`: flaws that the lab's generator wrote, what is printed and left behind, bad input."""

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from ballast import lab, list_objectives
from ballast.advise import RULE, SuspectToken
from ballast.cli import app
from ballast.pipeline.advise import texts
from scored import scored
from tiny import char_tokenizer, tiny_model


def run(command, *words):
    return CliRunner().invoke(app, [command, *words])


@pytest.fixture(scope="module")
def lab_advice(tmp_path_factory):
    """The lab's base on 160 demonstrations, 24 of them with a known slip; and a cache of the scores."""
    folder = tmp_path_factory.mktemp("lab")
    rows = lab.demonstrations(77, 160)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ("model=lab", f"data.train={folder}/rows.jsonl", f"reference.cache={folder}/cache")
    done = run("advise", *words, "--json")
    assert done.exit_code == 0, done.output
    return rows, json.loads(done.stdout), words, folder


def slip(row):
    """Place of the first wrong character, None in a correct row."""
    from ballast.lab.arithmetic import STYLES, Chain, solve

    chain = Chain(tuple(int(term) for term in re.findall(r"[+-]?\d+", row["prompt"])))
    if row["completion"] in {solve(chain, style) for style in STYLES}:
        return None
    pairs = zip(solve(chain), row["completion"], strict=False)
    return len(row["prompt"]) + next(i for i, (right, written) in enumerate(pairs) if right != written)


def test_known_flaws_of_the_lab_are_found(lab_advice):
    rows, advice, _, _ = lab_advice
    wrong = {number: place for number, row in enumerate(rows, 1) if (place := slip(row)) is not None}
    found = {token["row"]: token["place"] for token in advice["suspects"]}
    assert len(wrong) == 24
    hits = found.keys() & wrong.keys()
    assert len(hits) / len(found) >= 0.9
    assert len(hits) / len(wrong) >= 0.9
    assert sum(found[row] == wrong[row] for row in hits) / len(wrong) >= 0.8
    assert advice["separable"]
    assert (advice["regime"]["name"], advice["regime"]["expects"]) == ("strong", "above")
    for token in advice["suspects"]:
        whole = rows[token["row"] - 1]["prompt"] + rows[token["row"] - 1]["completion"]
        assert whole[: token["place"] + 1].endswith(token["before"] + token["text"])
        assert token["text"] == whole[token["place"]]


def test_outliers_name_rows_of_the_source(lab_advice):
    rows, advice, _, _ = lab_advice
    assert advice["outliers"]
    for one in advice["outliers"]:
        assert len(rows[one["row"] - 1]["completion"]) + 1 == one["tokens"]


def test_figures_are_those_of_the_cache(lab_advice):
    from ballast.reference import ReferenceCache

    _, advice, _, folder = lab_advice
    cache = ReferenceCache.open(folder / "cache")
    q = np.exp(
        np.concatenate([cache.lookup(digest.tobytes().hex())["ref_logprob"] for digest in cache._digests]).astype(float)
    )
    assert advice["support"]["tokens"] == cache.tokens == len(q)
    assert advice["support"]["mean_probability"] == pytest.approx(q.mean(), rel=1e-6)
    special = {info.name for info in list_objectives()} - {"reweight", "product"}
    assert {one["name"] for one in advice["kept"]} == special


def test_the_terminal_says_the_same(lab_advice):
    _, advice, words, folder = lab_advice
    before = {path: path.stat().st_mtime_ns for path in (folder / "cache").iterdir()}
    done = run("advise", *words)
    assert done.exit_code == 0, done.output
    text = " ".join(done.stdout.split())
    assert text.index("Prior: strong.") < text.index("The rule: strong if")
    assert str(RULE) in text
    for one in advice["kept"]:
        assert one["name"] in text
    assert "likely label noise" in text
    assert "What the scores do not tell" in text
    # The second call read the scores of the first.
    assert before == {path: path.stat().st_mtime_ns for path in (folder / "cache").iterdir()}


def test_what_plays_no_part_changes_nothing(lab_advice):
    _, advice, words, folder = lab_advice
    (folder / "other.jsonl").write_text('{"question": "1"}\n')
    training = ("training.shuffle_dataset=true", "training.packing=true", "seed=3")
    done = run("advise", *words, *training, f"data.eval={folder}/other.jsonl", f"output={folder}/out", "--json")
    assert done.exit_code == 0, done.output
    assert advice["outliers"]
    assert advice["suspects"]
    assert json.loads(done.stdout) == advice
    assert not (folder / "out").exists()


@pytest.fixture(scope="module")
def prototype(tmp_path_factory):
    folder = tmp_path_factory.mktemp("advise")
    tiny_model(0).save_pretrained(folder / "model")
    tiny_model(1).save_pretrained(folder / "other")
    for name in ("model", "other"):
        char_tokenizer().save_pretrained(folder / name)
    rows = [{"prompt": f"{i}+{i}=", "completion": str(2 * i)} for i in range(24)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "empty.jsonl").write_text("")
    (folder / "broken.jsonl").write_text('{"prompt": "1", "completion": "2"}\n{"prompt": \n')
    (folder / "columns.jsonl").write_text('{"question": "1", "reply": "2"}\n')
    here = Path.cwd()
    os.chdir(folder)
    done = run("score", "model=other", "data.train=rows.jsonl", "reference.cache=others")
    assert done.exit_code == 0, done.output
    yield folder
    os.chdir(here)


def test_without_a_cache_nothing_is_left_behind(prototype):
    before = sorted(Path().rglob("*"))
    done = run(
        "advise", "model=model", "data.train=rows.jsonl", "objective={name: prift-mass, threshold: 0.2}", "--json"
    )
    assert done.exit_code == 0, done.output
    advice = json.loads(done.stdout)
    assert advice["support"]["threshold"] == 0.2
    assert "scored for this once" in done.stderr
    assert "holds" not in done.stderr
    assert sorted(Path().rglob("*")) == before
    gate = next(one for one in advice["kept"] if one["name"] == "prift-mass")
    assert gate["zero_share"] == pytest.approx(advice["support"]["below_mass"])


def test_a_recipe_for_groups_is_advised_on_its_demonstrations(prototype):
    done = run("advise", "model=model", "data.train=rows.jsonl", "objective=gft", "groups={verifier: exact}", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["support"]["rows"] == 24
    stored = run("advise", "model=model", "data.train=rows.jsonl", "objective=gft", "groups={file: stored}", "--json")
    assert stored.exit_code == 0, stored.output
    assert json.loads(stored.stdout) == json.loads(done.stdout)


def test_an_adapter_is_part_of_the_start(prototype):
    from peft import LoraConfig, get_peft_model

    get_peft_model(tiny_model(0), LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained("adapter")
    done = run("advise", "model={path: model, adapter: adapter}", "data.train=rows.jsonl", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["start"] == "model with adapter"


@pytest.mark.parametrize(
    ("row", "training"),
    [
        ({"prompt": "1" * 40, "completion": "2"}, ("training.max_length=20",)),
        (
            {"prompt": "1", "completion": "2" * 30},
            ("training.max_length=20", "training.packing=true", "training.packing_strategy=bfd_split"),
        ),
    ],
)
def test_numbers_of_rows_that_were_dropped_or_split_are_explained(prototype, row, training):
    rows = [row, *({"prompt": f"{i}+{i}=", "completion": str(2 * i)} for i in range(24))]
    Path("long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = run("advise", "model=model", "data.train=long.jsonl", *training, "--json")
    assert done.exit_code == 0, done.output
    (note,) = json.loads(done.stdout)["notes"]
    assert "row numbers count what is left" in note


@pytest.mark.parametrize(("ties", "below"), [("strict", 1.0), ("inclusive", 0.0)])
def test_ties_of_the_recipe_count(prototype, ties, below):
    # All tokens alike: none is less likely than another.
    flat = tiny_model(0)
    flat.lm_head.weight.data.zero_()
    flat.save_pretrained("flat")
    char_tokenizer().save_pretrained("flat")
    words = ("model=flat", "data.train=rows.jsonl", f"objective={{name: prift-mass, ties: {ties}}}", "--json")
    advice = json.loads(run("advise", *words).stdout)
    gate = next(one for one in advice["kept"] if one["name"] == "prift-mass")
    assert advice["support"]["below_mass"] == gate["zero_share"] == below


def test_texts_of_tokens_are_as_they_stand_in_the_row():
    """A tokenizer that drops the space before the first word shows it before later ones."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"▁two": 0, "▁and": 1, "<unk>": 2}, unk_token="<unk>"))
    backend.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    tokens = scored([19])
    tokens = replace(tokens, ids=(np.array([0, 1] * 10),))
    shown = [SuspectToken(0, place, 0.1, 0.1, 0.1) for place in (1, 19)]
    assert texts(tokens, shown, tokenizer) == {(0, 1): ("two", " and"), (0, 19): (" ".join(["and two"] * 8), " and")}


def test_text_of_the_data_is_inert(prototype):
    rows = [{"prompt": "[red]1", "completion": "[/x]\n"} for _ in range(30)]
    Path("markup.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = run("advise", "model=model", "data.train=markup.jsonl")
    assert done.exit_code == 0, done.output
    from ballast.pipeline.advise import _visible

    assert _visible("a\x1b[31m\n\u202eb") == "a⟨U+001B⟩[31m⏎⟨U+202E⟩b"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("data.train=rows.jsonl",), "model: is required"),
        (("model=model",), "data.train"),
        (("model=absent/here/model", "data.train=rows.jsonl"), "no such folder"),
        (("model=model", "data.train=absent.jsonl"), "absent.jsonl: no such file"),
        (("model=model", "data.train=empty.jsonl"), "the file is empty"),
        (("model=model", "data.train=broken.jsonl"), "broken.jsonl"),
        (("model=model", "data.train=columns.jsonl"), "columns"),
        (("model=model", "data.train=rows.jsonl", "reference.cache=others"), "does not belong to this run"),
        (("model=model", "data.train=rows.jsonl", "reference={model: other}"), "is a second model, whose scores"),
        (("model=model", "data.train=rows.jsonl", "objective=prift-mas"), "did you mean 'prift-mass'"),
        (("model=model", "data.train=rows.jsonl", "training.max_length=3"), "max_length"),
        (("model=model", "groups={file: stored}", "objective=gft"), "data.train: is required"),
        (("model=model", "groups={file: stored}", "objective=gft", "data={trian: rows.jsonl}"), "data.trian"),
        (("model=model", "data.train=rows.jsonl", "reference.cache=rows.jsonl"), "is a file"),
    ],
)
def test_bad_input_is_one_line(prototype, words, expected):
    done = run("advise", *words)
    assert done.exit_code == 2, done.output
    assert expected in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_storyteller_is_a_weak_prior_for_equations(real_data, tmp_path):
    published = json.loads((real_data / "data/svamp/SVAMP.json").read_text())[:60]
    rows = [{"prompt": f"{one['Body']} {one['Question']}\n", "completion": one["Equation"]} for one in published]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    start = real_data / "models/stories260K"
    done = run("advise", f"model={start}", f"data.train={tmp_path}/rows.jsonl", "--json")
    assert done.exit_code == 0, done.output
    advice = json.loads(done.stdout)
    assert (advice["regime"]["name"], advice["regime"]["expects"]) == ("weak", "below")
    assert not advice["separable"]
    assert advice["support"]["below_mass"] > 0.5
