"""What a run needs beside the weights: rows, groups, tokenizer, settings; read in the order that finds faults early."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ballast import models
from ballast.config import training as settings
from ballast.config.recipe import ModelSection, Recipe
from ballast.errors import BallastError
from ballast.groups.options import GroupOptions
from ballast.pipeline import sources
from ballast.protocols import Model, Say
from ballast.ranks import speaks

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from ballast.data import Prepared, PrepareOptions, PrepareReport, Streamed
    from ballast.groups import Group
    from ballast.groups.store import StoreSettings
    from ballast.training import TrainingConfig


@dataclass(frozen=True)
class Ready:
    """Everything that a run needs beside the weights.

    Attributes:
        train: demonstrations, tokenised; None where the run trains on groups.
        prompts: raw rows to make groups of; None without groups, or where `groups.file` has them.
        groups: what `groups.file` has; None without one.
    """

    recipe: Recipe
    model: ModelSection
    args: TrainingConfig
    tokenizer: PreTrainedTokenizerBase
    train: Prepared | Streamed | None
    eval: Prepared | None
    prompts: Dataset | None = None
    groups: Sequence[Group] | None = None

    @property
    def parts(self) -> list[Prepared | Streamed]:
        """The prepared sets: training rows, then held-out rows where there are any."""
        return [part for part in (self.train, self.eval) if part is not None]

    @property
    def reports(self) -> list[PrepareReport]:
        """What became of the rows of each set."""
        return [part.report for part in self.parts]


def ready(recipe: Recipe, say: Say, *, streams: bool = False) -> Ready:
    """Return arguments, tokenizer and prepared rows of a recipe; no weight is read.

    Args:
        streams: whether training rows may be a stream; else a recipe that has one is refused.

    Raises:
        BallastError: rows, tokenizer or settings cannot be used.
    """
    from ballast.data import Prepared, PrepareOptions, prepare

    assert recipe.model is not None
    section = models.resolve(recipe.model)
    args = settings.training_config(recipe)
    say = say if speaks() else silent
    tokenizer, context = _tokenizer_and_context(recipe, section)
    held_out = sources.load_eval(recipe.data)
    train = prompts = groups = evaluation = None
    if recipe.groups is not None and recipe.groups.file:
        groups = _load_groups(recipe, recipe.groups, tokenizer, args, context, say)
    elif recipe.groups is not None:
        prompts = _load_prompts(recipe, recipe.groups, tokenizer, args, context)
    else:
        train = _train(recipe, tokenizer, PrepareOptions.from_training_args(args, context=context), streams)
    if held_out is not None:
        options = PrepareOptions.from_training_args(args, packing=args.eval_packing, context=context)
        # Its likelihood is measured, whatever weights the training rows have.
        there = [column for column in own_columns(recipe) if column in held_out.column_names]
        with _named("eval", recipe.data.eval):
            evaluation = prepare(held_out, tokenizer, options, name="eval", columns=there)
    made = Ready(recipe, section, args, tokenizer, train, evaluation, prompts, groups)
    for part in made.parts:
        for line in part.report.lines():
            say(line)
        if isinstance(part, Prepared) and part.cached is not None:
            say(f"{part.report.name}: taken from the cache, {part.cached}")
    return made


def own_columns(recipe: Recipe) -> list[str]:
    """Return the columns of the data that the recipe's objective reads."""
    return [] if recipe.objective is None else list(recipe.objective.build().columns.values())


def silent(_: object) -> None:
    """Say nothing."""


def stored_settings(file: str) -> StoreSettings | None:
    """Return what a folder of groups was sampled with, None for revised rows and for a file of the user's own.

    Raises:
        BallastError: if there is no such file or folder, or its manifest cannot be read.
    """
    from ballast.groups.store import is_sampled, read_settings

    path = Path(file)
    if not path.exists():
        raise BallastError(f"{file}: no such file or folder; `ballast sample` fills it")
    return read_settings(path) if is_sampled(path) else None


def notes(recipe: Recipe, model: Model, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return what a user should know of the answers in `groups.file` and would not see, as lines to print."""
    from ballast.reference import CacheKey

    files = () if recipe.groups is None else recipe.groups.file
    stored = {file: settings for file in files if (settings := stored_settings(file)) and settings.groups["own"]}
    start = CacheKey.of(model, tokenizer).model if stored else None
    return [
        f"groups: the own answers of {file} are another model's than the one that training starts from: they are "
        "off-policy from the first step"
        for file, settings in stored.items()
        if settings.model != start
    ]


def _tokenizer_and_context(recipe: Recipe, section: ModelSection) -> tuple[PreTrainedTokenizerBase, int | None]:
    """Return the tokenizer, and the positions that model and reference were built for, from configurations alone."""
    from ballast.limits import check_tokenizer, positions

    tokenizer, config = models.load_tokenizer(section, recipe.training), models.load_config(section)
    check_tokenizer(section.path, config, tokenizer)
    reference = recipe.reference.model
    other = None if reference is None else models.load_config(models.resolve(models.section_of(reference, section)))
    return tokenizer, min(filter(None, (positions(config), other and positions(other))), default=None)


def _train(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, options: PrepareOptions, streams: bool
) -> Prepared | Streamed:
    from ballast.data import prepare, prepare_stream

    data, columns = recipe.data, own_columns(recipe)
    with _named("train", data.train):
        if streams and data.streaming:
            chunks, buffer = sources.stream_train(data), data.shuffle_buffer
            return prepare_stream(chunks, tokenizer, options, columns=columns, buffer=buffer)
    rows = sources.load_train(data)
    with _named("train", data.train):
        return prepare(rows, tokenizer, options, columns=columns)


@contextmanager
def _named(name: str, source: Sequence[str]) -> Iterator[None]:
    """Let what is wrong with one set name the recipe's key and the source."""
    try:
        yield
    except BallastError as error:
        raise BallastError(f"data.{name} ({', '.join(source)}): {str(error).removeprefix(f'{name}: ')}") from error


def _load_prompts(
    recipe: Recipe,
    options: GroupOptions,
    tokenizer: PreTrainedTokenizerBase,
    args: TrainingConfig,
    context: int | None,
) -> Dataset:
    """Return the raw rows that groups are made of, each of which can have one."""
    from ballast.data import PrepareOptions, trl
    from ballast.evaluation.generation import encode_rows
    from ballast.groups import members
    from ballast.verifiers import registry

    tokenizer = trl.training_tokenizer(tokenizer, PrepareOptions.from_training_args(args))
    dataset = sources.load_train(recipe.data)
    rows = list(dataset.with_format(None))
    try:
        members.check_prompts(rows, options)
        if (verify := members.judge_of(options)) is not None:
            registry.check_rows(verify, rows)
        sizes = [len(ids) for ids in encode_rows(tokenizer, rows)]
        members.check_room(sizes, options, max_length=args.max_length, context=context)
    except BallastError as error:
        raise BallastError(f"data.train ({', '.join(recipe.data.train)}): {error}") from error
    return dataset


def _load_groups(
    recipe: Recipe,
    options: GroupOptions,
    tokenizer: PreTrainedTokenizerBase,
    args: TrainingConfig,
    context: int | None,
    say: Say,
) -> list[Group]:
    """Return the groups of `groups.file`, which the recipe must agree with."""
    from ballast.data import PrepareOptions, trl
    from ballast.groups.read import read_groups
    from ballast.training.groups import wanted_of

    assert recipe.objective is not None
    for file in options.file:
        if (stored := stored_settings(file)) is not None:
            _check_stored(recipe, file, stored, args.max_length)
    tokenizer = trl.training_tokenizer(tokenizer, PrepareOptions.from_training_args(args))
    wanted = wanted_of(recipe.objective.build(), recipe.reference.use)
    try:
        groups = read_groups(options.file, tokenizer, max_length=args.max_length, context=context, wanted=wanted)
    except BallastError as error:
        raise BallastError(f"groups.file: {error}") from error
    answers = sum(len(group.members) for group in groups)
    say(f"groups: {len(groups):,} prompts, {answers:,} answers from {', '.join(options.file)}")
    return groups


def _check_stored(recipe: Recipe, file: str, stored: StoreSettings, max_length: int | None) -> None:
    """Refuse a recipe that says other than what the groups were sampled with: it would be ignored."""
    from ballast.groups.store import NOT_STORED, data_digest

    options = recipe.groups or GroupOptions()
    now = options.to_dict()
    for key in (key for key in now if key in options.model_fields_set):
        if key not in NOT_STORED and now[key] != stored.groups.get(key):
            raise BallastError(
                f"groups.{key}: {now[key]!r} would be ignored: {file} was sampled with "
                f"{stored.groups.get(key)!r}; leave it out, or sample into another folder"
            )
    if max_length != stored.max_length:
        raise BallastError(
            f"training.max_length: {max_length}, but the answers of {file} were cut at {stored.max_length} and "
            "judged so; set it back, or sample into another folder"
        )
    if recipe.data.train and data_digest(sources.load_train(recipe.data).with_format(None)) != stored.data:
        raise BallastError(
            f"data.train ({', '.join(recipe.data.train)}): would be ignored: {file} was sampled for other "
            "rows; leave it out, or sample into another folder"
        )


def quiet() -> None:
    """Leave stderr to what is wrong: no notices of the libraries below, no progress bars off a terminal.

    Of several ranks the first shows bars and warnings.
    """
    import logging
    import sys
    import warnings

    import datasets
    import huggingface_hub
    import transformers

    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|trl|peft)\.")
    if not speaks():
        warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity(logging.ERROR)
    # It says with every product that its input is rounded to 16 bits, which is what 8-bit weights are.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # Each failed attempt to reach the hub is a warning; the failure itself is what the user is told.
    huggingface_hub.utils.logging.set_verbosity(logging.ERROR)
    if not sys.stderr.isatty() or not speaks():
        datasets.disable_progress_bars()
        transformers.utils.logging.disable_progress_bar()
