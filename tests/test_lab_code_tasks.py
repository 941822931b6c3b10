"""The code tasks: steps, chains, splits that are disjoint by behaviour, and what a damaged table says."""

import json
import os
import subprocess
import sys
from random import Random

import pytest

from ballast import lab
from ballast.errors import BallastError
from ballast.lab import code_tasks
from ballast.lab.code_atoms import HIDDEN, INPUTS, SHOWN, TABLE, atoms
from ballast.verifiers.registry import check_rows, verifier
from code_judges import plain_outputs

TRAINED = ("code-atoms", "code-a-train", "code-b-rl")
HELD = ("code-a-test", "code-a-validation", "code-b-test", "code-b-validation", "code-deep-test")
SIZES = {
    "code-atoms": 400,
    "code-a-train": 350,
    "code-few-8": 8,
    "code-few-32": 32,
    "code-few-128": 128,
    "code-b-rl": 322,
    "code-a-test": 160,
    "code-a-validation": 60,
    "code-b-test": 160,
    "code-b-validation": 60,
    "code-deep-test": 200,
    "code-forgetting": 100,
}
BY_NAME = {atom.name: atom for atom in atoms()}
DIGEST = "d06d699d9bbda6482fa335c13a6c3bcc597ed55aa0af840f2de690fae2af1a23"


def chain_of(row):
    return tuple(BY_NAME[name] for name in row["atoms"])


def behaviour(chain):
    """What a chain does on every input, by Python itself."""
    kind = chain[0].takes
    return kind + json.dumps(plain_outputs(code_tasks.program(chain), INPUTS[kind]))


def behaviours(name):
    return {behaviour(chain_of(row)) for row in lab.split(name)}


def test_there_are_a_hundred_steps_in_ten_topics_half_of_each_in_a_half():
    assert len(atoms()) == 100
    topics = {atom.topic for atom in atoms()}
    assert len(topics) == 10
    for topic in topics:
        names = [atom.name for atom in atoms() if atom.topic == topic]
        assert sorted(code_tasks.halves()[name] for name in names) == ["A"] * 5 + ["B"] * 5


def test_splits_have_their_sizes_and_the_small_ones_begin_the_large():
    assert {name: len(lab.split(name)) for name in code_tasks.SPLITS} == SIZES
    train = lab.split("code-a-train")
    for size in code_tasks.FEW:
        assert lab.split(f"code-few-{size}") == train[:size]


def test_a_row_reads_as_the_documents_say():
    chain = (BY_NAME["asc"], BY_NAME["total"])
    row = code_tasks.row(chain)
    assert row["prompt"] == "# sort it, then add all\n"
    assert row["completion"] == "def f(x):\n    a=sorted(x)\n    return sum(a)"
    assert json.loads(row["tests"])[:3] == [[[], 0], [[3], 3], [[1, 2, 3, 4], 10]]
    assert (row["atoms"], row["depth"]) == (["asc", "total"], 2)


def test_halves_depths_and_inputs_are_those_of_the_split():
    for name in (*TRAINED, *HELD):
        rows = lab.split(name)
        depth = {"code-atoms": {1}, "code-deep-test": {3}}.get(name, {2})
        half = {"A", "B"} if name == "code-atoms" else {"B"} if name.startswith("code-b") else {"A"}
        assert ({row["depth"] for row in rows}, {row["source"] for row in rows}) == (depth, half)
        inputs = HIDDEN if name in HELD else SHOWN
        for row in rows:
            tests = json.loads(row["tests"])
            assert [given for given, _ in tests] == inputs[chain_of(row)[0].takes]
            assert (
                [wanted for _, wanted in tests] == plain_outputs(row["completion"], [one for one, _ in tests])
                if ("completion" in row)
                else True
            )
    assert "completion" not in lab.split("code-b-rl")[0]
    assert not {json.dumps(one) for kind in SHOWN for one in SHOWN[kind]} & {
        json.dumps(one) for kind in HIDDEN for one in HIDDEN[kind]
    }


def test_no_held_out_row_does_what_a_trained_one_or_a_pretraining_chain_does():
    trained = set().union(*map(behaviours, TRAINED))
    pretrained = {behaviour(chain) for chain in code_tasks._composed()[0]["AB"]}
    seen = trained | pretrained
    for name in HELD:
        held = behaviours(name)
        assert len(held) == SIZES[name]
        assert not held & seen
        seen |= held


def test_no_held_out_row_is_written_like_another():
    # Lists and texts are turned round by the same words.
    seen = {code_tasks.program(chain_of(row)) for name in TRAINED for row in lab.split(name)}
    seen |= set(map(code_tasks.program, code_tasks._composed()[0]["AB"]))
    for name in HELD:
        held = {row["completion"] for row in lab.split(name)}
        assert len(held) == SIZES[name]
        assert not held & seen
        seen |= held


def test_splits_by_behaviour_alone_would_be_written_alike(rebuilt):
    rebuilt("_unwritten", lambda chains, written: chains)
    pretrained = set(map(code_tasks.program, code_tasks._composed()[0]["AB"]))
    assert pretrained & {row["completion"] for name in HELD for row in lab.split(name)}


@pytest.fixture
def rebuilt(monkeypatch):
    """Change something of the build, and forget what was built, before and after."""

    def change(name, value):
        monkeypatch.setattr(code_tasks, name, value)
        forget()

    def forget():
        code_tasks.halves.cache_clear()
        code_tasks._composed.cache_clear()

    yield change
    monkeypatch.undo()
    forget()


def test_splits_by_text_would_share_what_their_rows_do(rebuilt):
    by_behaviour = code_tasks.behaviour
    rebuilt("behaviour", lambda chain: by_behaviour(chain) and code_tasks.program(chain))
    assert behaviours("code-a-test") & behaviours("code-a-train")


def test_the_build_is_the_same_bytes_in_another_process():
    code = (
        "import hashlib, json; from ballast.lab import code_tasks; from random import Random; rng = Random(3);"
        "rows = [code_tasks.split(name) for name in code_tasks.SPLITS];"
        "text = [code_tasks.draw_text(rng) for _ in range(200)];"
        "print(hashlib.sha256(json.dumps([rows, text]).encode()).hexdigest())"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        )
        .stdout.strip()
        .decode()
        for seed in ("1", "2")
    }
    assert found == {DIGEST}


def test_another_seed_builds_other_splits(rebuilt):
    before = [row["prompt"] for row in lab.split("code-a-test")]
    rebuilt("SEED", 12)
    assert [row["prompt"] for row in lab.split("code-a-test")] != before


def test_the_other_order_of_two_steps_that_do_not_commute_scores_0():
    swapped = 0
    for row in lab.split("code-a-test") + lab.split("code-b-test"):
        first, second = chain_of(row)
        if first.takes != first.gives or second.takes != second.gives:
            continue
        other = code_tasks.program((second, first))
        tests = json.loads(row["tests"])
        if plain_outputs(other, [given for given, _ in tests]) != [wanted for _, wanted in tests]:
            assert code_tasks.verify(other, row) == 0.0
            swapped += 1
    assert swapped > 50


def test_pretraining_never_shows_a_chain_of_one_half():
    rng, chains = Random(0), 0
    held = {row["completion"] for name in HELD for row in lab.split(name)}
    for _ in range(500):
        completion = code_tasks.draw_text(rng).split("\n", 1)[1]
        chains += completion.count("\n") == 2
        assert completion not in held
    assert chains > 150


def test_a_step_is_asked_for_by_the_phrase_of_its_kin():
    groups = code_tasks.kin(2)
    assert set(groups) == set(BY_NAME)
    assert {len(members) for members in groups.values()} == {1, 2, 3}
    for name, members in groups.items():
        atom = BY_NAME[name]
        assert atom in members
        assert {(one.topic, one.takes, one.gives) for one in members} == {(atom.topic, atom.takes, atom.gives)}


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda lines: lines[:50], "50 steps|49 steps"),
        (lambda lines: ["topic\tname", *lines[1:]], "line 1: the columns"),
        (lambda lines: [*lines[:4], "arith\tinc\tI\tI\tx+1", *lines[5:]], "line 5: 5 cells"),
        (lambda lines: [*lines[:4], lines[4].replace("\tx+1\t", "\t\t"), *lines[5:]], "line 5: 6 cells, or an empty"),
        (
            lambda lines: [*lines[:4], lines[4].replace("x+1", "x+"), *lines[5:]],
            "line 5: inc: 'x[+]' cannot be computed",
        ),
        (lambda lines: [*lines[:4], lines[4].replace("x+1", "open(x)"), *lines[5:]], "line 5: .* cannot be computed"),
        (lambda lines: [*lines[:4], lines[4].replace("\tI\t", "\tZ\t", 1), *lines[5:]], "line 5: inc takes 'Z'"),
        (
            lambda lines: [*lines[:4], lines[4].replace("x+1", "str(x)"), *lines[5:]],
            "line 5: .* does not always give I",
        ),
        (lambda lines: [*lines[:4], lines[4].replace("x+1", "0*x"), *lines[5:]], "line 5: .* fewer than 3"),
        (lambda lines: [*lines[:4], lines[4].replace("x+1", "x+x"), *lines[5:]], "line 5: inc does what double does"),
        (
            lambda lines: [*lines[:4], lines[4].replace("\tinc\t", "\tdouble\t"), *lines[5:]],
            "line 5: double has the name",
        ),
        (
            lambda lines: [*lines[:4], lines[4].replace("add one", "double it"), *lines[5:]],
            "has the name or the phrase",
        ),
        (lambda lines: [*lines, lines[-1].replace("bits", "more").replace("[2:]", "[3:]")], "line 102|101 steps"),
        (lambda lines: [], "line 1: the columns"),
    ],
)
def test_a_damaged_table_is_named_in_one_line(tmp_path, damage, says):
    table = tmp_path / "atoms.tsv"
    table.write_text("\n".join(damage(TABLE.read_text().splitlines())) + "\n")
    with pytest.raises(BallastError, match=says) as error:
        atoms(table)
    assert str(error.value).startswith(str(table))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00"])
def test_a_table_that_cannot_be_read_is_named_in_one_line(tmp_path, content):
    table = tmp_path / "atoms.tsv"
    if content is not None:
        table.write_bytes(content)
    with pytest.raises(BallastError, match="reinstall") as error:
        atoms(table)
    assert "\n" not in str(error.value)


def test_a_misspelt_split_is_refused_with_the_nearest():
    with pytest.raises(BallastError, match="code-a-test"):
        lab.split("code-a-tset")
    with pytest.raises(BallastError, match="code-few-128"):
        code_tasks.split("code-few-12")
    with pytest.raises(BallastError, match="lab-code"):
        lab.base_path("lab-cod")


@pytest.mark.parametrize("name", ["verify", "share"])
@pytest.mark.parametrize("tests", [None, "", "[]", "[[1]]", "{}", 7])
def test_rows_without_tests_are_refused_before_anything_is_generated(name, tests):
    row = {"prompt": "# double it\n"} | ({} if tests is None else {"tests": tests})
    with pytest.raises(BallastError, match=r"row 1: 'tests' is missing or is no JSON.*lab:code") as error:
        check_rows(verifier(f"ballast.lab.code_tasks:{name}"), [row])
    assert "\n" not in str(error.value)


def test_share_and_answered_look_at_less_than_all():
    row = code_tasks.row((BY_NAME["absval"],))
    assert code_tasks.verify("def f(x):\n    return x", row) == 0.0
    positive = sum(given >= 0 for given, _ in json.loads(row["tests"]))
    assert code_tasks.share("def f(x):\n    return x", row) == positive / 10
    assert code_tasks.answered("def f(x):\n    return x", row) == 1.0
    assert code_tasks.answered("def f(x):\n    return y", row) == 0.0
