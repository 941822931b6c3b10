"""What all commands share: the application, how errors end it, the recipe and its overrides."""

from __future__ import annotations

import atexit
import gc
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from ballast import ranks
from ballast.errors import BallastError, Diverged, Interrupted, Lost
from ballast.files import expanded
from ballast.terminal import print_error, print_text, print_yaml

if TYPE_CHECKING:
    from ballast.config.recipe import Check, Recipe

USAGE_ERROR = 2
INTERRUPTED = 130
SECONDS_TO_BE_ENDED = 30.0
"""After another rank: the launcher ends this one within a moment, and takes the one that went first for the cause."""


class CommandGroup(TyperGroup):
    """Turns input that cannot be used into one line per problem on stderr; everything else keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BallastError as error:
            if os.environ.get("BALLAST_DEBUG") == "1":
                raise
            _say_once(error)
            raise typer.Exit(USAGE_ERROR) from None
        except (Diverged, Interrupted) as ended:
            _say_once(ended)
            raise typer.Exit(ended.code) from None
        except KeyboardInterrupt:
            _say_once("interrupted")
            raise typer.Exit(INTERRUPTED) from None
        except (Lost, RuntimeError) as error:
            if not isinstance(error, Lost) and not ranks.is_loss(error):
                raise
            time.sleep(SECONDS_TO_BE_ENDED)
            raise typer.Exit(Lost.code) from None
        finally:
            ranks.leave()


def _say_once(why: object) -> None:
    """Print why the command ends, unless another rank has."""
    if ranks.has_the_word():
        print_error(why)


class AddressCommand(TyperCommand):
    """A command whose ``--ray`` may stand without an address."""

    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        return super().parse_args(ctx, _with_address(args))


def _with_address(words: Sequence[str]) -> list[str]:
    """Return words with ``auto`` after a ``--ray`` that is followed by no address but by an option or a recipe."""
    found: list[str] = []
    for place, word in enumerate(words):
        after = words[place + 1] if place + 1 < len(words) else "-"
        bare = word == "--ray" and (after.startswith("-") or "=" in after or Path(after).suffix in (".yaml", ".yml"))
        found += [word, "auto"] if bare else [word]
    return found


app = typer.Typer(
    cls=CommandGroup,
    name="ballast",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Supervised fine-tuning that leaves a language model ready for reinforcement learning.",
)

Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="RECIPE|KEY=VALUE",
        help="A YAML recipe, then settings that override it, such as [cyan]training.learning_rate=1e-5[/cyan].",
        show_default=False,
    ),
]


def path_of(text: str) -> Path:
    return Path(expanded(text))


def place(flag: str, about: str, show_default: bool | str = False) -> Any:
    return typer.Option(flag, parser=path_of, metavar="PATH", help=about, show_default=show_default)


DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything, print the resolved recipe, and stop.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]


def _print_versions(wanted: bool) -> None:
    if wanted:
        from ballast.records.write import versions

        print(", ".join(f"{name} {number}" for name, number in versions().items()))
        raise typer.Exit


@app.callback()
def _options(
    ctx: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_versions, help="Print versions and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", envvar="BALLAST_DEBUG", help="Show tracebacks.")] = False,
) -> None:
    if debug:
        os.environ["BALLAST_DEBUG"] = "1"
    _refuse_ranks(ctx)


def _refuse_ranks(ctx: typer.Context) -> None:
    """Refuse several processes of a command that neither trains on ranks nor splits its work over them.

    Raises:
        BallastError: each would do all of it.
    """
    name = ctx.invoked_subcommand
    if name is None or ranks.started() == 1:
        return
    command = ctx.command.get_command(ctx, name)  # type: ignore[attr-defined]
    if command is not None and all(option.name != "nproc" for option in command.params):
        raise BallastError(
            f"`ballast {name}` works in one process; {ranks.started()} were started, and each would do all of it and "
            "write the same files: start it without a launcher"
        )


@contextmanager
def _importing() -> Iterator[None]:
    """Collect garbage seldom: what libraries make while they are imported stays, and looking for it takes a fifth."""
    before = gc.get_threshold()
    gc.set_threshold(100_000, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


@contextmanager
def recipe_of(words: list[str] | None, checks: Sequence[Check], dry_run: bool = False) -> Iterator[Recipe]:
    """Read ``[RECIPE] [KEY=VALUE]...``: the first word is a recipe when it is a file or has no ``=``.

    What the checks read is not read again within the block. A dry run ends with the resolved recipe printed.
    """
    words = [word if "=" in word else expanded(word) for word in words or ()]
    path = words.pop(0) if words and (Path(words[0]).is_file() or "=" not in words[0]) else None
    with _importing():
        from ballast.config.recipe import load_recipe
        from ballast.pipeline import half_lines, quiet, sources

        quiet()
    with sources.read_once():
        with _importing():
            recipe = load_recipe(path, words, checks=checks)
        if dry_run:
            for line in half_lines(recipe):
                print_text(f"# {line}")
            print_yaml(recipe.to_yaml())
            atexit.register(gc.freeze)  # nothing is open, and a last look for garbage takes another fifth
            raise typer.Exit
        yield recipe
