"""Rows, tokenizer and settings made ready, in the order that finds mistakes before it costs anything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ballast import models
from ballast.config import training as settings
from ballast.config.recipe import ModelSection, Recipe
from ballast.errors import BallastError
from ballast.pipeline import inputs as groups
from ballast.pipeline import sources
from ballast.protocols import Say

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from ballast.data import Prepared, PrepareOptions, PrepareReport
    from ballast.training import TrainingConfig


@dataclass(frozen=True)
class Ready:
    """Everything that a run needs beside the weights.

    Attributes:
        train: demonstrations, tokenised; None where the run trains on groups.
        prompts: raw rows to make groups of; None without groups, or where `groups.file` has them.
    """

    recipe: Recipe
    model: ModelSection
    args: TrainingConfig
    tokenizer: PreTrainedTokenizerBase
    train: Prepared | None
    eval: Prepared | None
    prompts: Dataset | None = None

    @property
    def parts(self) -> list[Prepared]:
        """The prepared sets: training rows, then held-out rows where there are any."""
        return [part for part in (self.train, self.eval) if part is not None]

    @property
    def reports(self) -> list[PrepareReport]:
        """What became of the rows of each set."""
        return [part.report for part in self.parts]


def ready(recipe: Recipe, say: Say) -> Ready:
    """Return arguments, tokenizer and prepared rows of a recipe; no weight is read and nothing of ours is written.

    Raises:
        BallastError: rows, tokenizer or settings cannot be used.
    """
    from ballast.data import PrepareOptions

    assert recipe.model is not None
    section = models.resolve(recipe.model)
    args = settings.training_config(recipe)
    tokenizer = models.load_tokenizer(section)
    models.check_vocabulary(section.path, models.load_config(section), tokenizer)
    held_out = sources.load_eval(recipe.data)
    train = prompts = None
    if recipe.groups is not None:
        prompts = groups.load(recipe, tokenizer, args, say if args.process_index == 0 else _silent)
    else:
        raw = sources.load_train(recipe.data)
        train = _prepared(raw, tokenizer, PrepareOptions.from_training_args(args), "train", recipe.data.train)
    evaluation = None
    if held_out is not None:
        options = PrepareOptions.from_training_args(args, packing=args.eval_packing)
        evaluation = _prepared(held_out, tokenizer, options, "eval", recipe.data.eval)
    made = Ready(recipe, section, args, tokenizer, train, evaluation, prompts)
    for line in (line for report in made.reports for line in report.lines() if args.process_index == 0):
        say(line)
    return made


def _silent(_: str) -> None:
    return None


def _prepared(rows: Dataset, tokenizer: Any, options: PrepareOptions, name: str, source: tuple[str, ...]) -> Prepared:
    """Prepare one set; what is wrong with it names the recipe's key and the source."""
    from ballast.data import prepare

    try:
        return prepare(rows, tokenizer, options, name=name)
    except BallastError as error:
        raise BallastError(f"data.{name} ({', '.join(source)}): {str(error).removeprefix(f'{name}: ')}") from error


def quiet() -> None:
    """Leave stderr to what is wrong: no notices of the libraries below, and no progress bars off a terminal."""
    import sys
    import warnings

    import datasets
    import huggingface_hub
    import transformers

    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|trl|peft)\.")
    transformers.utils.logging.set_verbosity_error()
    # Each failed attempt to reach the hub is a warning; the failure itself is what the user is told.
    huggingface_hub.utils.logging.set_verbosity_error()
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
        transformers.utils.logging.disable_progress_bar()
