"""Problems and scores from the optional package reasoning-gym (``pip install 'ballast-ft[reasoning-gym]'``).

reasoning-gym draws item i of a data set from ``seed + i``: data sets with seeds 0 and 1 are the same items shifted by
one. Here a seed is multiplied by `STRIDE`, so that different seeds never share an item's seed, and rows are
de-duplicated by text because different items can still read the same. The package is imported at the first use.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from types import ModuleType
from typing import Any

from ballast.errors import BallastError, suggest

STRIDE = 1_000_000
LARGEST_SEED = 4_000
INSTRUCTION = "\nGive the final answer between <answer> and </answer>."
Row = dict[str, Any]
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


def _gym() -> ModuleType:
    try:
        import reasoning_gym
    except ImportError as error:
        raise BallastError(
            "reasoning-gym is not installed, so its tasks can be neither drawn nor scored; "
            "pip install 'ballast-ft[reasoning-gym]'"
        ) from error
    return reasoning_gym


@lru_cache(maxsize=16)
def _items(task: str, seed: int, size: int, config: str) -> Any:
    gym = _gym()
    from reasoning_gym.factory import DATASETS

    if task not in DATASETS:
        raise BallastError(f"reasoning-gym task {task!r} is unknown{suggest(task, list(DATASETS))}")
    try:
        return gym.create_dataset(task, seed=seed * STRIDE, size=size, **json.loads(config))
    except (TypeError, AssertionError, ValueError) as error:
        raise BallastError(f"reasoning-gym task {task!r} refuses the options {config}: {error}") from error


def _take(task: str, wanted: int, seed: int, config: Mapping[str, Any] | None) -> list[Row]:
    if not isinstance(seed, int) or not 0 <= seed <= LARGEST_SEED:
        raise BallastError(f"reasoning-gym seed={seed!r}; give a whole number from 0 to {LARGEST_SEED}")
    # Some tasks build all their items at once, so the data set is no larger than duplicates may need.
    size, options = min(2 * wanted + 100, STRIDE), json.dumps(dict(config or {}), sort_keys=True)
    place = {"task": task, "seed": seed, "size": size, "config": options}
    items = _items(task, seed, size, options)
    rows: dict[str, Row] = {}
    for index in range(size):
        if len(rows) == wanted:
            break
        item = items[index]
        prompt = item["question"] + INSTRUCTION
        rows.setdefault(prompt, {"prompt": prompt, "answer": str(item["answer"]), "index": index, **place})
    if len(rows) < wanted:
        raise BallastError(
            f"reasoning-gym task {task!r}: only {len(rows)} of {wanted} different problems came up, rows would repeat; "
            "ask for fewer, or give a config with a larger range"
        )
    return list(rows.values())


def _check_size(name: str, size: int) -> None:
    if not isinstance(size, int) or size < 0:
        raise BallastError(f"reasoning-gym {name}={size!r} is not a number of rows; give a whole number from 0")


def problems(task: str, seed: int, size: int, config: Mapping[str, Any] | None = None) -> list[Row]:
    """Draw ``size`` problems, different by text, as rows ``{"prompt", "answer"}`` plus what `verify` needs.

    Args:
        task: a reasoning-gym data set, e.g. ``"chain_sum"``.
        seed: 0 to `LARGEST_SEED`; different seeds share no item.
        config: options of the task, e.g. ``{"max_terms": 3}``; they must be plain JSON values.

    Raises:
        BallastError: the package is missing, the task or an option is unknown, or too few different problems came up.
    """
    _check_size("size", size)
    return _take(task, size, seed, config)


def split(
    task: str, train_size: int, test_size: int, seed: int = 0, config: Mapping[str, Any] | None = None
) -> tuple[list[Row], list[Row]]:
    """Return ``(train, test)`` rows that share neither an item nor a text.

    The test rows come first in the stream of the seed, so that a larger ``train_size`` leaves them as they are.

    Raises:
        BallastError: as for `problems`.
    """
    _check_size("train_size", train_size)
    _check_size("test_size", test_size)
    rows = _take(task, train_size + test_size, seed, config)
    return rows[test_size:], rows[:test_size]


def verify(completion: str, row: Mapping[str, Any]) -> float:
    """Return 1.0 when the task's own scorer gives the text in the last ``<answer>…</answer>`` full marks, else 0.0.

    Partial marks count nothing: several scorers give them to wrong answers that contain the right one. The item
    is drawn again from the row, as a scorer may need more of it than the answer text.

    Raises:
        BallastError: the package is missing, or draws another problem for the row than the one in its prompt.
    """
    items = _items(row["task"], row["seed"], row["size"], row["config"])
    item = items[row["index"]]
    if item["question"] + INSTRUCTION != row["prompt"]:
        raise BallastError(
            f"reasoning-gym task {row['task']!r}, seed {row['seed']}, index {row['index']}: the item drawn again is "
            "another problem than the row's prompt, scores would mean nothing; draw the rows again with the installed "
            "version, or take another task if this one does not draw its items by seed alone"
        )
    found = _ANSWER.findall(completion)
    return float(bool(found) and items.score_answer(found[-1].strip(), item) >= 1.0)
