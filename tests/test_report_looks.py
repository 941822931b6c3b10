"""Token views that come with a report unasked."""

from __future__ import annotations

import json

from ballast.config.recipe import Recipe
from ballast.objectives import objective
from ballast.report.looks import write_tokens


def recipe(**data):
    return Recipe.model_validate({"model": {"path": "lab"}, "data": {"train": "lab:train", **data}})


def shown(folder):
    return json.loads((folder / "tokens.json").read_text())


def test_objectives_that_weigh_a_row_by_itself_are_shown_once_each(tmp_path):
    soft = objective("eksft", rho=0.1)
    asked = [objective("sft"), objective("gft"), soft, objective("sft"), objective("eksft")]
    assert write_tokens(recipe(), asked, tmp_path) == ""
    found = shown(tmp_path)
    assert [(one["name"], one["options"].get("rho")) for one in found["objectives"]] == [
        ("sft", None),
        ("eksft", 0.1),
        ("eksft", 0.2),
    ]
    assert [row["row"] for row in found["rows"]] == [1, 2, 3]


def test_a_view_that_somebody_made_is_kept(tmp_path):
    (tmp_path / "tokens.json").write_text("mine")
    assert write_tokens(recipe(), [objective("sft")], tmp_path) == ""
    assert (tmp_path / "tokens.json").read_text() == "mine"


def test_groups_alone_have_no_view(tmp_path):
    assert write_tokens(recipe(), [objective("gft")], tmp_path) == ""
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_shown_is_said_and_leaves_nothing(tmp_path):
    why = write_tokens(recipe(limit=2), [objective("sft")], tmp_path)
    assert "there is no row 3" in why
    assert not list(tmp_path.iterdir())
