"""What can be known to be wrong before a weight is read or a file written; each check yields all that it finds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ballast import checkpoints, models
from ballast.config import training as settings
from ballast.config.recipe import Check, ModelSection, Recipe
from ballast.config.source import Problem
from ballast.data.refusals import streaming_problem
from ballast.engines.options import TECHNICAL
from ballast.errors import BallastError
from ballast.files import LEAST_FREE, place_problem, same_file
from ballast.groups.options import ROUND, round_problem
from ballast.limits import check_tokenizer
from ballast.pipeline import sources
from ballast.pipeline.advise import check_has_demonstrations, check_reference_is_start
from ballast.pipeline.checks import engine as engine_checks
from ballast.pipeline.checks import groups as group_checks
from ballast.pipeline.checks import half as half_checks
from ballast.pipeline.checks import quantised as quantised_checks
from ballast.pipeline.run_folder import LOCK, is_trained
from ballast.records.runs import read_record
from ballast.statistics import check_statistics, is_pair

FIXED: dict[str, tuple[str, ...]] = dict.fromkeys(("model", "data", "objective", "reference", "groups", "seed"), ())
FIXED |= {"engine": TECHNICAL}
"""Sections that a resumed run may not change; training settings, evaluation and output may."""


def check_required(*keys: str) -> Check:
    """Return a check that top-level keys are there."""
    remedies = {
        "model": "name the model to start from: model=PATH, or model=lab",
        "objective": "choose one, such as objective=prift-mass; `ballast objectives` lists them",
        "output": "name the folder for checkpoints and the run record: output=runs/first",
    }

    def check(recipe: Recipe, broken: frozenset[str]) -> Iterable[Problem]:
        for key in keys:
            if key not in broken and getattr(recipe, key) is None:
                yield Problem((key,), f"is required and missing; {remedies[key]}")

    return check


def check_model(recipe: Recipe, broken: frozenset[str]) -> Iterable[Problem]:
    """The model's folder, configuration and tokenizer; its adapter or LoRA settings."""
    if recipe.model is None or "model" in broken:
        return
    section = recipe.model
    lora = models.lora_problems(section.lora) if section.lora is not None else []
    for key, message in lora:
        yield Problem(("model", "lora", *([key] if key else [])), message)
    if section.adapter and (problem := models.check_adapter(section.adapter)):
        yield Problem(("model", "adapter"), problem)
    try:
        section = models.resolve(section)
        config = models.load_config(section)
        check_tokenizer(section.path, config, models.load_tokenizer(section))
    except BallastError as error:
        yield Problem(("model",), str(error))
        return
    yield from quantised_checks.check_loading(section, config)
    try:
        given = {} if "training" in broken else recipe.training
        models.load_tokenizer(section, {key: value for key, value in given.items() if isinstance(value, str)})
    except BallastError as error:
        yield Problem(("training",), str(error))
    if problem := models.attention_problem(section):
        yield Problem(("model", "attn_implementation"), problem)
    try:
        if section.lora is not None and not lora:
            models.try_lora(section, config)
    except BallastError as error:
        yield Problem(("model", "lora"), str(error))


def check_data(recipe: Recipe, broken: frozenset[str]) -> Iterable[Problem]:
    """Sources that are named but not there, and no source at all."""
    if "data" in broken:
        return
    if not recipe.data.train and not (recipe.groups and recipe.groups.file):
        yield Problem(("data", "train"), "is required and missing; name the demonstrations: data.train=rows.jsonl")
    for key in ("train", "eval"):
        listed = getattr(recipe.data, key)
        for index, source in enumerate(listed):
            if problem := sources.check_source(source):
                yield Problem(("data", key, *([index] if len(listed) > 1 else [])), problem)


def check_streaming(recipe: Recipe, broken: frozenset[str]) -> Iterable[Problem]:
    """Whether all that trains can do without knowing how many rows there are."""
    if "data" in broken or not recipe.data.streaming:
        return
    if "training" not in broken and (problem := streaming_problem(recipe.training)):
        key, why = problem
        yield Problem(("data", "streaming") if key == "max_steps" else ("training", key), why)
    if "groups" not in broken and recipe.groups is not None:
        yield Problem(
            ("data", "streaming"), "answers are sampled for prompts by their number, so all are read; set it to false"
        )
    for index, source in enumerate(recipe.data.train):
        if source.endswith((".json", ".json.gz")):
            yield Problem(
                ("data", "train", *([index] if len(recipe.data.train) > 1 else [])),
                f"{source}: an array ends only with its file, so it cannot be read in pieces; write it as .jsonl, a "
                "row a line, or leave data.streaming out",
            )


def check_reference(recipe: Recipe, broken: frozenset[str]) -> Iterable[Problem]:
    """Whether the reference can give what the objective needs."""
    if broken & {"objective", "reference", "model", "training"}:
        return
    reference, section = recipe.reference, recipe.model
    chosen = None if recipe.objective is None or recipe.objective.problems() else recipe.objective.build()
    if reference.use == ROUND and chosen and (problem := round_problem(chosen.name, chosen.needs)):
        yield Problem(("reference",), problem)
    has_adapter = section is not None and (section.lora is not None or section.adapter is not None)
    if reference.use == "adapter-off" and not has_adapter:
        yield Problem(
            ("reference",),
            "adapter-off needs an adapter to switch off, or the model would be its own reference; set model.lora",
        )
    if reference.model and (problem := _reference_problem(section, reference.model)):
        yield Problem(("reference", "model"), problem)
    yield from _check_needs(recipe)
    training = recipe.training
    if reference.cache and training.get("packing") is True and training.get("packing_strategy") == "wrapped":
        yield Problem(
            ("training", "packing_strategy"),
            "'wrapped' cuts rows, so cached values would belong to other contexts; use 'bfd' or 'bfd_split'",
        )


def _reference_problem(section: ModelSection | None, name: str) -> str | None:
    """Return why a model cannot be the reference of another: it is not there, or its tokens are others; None if not."""
    problem = models.check_folder(_path(name))
    if problem or section is None:
        return problem
    try:
        own = models.load_tokenizer(models.resolve(section)).get_vocab()
        other = models.load_tokenizer(models.resolve(models.section_of(name, section))).get_vocab()
    except BallastError:
        # What cannot be read is told of the model, and a reference need not have a tokenizer.
        return None
    differing = [token for token in own if other.get(token) != own[token]]
    if not differing:
        return None
    place = other.get(differing[0], "none")
    return (
        f"{name}: has another vocabulary: {len(differing):,} of the model's tokens, such as {differing[0]!r} (id "
        f"{own[differing[0]]} here, {place} there): probabilities of different tokens would be compared; name a model "
        "with the same tokenizer"
    )


def _check_needs(recipe: Recipe) -> Iterable[Problem]:
    if recipe.objective is None or recipe.model is None or recipe.objective.problems():
        return
    objective = recipe.objective.build()
    full = list(filter(is_pair, objective.needs))
    if recipe.reference.cache and full:
        yield Problem(
            ("reference", "cache"),
            f"objective {objective.name} needs {full[0]!r}, a divergence over the whole vocabulary, which one number "
            "per token cannot give; use reference: model, or adapter-off under model.lora",
        )
    try:
        vocabulary = models.load_config(models.resolve(recipe.model)).get_text_config().vocab_size
    except BallastError:
        return  # told of the model
    try:
        check_statistics(objective.needs, vocabulary)
    except BallastError as error:
        yield Problem(("objective",), str(error))


def check_score(recipe: Recipe, broken: frozenset[str]) -> Iterable[Problem]:
    """Whether there is a place for the scores."""
    if "reference" not in broken and recipe.reference.cache is None:
        yield Problem(("reference", "cache"), "is required and missing; name the folder to fill: reference.cache=PATH")


def check_tasks(recipe: Recipe, broken: frozenset[str]) -> Iterable[Problem]:
    """Every task's options, verifier and rows."""
    from ballast.pipeline.tasks import load_task

    if "evaluation" in broken:
        return
    if clash := same_file(task.name for task in recipe.evaluation.tasks):
        place, earlier = clash
        name = recipe.evaluation.tasks[place].name
        second = f"a second task named {name!r}" if name == earlier else f"{name!r} has the same file as {earlier!r}"
        yield Problem(
            ("evaluation", "tasks", place), f"{second}; one result would hide the other; give it another name"
        )
    for index, section in enumerate(recipe.evaluation.tasks):
        where = ("evaluation", "tasks", index)
        name = section.name
        try:
            load_task(section, recipe.data)
        except BallastError as error:
            yield Problem(where, str(error).removeprefix(f"task {name!r}: "))


def check_evaluate(recipe: Recipe, broken: frozenset[str]) -> Iterable[Problem]:
    """Whether there is something to measure."""
    if "evaluation" not in broken and not recipe.evaluation.tasks:
        yield Problem(("evaluation", "tasks"), "is empty, so there is nothing to measure; name at least one task")


def check_cache_folder(recipe: Recipe, broken: frozenset[str]) -> Iterable[Problem]:
    """A cache is a folder that can be filled."""
    if "reference" not in broken and recipe.reference.cache and (problem := place_problem(recipe.reference.cache)):
        yield Problem(("reference", "cache"), problem)


def check_cache_place(recipe: Recipe, broken: frozenset[str]) -> Iterable[Problem]:
    """A cache is a folder of its own."""
    if "reference" in broken or recipe.reference.cache is None:
        return
    cache, problems = Path(recipe.reference.cache), list(check_cache_folder(recipe, broken))
    yield from problems
    if not problems and recipe.output and "output" not in broken and _inside(cache, Path(recipe.output)):
        yield Problem(
            ("reference", "cache"),
            f"lies inside the output {recipe.output}, which would then look like an earlier run; put it beside",
        )


def check_output(recipe: Recipe, broken: frozenset[str]) -> Iterable[Problem]:
    """A new run starts in a new or empty folder."""
    if recipe.output is None or "output" in broken:
        return
    output = Path(recipe.output)
    if problem := place_problem(output, bytes_needed(recipe, broken)):
        yield Problem(("output",), problem)
    elif output.is_dir() and any(entry.name != LOCK for entry in output.iterdir()):
        yield Problem(
            ("output",), f"{output}: is not empty, two runs would mix; choose another folder, or go on with --resume"
        )


def bytes_needed(recipe: Recipe, broken: frozenset[str]) -> int:
    """Return the bytes that a run leaves at least: those of the model, where it is here and trained as a whole."""
    section = recipe.model
    if section is None or "model" in broken or section.lora is not None or section.adapter is not None:
        return LEAST_FREE
    folder = Path(models.resolve(section).path)
    weights = [file.stat().st_size for file in folder.glob("*.safetensors")] if folder.is_dir() else []
    return max(LEAST_FREE, sum(weights))


def check_resume(fixed: Mapping[str, Sequence[str]]) -> Check:
    """Return the check that a resumed run has a checkpoint to go on from, and goes on with what it began with.

    Args:
        fixed: sections that must not differ from the run's, each with its keys that may.
    """

    def check(recipe: Recipe, broken: frozenset[str]) -> Iterable[Problem]:
        if recipe.output is None or "output" in broken:
            return
        output = Path(recipe.output)
        if problem := place_problem(output, bytes_needed(recipe, broken)):
            yield Problem(("output",), problem)
            return
        try:
            record = read_record(output)
            begun = {} if record is None else _begun(record.recipe, fixed)
        except BallastError as error:
            yield Problem(("output",), str(error))
            return
        if not is_trained(record, recipe):
            last = checkpoints.last_whole(output, weights_only=bool(recipe.training.get("save_only_model")))
            if last.path is None:
                torn = "".join(f"; {line}" for line in last.lines())
                yield Problem(("output",), f"{output}: has no checkpoint to resume from{torn}; start without --resume")
                return
        now = recipe.resolved()
        for key, section in begun.items():
            if key not in broken and _without(section, fixed[key]) != _without(now[key], fixed[key]):
                yield Problem(
                    (key,), "differs from the run to be resumed, which would change midway; start a new output"
                )
        if "training" not in broken and not half_checks.same_half(record, recipe):
            yield Problem(
                ("training", "half"),
                "differs from the run to be resumed: other weights would train midway, with an optimiser's state that "
                "is not theirs; set it back, or start a new output",
            )

    return check


def check_devices(recipe: Recipe, broken: frozenset[str]) -> Iterable[Problem]:
    """One process that sees several GPUs, which transformers would spread each batch over."""
    from ballast.loop import data_parallel_problem

    if "training" in broken:
        return
    try:
        args = settings.training_config(recipe)
    except (ValueError, TypeError, ImportError, NotImplementedError):  # reported by `check_training`
        return
    if problem := data_parallel_problem(args):
        yield Problem(("training",), problem)


def _begun(recipe: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """Return the sections of a recipe as this version resolves them."""
    resolved = Recipe.from_dict({key: recipe[key] for key in keys if key in recipe}).resolved()
    return {key: resolved[key] for key in keys}


def _without(section: Any, keys: Sequence[str]) -> Any:
    if not isinstance(section, Mapping):
        return section
    return {key: value for key, value in section.items() if key not in keys}


def _path(name: str) -> str:
    return models.resolve(ModelSection(path=name)).path


def _inside(inner: Path, outer: Path) -> bool:
    return outer.resolve() in (inner.resolve(), *inner.resolve().parents)


_COMMON = (
    check_model,
    check_data,
    check_reference,
    group_checks.check_groups,
    settings.check_training,
    half_checks.check_half,
    check_cache_place,
)
_TRAIN = (
    check_required("model", "objective", "output"),
    *_COMMON,
    quantised_checks.check_training,
    check_streaming,
    check_tasks,
    *engine_checks.TRAINING,
)

SCORE_CHECKS: tuple[Check, ...] = (check_required("model"), *_COMMON, check_score)
SAMPLE_CHECKS: tuple[Check, ...] = (
    check_required("model"),
    check_model,
    check_data,
    group_checks.check_sampling,
    settings.check_training,
    engine_checks.check_engine,
    engine_checks.check_sampling,
)
ADVISE_CHECKS: tuple[Check, ...] = (
    check_required("model"),
    check_model,
    check_data,
    check_has_demonstrations,
    check_reference,
    check_reference_is_start,
    settings.check_training,
    check_cache_place,
)
# The output first: in a run of several processes none can have made it before all have met to set up training.
TRAIN_CHECKS: tuple[Check, ...] = (check_output, *_TRAIN, check_devices)
RESUME_CHECKS: tuple[Check, ...] = (*_TRAIN, check_devices, check_resume(FIXED))
TASK_CHECKS: tuple[Check, ...] = (check_evaluate, check_tasks, *engine_checks.MEASURING)
EVALUATE_CHECKS: tuple[Check, ...] = (check_model, *TASK_CHECKS)
