"""The documents: links lead somewhere, the recipes in them are recipes, commands exist."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
from ruamel.yaml import YAML
from typer.main import get_command
from typer.testing import CliRunner

from ballast import lab, pipeline
from ballast.cli import app
from ballast.compare import COMPARE_CHECKS
from ballast.config.recipe import load_recipe
from ballast.config.source import RecipeError

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").rglob("*.md")])
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)\s]+)\)")
UsageError = typer.BadParameter.__mro__[1]  # click's, which newer typers bring under a name of their own
PLACEHOLDERS = {"I/N": "1/2", **dict.fromkeys("NMGC", "1"), "D": "float32"}
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


def commands_of(page: Path) -> list[str]:
    """Return the commands of ballast on a page: lines of its blocks, and words between backticks."""
    text = page.read_text(encoding="utf-8")
    lines = [line for _, block in BLOCK.findall(text) for line in block.replace("\\\n", " ").splitlines()]
    found = [match[1] for line in lines if (match := re.match(r"(?:\$ )?(ballast .*)", line))]
    return found + re.findall(r"`(?:\$ )?(ballast [^`\n]+)`", BLOCK.sub("", text))


def parsed(command: str) -> tuple[Any, Any] | None:
    """Parse a command as the program does, its placeholders filled in; None where it is a name alone, or prints help.

    Raises:
        UsageError: no such command or option, or a value of another type.
    """
    if re.search(r" \[(--|key=|NAME)", command):  # a line of usage
        command = re.sub(r"\[key=value…\]|\[ADDRESS\]|(?<=\w)…", "", command)
        command = re.sub(r"[][]", "", command)
    words = [PLACEHOLDERS.get(word, word) for word in shlex.split(command, comments=True)[1:]]
    group = get_command(app)
    if words[0].startswith("-") or len(words) == 1:
        assert words[0] in {*group.commands, "--version", "--debug", "…"}, words[0]
        return None
    name, found, rest = group.resolve_command(group.context_class(group, info_name="ballast"), words)
    return found, found.make_context(name, rest)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_are_read_with_their_options_and_recipes(page):
    text = page.read_text(encoding="utf-8")
    for command in commands_of(page):
        try:
            read = parsed(command)
        except UsageError as error:
            cut = type(error).__name__ in ("MissingParameter", "BadOptionUsage")
            if cut and f"`{command}`" in text:
                continue  # words in a sentence, not a line to type
            pytest.fail(f"{name_of(page)}: {command}: {error.format_message()}")
        words = list(read[1].params.get("words") or []) if read else []
        named = words.pop(0) if words and "=" not in words[0] else None
        there = named is not None and (ROOT / named).is_file()
        try:
            load_recipe(ROOT / str(named) if there else None, words)
        except RecipeError as error:
            # A reader's own recipe has what its overrides leave out.
            missing = [line for line in error.problems if there or "is required and missing" not in line]
            assert not missing, f"{name_of(page)}: {command}: {missing[0]}"


DRY = sorted(
    {
        command.partition("  #")[0]
        for page in PAGES
        for command in commands_of(page)
        if re.search(r"\brecipes/[\w/-]+\.yaml|model=lab", command)
    }
)


@pytest.mark.slow
@pytest.mark.parametrize("command", DRY)
def test_commands_with_ready_recipes_pass_every_check(command, tmp_path, monkeypatch):
    """All but what an earlier command leaves under runs/, and a server or data that is not in the repository."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    read = parsed(command)
    assert read is not None
    if all(option.name != "dry_run" for option in read[0].params):
        pytest.skip("it has no --dry-run")
    done = CliRunner().invoke(app, [*shlex.split(command, comments=True)[1:], "--dry-run"])
    wrong = [line for line in done.stderr.splitlines() if not re.search(r"no such (file|folder)|runs/|vllm", line)]
    assert not wrong, wrong
    assert done.exit_code in (0, 2), done.output


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
