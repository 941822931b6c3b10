"""The recipe: what to train, on what, with which objective. Strict and typed; importing it imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_serializer, field_validator, model_validator

from ballast.config.sections import (
    CompareSection,
    MethodSection,
    ObjectiveSection,
    Quantization,
    RoundsSection,
    ThenSection,
    Training,
)
from ballast.config.source import SHORTHANDS, Problem, RecipeError, load_source
from ballast.engines.options import AnyEngine, Engine, TransformersEngine, is_local
from ballast.evaluation.tasks import SOURCES, AnyTask, Task
from ballast.groups.options import GroupOptions, RowsOptions
from ballast.options import Columns, Options, OptionsError, Sources, Text, Where, shown
from ballast.options import Path as PathText
from ballast.revise.options import ReviseOptions
from ballast.reward.options import RewardOptions
from ballast.rl.options import RLOptions

NEVER_EMPTY = ("model", "objective")
"""Sections that are a slip where they are written without a value."""


class ModelSection(Options):
    """The model that fine-tuning starts from; a bare string is its ``path``."""

    path: PathText
    """A folder in transformers format, a GGUF file, a hub id, `lab` or `lab-code` for an embedded model, or `smollm2`
    for the folder that `make real-model` writes."""
    revision: Text | None = None
    """Branch, tag or commit on the hub."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32"
    """Dtype of the weights in memory. Full fine-tuning in `bfloat16` loses small updates; with `training.bf16` the
    weights stay `float32` and the arithmetic is `bfloat16`."""
    attn_implementation: Text | None = None
    """`sdpa`, `eager`, `flash_attention_2`, …"""
    trust_remote_code: bool = False
    """Run Python code that comes with the model."""
    adapter: PathText | None = None
    """Folder of a PEFT adapter that training continues from."""
    lora: dict[str, Any] | None = None
    """Fields of `peft.LoraConfig`: train a new adapter."""
    quantization: Quantization | None = None
    """Hold the frozen weights in few bits, under an adapter; see below."""

    @model_validator(mode="after")
    def _one_adapter(self) -> ModelSection:
        if self.adapter and self.lora is not None:
            raise ValueError("adapter and lora are both given, one would be lost; keep the one to train")
        return self


class DataSection(Options):
    """Demonstrations: files, folders or hub ids, and how their columns are called."""

    train: Sources = ()
    """A source, or a list of them (a mixture): `.jsonl`, `.jsonl.gz`, `.json`, `.parquet`, a folder of such files or
    one saved by `datasets`, a hub id, or a split of the lab (`lab:train`, `lab:test`, `lab:code-atoms`, …)."""
    eval: Sources = ()
    """The same, held out for `eval_loss` during training."""
    split: Text | None = None
    """Split of the training source, where it has several."""
    eval_split: Text | None = None
    """Split of the held-out source."""
    columns: Columns = None
    """`alpaca`, `sharegpt`, or a mapping from our column names to yours: `{prompt: question, completion: solution}`."""
    limit: int | None = Field(None, ge=1)
    """Use the first rows of each training source."""
    streaming: bool = False
    """Read training rows as they are trained on, again from the first after the last, for data that memory does not
    hold; `training.max_steps` says when to end. Sources take turns. For `ballast train` and `ballast compare`."""
    shuffle_buffer: int = Field(10_000, ge=0)
    """Rows of a stream among which the next is drawn at random, by `seed`; 0 keeps their order."""

    @field_validator("train", "eval", mode="before")
    @classmethod
    def _none_is_no_source(cls, value: Any) -> Any:
        return () if value is None else value

    @model_validator(mode="after")
    def _buffer_of_a_stream(self) -> DataSection:
        if "shuffle_buffer" in self.model_fields_set and self.shuffle_buffer != 10_000 and not self.streaming:
            raise ValueError("shuffle_buffer is of a stream and would be ignored; set streaming: true, or leave it out")
        return self


class ReferenceSection(Options):
    """The frozen model that objectives compare with; a bare string is ``use``."""

    use: Literal["auto", "model", "adapter-off", "round"] = "auto"
    """`auto`: the cache if one is given, else under PEFT the adapter switched off where it starts at zero, else a
    frozen copy of the model as it starts; nothing where the objective needs none. `model`: that copy, in memory.
    `adapter-off`: the model itself without its adapter; no further memory. `round`, with groups: the model as it was
    when the answers of the round were sampled; no further memory."""
    cache: PathText | None = None
    """Folder of statistics of the model as it starts, or of `model`, written by `ballast score`; `ballast train` scores
    what is missing."""
    model: PathText | None = None
    """Another model, a teacher say: in memory, or with `cache` only as long as rows are scored."""

    @model_validator(mode="after")
    def _one_reference(self) -> ReferenceSection:
        if self.cache and self.use != "auto":
            raise ValueError(f"use: {self.use} and cache contradict each other, one would be ignored; keep one")
        if self.model and self.use != "auto":
            raise ValueError(f"use: {self.use} and model contradict each other, one would be ignored; keep one")
        return self


def _written_down(task: Any) -> Any:
    """Read a task as a recipe has it: of kind ``generate`` unless it says otherwise, its rows named by their source."""
    given = vars(task) if isinstance(task, Task) else task
    if not isinstance(given, dict):
        return task
    # An empty tuple is the default of a kind that takes no rows.
    wrong = [name for name in SOURCES if given.get(name) != () and not isinstance(given.get(name), str | None)]
    if wrong:
        raise OptionsError(
            [((name,), f"must be text, the source of the rows; got {shown(given[name])}") for name in wrong]
        )
    return task if task is not given else {**given, "kind": given.get("kind") or "generate"}


class EvaluationSection(Options):
    """What to measure before and after training."""

    tasks: tuple[Annotated[AnyTask, BeforeValidator(_written_down)], ...] = Field((), strict=False)
    """Tasks, each with `data`, a `kind` and the options of that kind."""
    base: bool = True
    """Measure the model before training too; a score says little without it."""


class Recipe(Options):
    """A whole recipe. `load_recipe` reads one; `resolved` writes it out with every default."""

    model: ModelSection | None = None
    data: DataSection = DataSection()
    objective: ObjectiveSection | None = None
    reference: ReferenceSection = ReferenceSection()
    groups: GroupOptions | None = None
    rows: RowsOptions | None = None
    revise: ReviseOptions | None = None
    training: Training = Field(default_factory=dict)
    evaluation: EvaluationSection = EvaluationSection()
    engine: AnyEngine = TransformersEngine()
    """What samples answers, but those of the model in training; a bare string is its `kind`."""
    reward: RewardOptions | None = None
    rl: RLOptions | None = None
    compare: CompareSection | None = None
    rounds: RoundsSection | None = None
    output: PathText | None = None
    """Folder for checkpoints and the run record; new or empty, unless the run is resumed."""
    seed: int = Field(42, ge=0)
    """Decides the order of rows, the adapter's initial weights and dropout."""

    @field_validator(*SHORTHANDS, mode="before")
    @classmethod
    def _longhand(cls, value: Any, info: ValidationInfo) -> Any:
        return {SHORTHANDS[str(info.field_name)]: value} if isinstance(value, str) else value

    @field_serializer("engine")
    def _written_engine(self, engine: Engine) -> dict[str, Any] | None:
        # Recipes of versions without other engines are recipes of our own loop.
        return None if is_local(engine) else {"kind": engine.kind, **engine.model_dump(mode="json", exclude_unset=True)}

    @field_serializer("groups")
    def _written_groups(self, groups: GroupOptions | None) -> dict[str, Any] | None:
        # What stands beside a file must agree with it, so that defaults must not be written down.
        return None if groups is None else groups.model_dump(mode="json", exclude_unset=bool(groups.file))

    def groups_of(self, row: MethodSection) -> GroupOptions:
        """Return the groups of a row of the comparison; raises OptionsError where they are not allowed."""
        return (self.groups or GroupOptions()).changed(row.groups)

    def rl_of(self, then: ThenSection) -> RLOptions:
        """Return the RL that follows a comparison's runs; raises OptionsError where it is not allowed."""
        return (self.rl or RLOptions()).changed(then.rl)

    def resolved(self) -> dict[str, Any]:
        """Return plain values with every default filled in; loading them again gives an equal recipe."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """Return `resolved` as YAML, itself a recipe: without the keys whose absence is not written as empty."""
        from io import StringIO

        from ruamel.yaml import YAML

        writer, text = YAML(), StringIO()
        writer.default_flow_style = False
        named = {key: value for key, value in self.resolved().items() if value is not None or key not in NEVER_EMPTY}
        writer.dump(named, text)
        return text.getvalue()


Check = Callable[[Recipe, frozenset[str]], Iterable[Problem]]
"""Looks at the sections that are not in the given set of broken ones, and yields what is wrong with them."""


def load_recipe(path: str | Path | None, overrides: Sequence[str] = (), *, checks: Sequence[Check] = ()) -> Recipe:
    """Read a recipe file and ``key=value`` overrides; every problem is reported at once.

    Args:
        path: a YAML 1.2 file, or None for a recipe made of overrides alone.
        overrides: such as ``training.learning_rate=1e-5``; values are YAML, list items go by index.
        checks: further checks, run on the sections that are well formed.

    Raises:
        RecipeError: with one line per problem, each naming file and line (or the command line) and the key.
    """
    source, problems = load_source(path, overrides)
    recipe, broken, found = _validated(source.tree)
    problems += found
    for check in (_check_objectives, _check_overlays, *checks):
        problems += check(recipe, broken)
    if problems:
        raise RecipeError([source.describe(problem) for problem in problems])
    return recipe


def _validated(tree: Mapping[str, Any]) -> tuple[Recipe, frozenset[str], list[Problem]]:
    """Validate section by section, so that one broken section does not hide what is wrong with the others."""
    valid: dict[str, Any] = {}
    problems: list[Problem] = []
    broken: set[str] = set()
    for key, value in tree.items():
        try:
            valid[key] = getattr(Recipe(**{key: _default_for_empty(key, value)}), key)
        except OptionsError as error:
            broken.add(key)
            problems += [Problem(where, message) for where, message in error.problems]
    return Recipe.model_construct(**valid), frozenset(broken), problems


def _default_for_empty(key: str, value: Any) -> Any:
    """An empty ``training:`` means no settings; an empty ``objective:`` or ``model:`` is a slip."""
    field = Recipe.model_fields.get(key)
    if value is not None or field is None or key in NEVER_EMPTY:
        return "" if value is None else value
    return field.get_default(call_default_factory=True)


def _check_objectives(recipe: Recipe, broken: frozenset[str]) -> Iterable[Problem]:
    """The objective's options, and those of every row of a comparison."""
    sections: list[tuple[Where, ObjectiveSection]] = []
    if recipe.objective is not None and "objective" not in broken:
        sections.append((("objective",), recipe.objective))
    if recipe.compare is not None and "compare" not in broken:
        sections += [(("compare", "objectives", place), row) for place, row in enumerate(recipe.compare.objectives)]
    for where, section in sections:
        yield from (Problem((*where, key), message) for key, message in section.problems())


def _check_overlays(recipe: Recipe, broken: frozenset[str]) -> Iterable[Problem]:
    """What a comparison lays over `groups` and `rl`, each together with what it is laid over."""
    compare = recipe.compare
    if compare is None or "compare" in broken:
        return
    if "groups" not in broken:
        for place, row in enumerate(compare.objectives):
            yield from _refused(("compare", "objectives", place, "groups"), recipe.groups_of, row)
    if "rl" not in broken and compare.then is not None:
        yield from _refused(("compare", "then", "rl"), recipe.rl_of, compare.then)


def _refused(where: Where, lay_over: Callable[[Any], Options], section: Options) -> list[Problem]:
    try:
        lay_over(section)
    except OptionsError as error:
        return [Problem((*where, *inner), message) for inner, message in error.problems]
    return []
