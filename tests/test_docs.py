"""The documents: links lead somewhere, the recipes in them are recipes, commands exist."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from typer.main import get_command

from ballast import lab, pipeline
from ballast.cli import app
from ballast.compare import COMPARE_CHECKS
from ballast.config.recipe import load_recipe

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").rglob("*.md")])
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)\s]+)\)")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def anchors(page: Path) -> set[str]:
    """Return the fragments of a page's headings, as GitHub makes them."""
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    plain = (re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading) for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    for link in LINK.findall(text):
        path, _, fragment = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{name_of(page)}: {link}"
        if fragment and target.suffix == ".md":
            assert fragment in anchors(target), f"{name_of(page)}: {link}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_exist(page):
    commands = get_command(app).commands
    for _, block in BLOCK.findall(page.read_text(encoding="utf-8")):
        for command in re.findall(r"^(?:\$ )?ballast (\S+)", block, re.MULTILINE):
            assert command in commands or command == "--version", f"{name_of(page)}: ballast {command}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_recipes_that_commands_name_are_there(page):
    for _, block in BLOCK.findall(page.read_text(encoding="utf-8")):
        for recipe in re.findall(r"\brecipes/[\w/-]+\.yaml", block):
            assert (ROOT / recipe).is_file(), f"{name_of(page)}: {recipe}"


def test_the_guides_recipe_compares(monkeypatch, tmp_path):
    """The guide's two blocks, with the lab in place of the reader's model and files, pass every check of compare."""
    text = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
    blocks = [body for kind, body in BLOCK.findall(text) if kind == "yaml"]
    assert len(blocks) == 2
    recipe = {}
    for body in blocks:
        recipe |= YAML(typ="safe").load(body)
    stand_ins = {
        "rows.jsonl": "train",
        "held-out-a.jsonl": "validation",
        "held-out-b.jsonl": "test",
        "prompts.jsonl": "rl",
    }
    monkeypatch.chdir(tmp_path)
    for file, split in stand_ins.items():
        Path(file).write_text("".join(json.dumps(row) + "\n" for row in lab.split(split)[:200]))
    recipe |= {"model": "lab"}
    recipe["training"].pop("bf16")
    Path("recipe.yaml").write_text(json.dumps(recipe))
    overrides = ["training.max_length=256", "rl.max_new_tokens=64"]
    overrides += [f"evaluation.tasks.{place}.max_new_tokens=64" for place in range(3)]
    loaded = load_recipe("recipe.yaml", overrides, checks=COMPARE_CHECKS)
    assert (
        len(loaded.compare.objectives)
        * (len(loaded.compare.rates) * loaded.compare.tuning_seeds + loaded.compare.seeds)
        == 27
    )
    load_recipe("recipe.yaml", ["objective=prift-mass", *overrides], checks=pipeline.TRAIN_CHECKS)


def test_every_page_is_in_the_sites_navigation():
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = re.findall(r"[\w./-]+\.md", str(YAML(typ="safe").load(text)["nav"]))
    there = {page.name for page in (ROOT / "docs").glob("*.md")} | {"index.md"}
    beside = {page.name for page in ROOT.glob("*.md")} - {"README.md"}
    assert sorted(pages) == sorted(there | beside)
