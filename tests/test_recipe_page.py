"""The tables of options in the documents are up to date, have every option, and the check notices when they do not."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ballast.config.recipe import Recipe
from ballast.evaluation.tasks import CLASSES
from ballast.groups import GroupOptions
from ballast.options import Options
from ballast.rl import RLOptions

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"


def _check(folder):
    command = [sys.executable, str(ROOT / "scripts" / "recipe_page.py"), "--check", "--folder", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_tables_are_up_to_date():
    done = _check(DOCS)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("shown", ["| `own` | `4` |", "whole number ≥ 2", "| `style` |", "Optimiser steps."])
def test_the_check_notices(shown, tmp_path):
    page = Path(shutil.copy(DOCS / "recipe.md", tmp_path))
    text = page.read_text(encoding="utf-8")
    assert shown in text
    page.write_text(text.replace(shown, "|", 1), encoding="utf-8")
    done = _check(tmp_path)
    assert done.returncode == 1
    assert "recipe.md: stale" in done.stderr


@pytest.mark.parametrize("options", [GroupOptions, RLOptions, *CLASSES.values()], ids=lambda options: options.__name__)
def test_every_option_has_a_row_and_a_meaning(options: type[Options]):
    rows = dict(re.findall(r"^\| `(\w+)` \|.*\| (.*) \|$", (DOCS / "recipe.md").read_text("utf-8"), re.MULTILINE))
    assert options.model_fields.keys() <= rows.keys()
    described = {name for name, field in options.model_fields.items() if field.description and rows[name]}
    assert described | {"kind"} >= options.model_fields.keys()


def test_every_section_of_a_recipe_has_its_place():
    headings = re.findall(r"^### (.+)$", (DOCS / "recipe.md").read_text("utf-8"), re.MULTILINE)
    named = {name for heading in headings for name in re.findall(r"`(\w+)`", heading)}
    assert set(Recipe.model_fields) <= named
