"""Tasks of EleutherAI's lm-evaluation-harness, on the model in memory: IFEval, MMLU, or task files of your own.

The harness comes with the extra ``lm-eval`` and is imported on use. Its tasks, prompts, filters and scores are its own;
intervals are made here of its scores of single items.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import os
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import numpy as np

from ballast.errors import BallastError, suggest
from ballast.evaluation import metrics
from ballast.evaluation.tasks import LmEvalTask
from ballast.protocols import Progress

Rows = list[Mapping[str, Any]]
STDERR = "lm-eval-stderr"
"""Method of an interval that is the harness's own standard error times `Z` to both sides."""
Z = 1.959963984540054
SAME = 1e-6
"""How far the mean of single scores may be from the harness's figure to be the same thing."""


def rows(task: LmEvalTask) -> Rows:
    """Return one row per item that the harness asks: ``task``, ``doc_id`` and, as ``prompt``, what the item says.

    Raises:
        BallastError: the package is absent, a task is unknown or cannot be loaded, or is not supported.
    """
    _require()
    with _own_randomness(task.seed), _quiet():
        found: Rows = [
            {"task": name, "doc_id": place, "prompt": _plain(item)}
            for name, one in _load(task)["tasks"].items()
            for place, item in one.doc_iterator(limit=task.limit)
        ]
    if not found:
        raise BallastError("no rows to evaluate on")
    return found


def measure(
    task: LmEvalTask, model: Any, tokenizer: Any, progress: Progress | None
) -> tuple[dict[str, metrics.Estimate], dict[str, int], list[dict[str, Any]]]:
    """Return metrics as ``TASK/METRIC`` (``TASK/METRIC,FILTER`` where it filters answers), counts, and items.

    The tokenizer's chat template is applied where it has one, examples as turns. Generators of random numbers are as
    before afterwards, so is whether the model is in training mode.
    """
    _require()
    chat, training = bool(getattr(tokenizer, "chat_template", None)), model.training
    with _own_randomness(task.seed), _quiet():
        from lm_eval.evaluator import evaluate

        loaded = _load(task)
        _set_examples(task, loaded["tasks"].values())
        try:
            found = evaluate(
                _model(task, model, tokenizer, progress),
                loaded,
                limit=task.limit,
                apply_chat_template=chat,
                fewshot_as_multiturn=chat,
                log_samples=True,
            )
        finally:
            model.train(training)
    estimates = {
        f"{name}/{_metric(key)}": estimate
        for name in _shown(task, loaded)
        for key, estimate in _estimates(name, found, task.seed)
    }
    samples = [(name, sample) for name, some in found["samples"].items() for sample in some]
    return estimates, {"chat_template": int(chat), "examples": task.few_shot or 0}, [_item(*one) for one in samples]


def _require() -> None:
    if find_spec("lm_eval") is None:
        raise BallastError(
            "kind lm-eval needs the package lm-eval, which is not installed, so nothing could be asked; pip install "
            "'ballast-ft[lm-eval]'"
        )


def _set_examples(task: LmEvalTask, loaded: Iterable[Any]) -> None:
    for one in loaded:
        one.set_fewshot_seed(seed=task.seed)
        if task.few_shot is not None or one.get_config("num_fewshot") is None:
            one.set_config(key="num_fewshot", value=task.few_shot or 0)


def _load(task: LmEvalTask) -> dict[str, Any]:
    """Return the harness's own tasks and groups by name, freshly made: they keep what they were asked."""
    manager = _manager(task.include_path)
    for name in task.tasks:
        if name not in manager.task_index:
            raise BallastError(
                f"tasks: lm-eval has no task {name!r}{suggest(name, tuple(manager.all_tasks))}; `lm-eval ls tasks` "
                "lists all, include_path adds a folder of your own"
            )
    loaded = {name: _loaded(manager, name) for name in task.tasks}
    merged: dict[str, Any] = {"tasks": {}, "groups": {}, "group_map": {}}
    for part in loaded.values():
        for key, values in merged.items():
            values.update(part[key])
    for name, one in merged["tasks"].items():
        if problem := _problem(one, task):
            raise BallastError(f"lm-eval's task {name!r} {problem}")
    return {**merged, "of": {name: tuple(part["tasks"]) for name, part in loaded.items()}}


@lru_cache(maxsize=4)
def _manager(include_path: str | None) -> Any:
    """Return the index of all task files, which takes seconds to make."""
    from lm_eval.tasks import TaskManager

    if include_path is not None and not os.path.isdir(include_path):
        raise BallastError(
            f"include_path: there is no folder {include_path}, so its tasks would be missing; correct it"
        )
    return TaskManager(include_path=include_path)


def _loaded(manager: Any, name: str) -> Any:
    try:
        return manager.load([name])
    except ModuleNotFoundError as error:
        raise BallastError(
            f"lm-eval's task {name!r} needs the package {error.name}, which is not installed; pip install {error.name}"
        ) from error
    except Exception as error:  # task files run code of their own, and data sets come from anywhere
        from huggingface_hub import constants

        said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        offline = constants.is_offline_mode() or isinstance(error, ConnectionError)
        remedy = "fetch it once on a machine with network, or name another task" if offline else "see its task file"
        hub = "its data are on the hub, which is out of reach" if offline else "its data or its file cannot be read"
        raise BallastError(f"lm-eval's task {name!r} cannot be loaded: {hub}; {remedy} ({said})") from error


def _problem(one: Any, task: LmEvalTask) -> str | None:
    if getattr(one, "UNSAFE_CODE", False) or one.get_config("unsafe_code"):
        return "runs what the model wrote outside any sandbox; leave it out, or take a task of kind code"
    if getattr(one, "MULTIMODAL", False):
        return "shows images, which the model is not given; leave it out"
    if task.few_shot and one.get_config("num_fewshot") == 0:
        return (
            f"has no examples by its authors' setting, and few_shot {task.few_shot} would change it; leave few_shot out"
        )
    return None


def _model(task: LmEvalTask, model: Any, tokenizer: Any, progress: Progress | None) -> Any:
    """Return the model in memory as the harness asks one, with batches told of in place of its own bars."""
    from lm_eval.models.huggingface import HFLM

    class Told(HFLM):  # type: ignore[misc]
        done = total = 0

        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> Any:
            return self._asked(super().loglikelihood, requests)

        def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> Any:
            return self._asked(super().loglikelihood_rolling, requests)

        def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> Any:
            return self._asked(super().generate_until, requests)

        def _model_call(self, inps: Any, *args: Any, **kwargs: Any) -> Any:
            return self._told(len(inps), super()._model_call(inps, *args, **kwargs))

        def _model_generate(self, context: Any, *args: Any, **kwargs: Any) -> Any:
            return self._told(len(context), super()._model_generate(context, *args, **kwargs))

        def _asked(self, ask: Any, requests: list[Any]) -> Any:
            self.done, self.total = 0, len(requests)
            answers = ask(requests, disable_tqdm=True)
            return self._told(self.total, answers)

        def _told(self, count: int, result: Any) -> Any:
            # A request may take several passes, and one pass may answer several.
            before, self.done = self.done, min(self.done + count, self.total)
            if progress is not None and self.done > before:
                progress(self.done, self.total)
            return result

    # The harness gives a tokenizer a token to pad with.
    return Told(pretrained=model.eval(), tokenizer=copy.deepcopy(tokenizer), batch_size=task.batch_size)


def _shown(task: LmEvalTask, loaded: Mapping[str, Any]) -> list[str]:
    """Return the names whose figures are kept: those asked for; the members of a group or tag without any."""
    names: list[str] = []
    for name in task.tasks:
        group = loaded["groups"].get(name)
        whole = name in loaded["tasks"] or (group is not None and group.has_aggregation)
        names += [name] if whole else loaded["of"][name]
    return list(dict.fromkeys(names))


def _estimates(name: str, found: Mapping[str, Any], seed: int) -> Iterator[tuple[str, metrics.Estimate]]:
    """Yield metrics as the harness names them, ``METRIC,FILTER``, with intervals."""
    results, samples = found["results"][name], found["samples"].get(name, ())
    for key, value in results.items():
        metric, _, filtered = key.partition(",")
        if not filtered or metric.endswith("_stderr") or not _is_number(value):
            continue
        single = [one.get(metric) for one in samples if one["filter"] == filtered]
        own = _of_items(single, float(value), seed)
        if own is None:
            own = _of_stderr(float(value), results.get(f"{metric}_stderr,{filtered}"), _count(name, found))
        yield key, own


def _of_items(single: Sequence[Any], value: float, seed: int) -> metrics.Estimate | None:
    """Return the harness's figure with an interval over items, None where it is no mean of them."""
    if single and all(map(_is_number, single)):
        own = metrics.mean([float(one) for one in single], seed=seed)
    elif single and all(isinstance(one, list | tuple) and one and all(map(_is_number, one)) for one in single):
        own = metrics.ratio([float(sum(one)) for one in single], [float(len(one)) for one in single], seed=seed)
    else:
        return None
    return own if math.isclose(own.value, value, rel_tol=SAME, abs_tol=SAME) else None


def _of_stderr(value: float, stderr: Any, count: int) -> metrics.Estimate:
    if not _is_number(stderr) or not math.isfinite(stderr):
        return metrics.Estimate(value, count, None, None, metrics.LEVEL, "none")
    return metrics.Estimate(value, count, value - Z * stderr, value + Z * stderr, metrics.LEVEL, STDERR)


def _count(name: str, found: Mapping[str, Any]) -> int:
    """Return the items behind a task's figure, or behind those of all tasks of a group."""
    if name in found["n-samples"]:
        return int(found["n-samples"][name]["effective"])
    return sum(_count(one, found) for one in found["group_subtasks"].get(name, ()))


def _metric(key: str) -> str:
    return key.removesuffix(",none")


def _is_number(value: Any) -> bool:
    return isinstance(value, bool | int | float | np.number | np.bool_)


def _item(name: str, sample: Mapping[str, Any]) -> dict[str, Any]:
    asked = {"task": name, "doc_id": sample["doc_id"], "prompt": sample["arguments"], "answer": sample["target"]}
    scores = {metric: sample[metric] for metric in sample["metrics"]}
    return _plain({**asked, "filter": sample["filter"], "responses": sample["filtered_resps"], "scores": scores})


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=_plain_of))


def _plain_of(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else str(value)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the harness's remarks on a model that is handed over from standing between ours."""
    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextmanager
def _own_randomness(seed: int) -> Iterator[None]:
    """Let the harness draw from generators seeded for it, and leave those of the run as they were."""
    import torch

    python, numbers = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numbers)
