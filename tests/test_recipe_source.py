"""The YAML file and the overrides: values, places, and what is refused."""

from pathlib import Path

import pytest

from ballast.config.source import Problem, RecipeError, load_source, parse_override, read_yaml, replaced
from ballast.errors import BallastError


def _write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


def test_values_are_yaml_1_2(tmp_path):
    tree, _ = read_yaml(_write(tmp_path, "rate: 1e-5\nanswer: no\noctal: 012\nyes: true\n"))
    assert tree == {"rate": 1e-5, "answer": "no", "octal": 12, "yes": True}


def test_every_key_and_item_knows_its_line(tmp_path):
    _, lines = read_yaml(_write(tmp_path, "model: lab\nevaluation:\n  tasks:\n    - data: a\n    - data: b\n"))
    assert lines[("model",)] == 1
    assert lines[("evaluation", "tasks", 1, "data")] == 5


def test_all_repeated_keys_are_named_with_their_lines(tmp_path):
    path = _write(tmp_path, "seed: 1\nseed: 2\ntraining:\n  max_steps: 1\n  max_steps: 2\n")
    with pytest.raises(RecipeError) as caught:
        read_yaml(path)
    assert [line.split(": key given twice")[0] for line in caught.value.problems] == [
        f"{path}:2: seed",
        f"{path}:5: training.max_steps",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model: [a\nseed: 1\n", ":2: not valid YAML"),
        ("a:\n\tb: 1\n", ":2: not valid YAML"),
        ("- a\n- b\n", "a recipe is a mapping"),
        ("", "found nothing"),
        ("a: &a\n  b: *a\n", "does an alias hold itself"),
    ],
)
def test_text_that_is_no_recipe_is_refused_in_one_line(tmp_path, text, expected):
    with pytest.raises(RecipeError, match=expected) as caught:
        read_yaml(_write(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_missing_file_and_binary_file_are_named(tmp_path):
    with pytest.raises(RecipeError, match="No such file"):
        read_yaml(tmp_path / "absent.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="not UTF-8"):
        read_yaml(tmp_path / "binary.yaml")


@pytest.mark.parametrize(
    ("text", "where", "value"),
    [
        ("seed=3", ("seed",), 3),
        ("training.learning_rate=1e-5", ("training", "learning_rate"), 1e-5),
        ("data.train=[a, b]", ("data", "train"), ["a", "b"]),
        ("data.train=lab:train", ("data", "train"), "lab:train"),
        ("model.revision='1'", ("model", "revision"), "1"),
        ("output=runs/lr=1", ("output",), "runs/lr=1"),
        ("evaluation.tasks.0.limit=4", ("evaluation", "tasks", 0, "limit"), 4),
        ("model=", ("model",), None),
    ],
)
def test_override_values_are_yaml(text, where, value):
    assert parse_override(text) == (where, value)


@pytest.mark.parametrize("text", ["seed", "=3", "a..b=1", "a=[1", ".a=1"])
def test_malformed_overrides_are_refused(text):
    with pytest.raises(BallastError):
        parse_override(text)


def test_override_opens_mappings_and_shorthands_and_leaves_the_original_alone():
    tree = {"model": "lab", "objective": "prift-mass"}
    changed = replaced(replaced(tree, ("model", "lora", "r"), 8), ("objective", "threshold"), 0.3)
    assert changed == {
        "model": {"path": "lab", "lora": {"r": 8}},
        "objective": {"name": "prift-mass", "threshold": 0.3},
    }
    assert tree == {"model": "lab", "objective": "prift-mass"}


def test_override_past_a_list_or_through_a_value_is_refused():
    with pytest.raises(BallastError, match="is a list of 1"):
        replaced({"a": [1]}, ("a", 1), 2)
    with pytest.raises(BallastError, match="has no keys"):
        replaced({"seed": 1}, ("seed", "x"), 2)


def test_problems_are_placed_in_the_file_or_on_the_command_line(tmp_path):
    path = _write(tmp_path, "seed: 1\ntraining:\n  max_steps: 1\n")
    source, problems = load_source(path, ["training.max_steps=2", "oops"])
    assert source.describe(Problem(("seed",), "m")) == f"{path}:1: seed: m"
    assert source.describe(Problem(("training", "other"), "m")) == f"{path}:2: training.other: m"
    assert source.describe(Problem(("training", "max_steps"), "m")) == "command line: training.max_steps: m"
    assert [source.describe(problem) for problem in problems] == [
        "command line: 'oops': an override is key=value, such as training.learning_rate=1e-5"
    ]


def test_characters_that_json_escapes_in_two_halves_are_one(tmp_path):
    source, _ = load_source(_write(tmp_path, '{"a\\ud83d\\ude00": "\\ud83d\\ude00!"}'))
    assert source.tree == {"a😀": "😀!"}
    with pytest.raises(RecipeError, match=r"^'x.ud83d': holds half a surrogate pair"):
        load_source(_write(tmp_path, '{"a": "x\\ud83d"}'))
