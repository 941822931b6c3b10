"""The recipe: what to train, on what, with which objective. Strict and typed; importing it imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from ballast.config.sections import CompareSection, ObjectiveSection, Section
from ballast.config.source import SHORTHANDS, Problem, RecipeError, Where, load_source
from ballast.errors import BallastError, suggest
from ballast.groups.options import GroupOptions
from ballast.objectives import objective as build_objective
from ballast.rl import options as rl_options
from ballast.rl.options import RLOptions

COLUMN_STYLES = ("alpaca", "sharegpt")
NEVER_EMPTY = ("model", "objective")
"""Sections that are a slip where they are written without a value."""


class ModelSection(Section):
    """The model that fine-tuning starts from; a bare string is its ``path``."""

    path: str = Field(min_length=1, description="folder, hub id, or 'lab' for the embedded model")
    revision: str | None = Field(None, description="branch, tag or commit on the hub")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "float32", description="dtype of the weights in memory; float32 is also what mixed-precision training updates"
    )
    attn_implementation: str | None = Field(None, description="sdpa, eager, flash_attention_2, …")
    trust_remote_code: bool = Field(False, description="run Python code that comes with the model")
    adapter: str | None = Field(None, description="folder of a PEFT adapter that training continues from")
    lora: dict[str, Any] | None = Field(None, description="fields of peft.LoraConfig: train a new adapter")

    @model_validator(mode="after")
    def _one_adapter(self) -> ModelSection:
        if self.adapter and self.lora is not None:
            raise ValueError("adapter and lora are both given, one would be lost; keep the one to train")
        return self


class DataSection(Section):
    """Demonstrations: files, folders or hub ids, and how their columns are called."""

    train: tuple[str, ...] = Field((), strict=False, description="a source, or a list of them (a mixture)")
    eval: tuple[str, ...] = Field((), strict=False, description="held-out rows for eval_loss during training")
    split: str | None = Field(None, description="split of the training source, where it has several")
    eval_split: str | None = Field(None, description="split of the held-out source")
    columns: str | dict[str, str] | None = Field(
        None, description="alpaca, sharegpt, or a mapping from our column names to yours"
    )
    limit: int | None = Field(None, ge=1, description="use the first rows of each training source")

    @field_validator("columns", mode="before")
    @classmethod
    def _columns(cls, value: Any) -> Any:
        named = isinstance(value, str) and value in COLUMN_STYLES
        mapped = isinstance(value, dict) and all(isinstance(part, str) for pair in value.items() for part in pair)
        if value is not None and not named and not mapped:
            raise ValueError(f"must be {' or '.join(COLUMN_STYLES)}, or map our column names to yours; got {value!r}")
        return value

    @field_validator("train", "eval", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else () if value is None else value


class ReferenceSection(Section):
    """The frozen model that objectives compare with; a bare string is ``use``."""

    use: Literal["auto", "model", "adapter-off"] = Field(
        "auto", description="auto: the cache if given, else adapter-off under PEFT, else a frozen copy of the start"
    )
    cache: str | None = Field(None, min_length=1, description="folder of statistics written by `ballast score`")
    model: str | None = Field(None, min_length=1, description="another model than the start")

    @model_validator(mode="after")
    def _one_reference(self) -> ReferenceSection:
        if self.cache and self.use != "auto":
            raise ValueError(f"use: {self.use} and cache contradict each other, one would be ignored; keep one")
        if self.model and (self.use != "auto" or self.cache):
            other = "cache" if self.cache else f"use: {self.use}"
            raise ValueError(f"{other} and model contradict each other, one would be ignored; keep one")
        return self


class TaskSection(Section):
    """One evaluation task; the options of its kind (verifier, samples, …) stand beside these keys."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    kind: Literal["generate", "choice", "code", "nll", "readiness"] = "generate"
    name: str = Field("", description="name in results; the data's where absent")
    data: str = Field(min_length=1, description="source of the rows")

    def settings(self) -> dict[str, Any]:
        """Return the mapping that `ballast.evaluation.Task.from_dict` takes."""
        return {**self.model_dump(), "name": self.name or self.data}


class EvaluationSection(Section):
    """What to measure before and after training."""

    tasks: tuple[TaskSection, ...] = Field((), strict=False)
    base: bool = Field(True, description="measure the model before training too; a score says little without it")


class Recipe(Section):
    """A whole recipe. `load_recipe` reads one; `resolved` writes it out with every default."""

    model: ModelSection | None = None
    data: DataSection = DataSection()
    objective: ObjectiveSection | None = None
    reference: ReferenceSection = ReferenceSection()
    groups: dict[str, Any] | None = Field(None, description="fields of ballast.groups.GroupOptions: for gft")
    training: dict[str, Any] = Field(default_factory=dict, description="fields of ballast.TrainingConfig")
    evaluation: EvaluationSection = EvaluationSection()
    rl: dict[str, Any] | None = Field(None, description="fields of ballast.rl.RLOptions: for `ballast rl`")
    compare: CompareSection | None = Field(None, description="for `ballast compare`")
    output: str | None = Field(None, min_length=1, description="folder for checkpoints and the run record")
    seed: int = Field(42, ge=0)

    @field_validator(*SHORTHANDS, mode="before")
    @classmethod
    def _longhand(cls, value: Any, info: ValidationInfo) -> Any:
        return {SHORTHANDS[str(info.field_name)]: value} if isinstance(value, str) else value

    def group_options(self) -> GroupOptions | None:
        """Return how groups of answers are made, None without groups; raises BallastError where it is not allowed."""
        return None if self.groups is None else GroupOptions.from_dict(self.groups)

    def rl_options(self) -> RLOptions | None:
        """Return how reinforcement learning goes, None without it; raises BallastError where it is not allowed."""
        return None if self.rl is None else RLOptions.from_dict(self.rl)

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
    for check in (_check_objective, check_group_options, _check_rl, *checks):
        problems += check(recipe, broken)
    if problems:
        raise RecipeError([source.describe(problem) for problem in problems])
    return recipe


def _validated(tree: Mapping[Any, Any]) -> tuple[Recipe, frozenset[str], list[Problem]]:
    """Validate section by section, so that one broken section does not hide what is wrong with the others."""
    valid: dict[str, Any] = {}
    problems: list[Problem] = []
    broken: set[str] = set()
    for key, value in tree.items():
        try:
            valid[key] = getattr(Recipe.model_validate({str(key): _default_for_empty(key, value)}), str(key))
        except ValidationError as error:
            broken.add(str(key))
            problems += [_problem(details) for details in error.errors()]
    return Recipe.model_construct(**valid), frozenset(broken), problems


def _default_for_empty(key: Any, value: Any) -> Any:
    """An empty ``training:`` means no settings; an empty ``objective:`` or ``model:`` is a slip."""
    field = Recipe.model_fields.get(str(key))
    if value is not None or field is None or str(key) in NEVER_EMPTY:
        return "" if value is None else value
    return field.get_default(call_default_factory=True)


def _check_objective(recipe: Recipe, broken: frozenset[str]) -> Iterable[Problem]:
    """The objective's options, and those of every row of a comparison."""
    if recipe.objective is not None and "objective" not in broken:
        yield from _check_options(recipe.objective, ("objective",))
    if recipe.compare is not None and "compare" not in broken:
        for index, section in enumerate(recipe.compare.objectives):
            yield from _check_options(section, ("compare", "objectives", index))


def _check_options(section: ObjectiveSection, where: Where) -> Iterable[Problem]:
    """Take away one option to blame at a time, so that a bad option does not hide the next."""
    options = section.options
    while (message := _rejected(section.name, options)) is not None:
        without = ({key: options[key] for key in options if key != blamed} for blamed in options)
        smaller = next((rest for rest in without if _rejected(section.name, rest) != message), None)
        blamed = [key for key in options if smaller is not None and key not in smaller]
        yield Problem((*where, *(blamed or ["name"])), message)
        if smaller is None:
            return
        options = smaller


def check_group_options(recipe: Recipe, broken: frozenset[str]) -> Iterable[Problem]:
    """Look at every key by itself, so that a bad one does not hide the next; then at all of them together."""
    if recipe.groups is None or "groups" in broken:
        return
    # One own answer goes with every temperature.
    wrong = {key: message for key, value in recipe.groups.items() if (message := _refused({"own": 1, key: value}))}
    for key, message in wrong.items():
        before = f"groups.{key} = {recipe.groups[key]!r}: "
        known = message.startswith(before)
        text = f"{message.removeprefix(before)}; got {recipe.groups[key]!r}" if known else message
        yield Problem(("groups", key), text.removeprefix("groups: "))
    if not wrong and (message := _refused(recipe.groups)):
        key = next((key for key in recipe.groups if message.startswith(f"groups.{key} = ")), None)
        text = message.removeprefix(f"groups.{key} = ").removeprefix("groups: ")
        yield Problem(("groups", *([key] if key else [])), text)


def _check_rl(recipe: Recipe, broken: frozenset[str]) -> Iterable[Problem]:
    """Look at every key by itself, then at all of them together."""
    if recipe.rl is None or "rl" in broken:
        return
    wrong = list(rl_options.problems(recipe.rl))
    yield from (Problem(("rl", key), message) for key, message in wrong)
    if not wrong:
        try:
            recipe.rl_options()
        except BallastError as error:
            place, _, message = str(error).partition(": ")
            yield Problem(tuple(place.split(".")), message)


def _refused(groups: Mapping[str, Any]) -> str | None:
    try:
        GroupOptions.from_dict(groups)
    except BallastError as error:
        return str(error)
    return None


def _rejected(name: str, options: Mapping[str, Any]) -> str | None:
    try:
        build_objective(name, **options)
    except BallastError as error:
        return _bare(error)
    except TypeError as error:
        return str(error)
    return None


def _bare(error: BallastError) -> str:
    """Without the name of the objective, which the place already gives."""
    text = str(error)
    return text.split(": ", 1)[1] if text.startswith("objective") and ": " in text else text


def _problem(details: Mapping[str, Any]) -> Problem:
    where: Where = tuple(details["loc"])
    kind, value = details["type"], details.get("input")
    if kind == "extra_forbidden":
        known = _known_keys(where[:-1])
        return Problem(where, f"unknown key{suggest(str(where[-1]), known)}")
    if kind == "missing":
        return Problem(where, "is required and missing")
    if kind == "literal_error":
        known = tuple(part.strip("'") for part in details["ctx"]["expected"].replace(" or ", ", ").split(", "))
        return Problem(where, f"{value!r} is not allowed{suggest(str(value), known)}")
    if kind == "string_too_short":
        return Problem(where, "is empty; give a value or leave the key out")
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return Problem(where, f"must be a mapping of keys; got {value!r}")
    if kind == "value_error":
        return Problem(where, str(details["ctx"]["error"]))
    message = details["msg"].removeprefix("Input ").replace("valid tuple", "text or a list of them")
    return Problem(where, f"{message}; got {value!r}")


def _known_keys(where: Where) -> tuple[str, ...]:
    """Return the keys that the section at ``where`` has."""
    section: type[BaseModel] = Recipe
    for part in where:
        if isinstance(part, int):
            continue
        section = next(kind for kind in _section_types(section.model_fields[str(part)].annotation))
    return tuple(section.model_fields)


def _section_types(annotation: Any) -> Iterable[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _section_types(inner)
