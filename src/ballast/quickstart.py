"""`ballast quickstart`: the embedded base, fine-tuned with each objective on flawed demonstrations, in one table."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ballast.compare.numbers import half_or_bounds
from ballast.config.recipe import Recipe, ReferenceSection
from ballast.errors import BallastError
from ballast.records.write import write_json

if TYPE_CHECKING:
    from rich.text import Text

RESULTS = "results.json"
OUTPUT = Path("runs", "quickstart")
"""Where runs go unasked, with a number behind it where there are some already."""

RECIPE: Mapping[str, Any] = {
    "model": {"path": "lab"},
    "data": {"train": "lab:train"},
    "training": {
        "num_train_epochs": 6,
        "per_device_train_batch_size": 32,
        "learning_rate": 2e-4,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.1,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "logging_steps": 8,
    },
    "evaluation": {
        "tasks": [
            {"name": "greedy", "data": "lab:test", "verifier": "ballast.lab.arithmetic:verify", "max_new_tokens": 64},
            {
                "name": "sampled",
                "data": "lab:test",
                "verifier": "ballast.lab.arithmetic:verify",
                "max_new_tokens": 64,
                "limit": 150,
                "samples": 8,
                "temperature": 1.0,
                "entropy": True,
                "base_kl": True,
            },
            {"name": "forgetting", "kind": "nll", "data": "lab:forgetting"},
        ]
    },
}

VERIFIER = "ballast.lab.arithmetic:verify"
ROWS: Mapping[str, Mapping[str, Any]] = {
    **{name: {} for name in ("sft", "dft", "prift-prob", "prift-mass", "eksft", "ift")},
    # A step of GFT trains on five answers for each prompt, so an epoch of it is work for five; of the two below, two.
    "gft": {
        "training": {"num_train_epochs": 1, "logging_steps": 1},
        "groups": {"verifier": VERIFIER, "own": 4, "max_new_tokens": 64},
    },
    "self-train": {
        "training": {"num_train_epochs": 3, "logging_steps": 4},
        "groups": {"verifier": VERIFIER, "own": 1, "max_new_tokens": 64},
    },
    "irft": {
        "training": {"num_train_epochs": 3, "logging_steps": 4},
        "groups": {"own": 1, "refresh": 8, "max_new_tokens": 64},
    },
    "sft-half": {"name": "sft", "training": {"half": 0.5}},
}
"""The rows of the table: what is laid over the recipe for each, and its objective where the row is called otherwise."""


@dataclass(frozen=True)
class Column:
    """A column of the table: its heading, and the task and metric that fill it."""

    heading: str
    task: str
    metric: str
    digits: int


COLUMNS = (
    Column("accuracy, greedy", "greedy", "accuracy", 3),
    Column("mean@8", "sampled", "mean@8", 3),
    Column("pass@8", "sampled", "pass@8", 3),
    Column("entropy", "sampled", "entropy", 3),
    Column("KL to base", "sampled", "base_kl", 3),
    Column("forgetting", "forgetting", "nll", 3),
)

LEGEND = """\
4-term problems never seen in training; 300 answered greedily, 150 with 8 samples each at temperature 1.
Beside a figure: its 95 % interval over the problems, for this one seed; another seed moves every row.
entropy: nats per token on the model's own samples.   KL to base: nats per token, same samples.
forgetting: nats per token on the pretraining text's other styles; lower is better, the base's row is before training.
gft: one epoch with five answers for each prompt, four of them the model's own; self-train (of ReFT) and irft: three
epochs with two, one of them the model's own; the others: six epochs of one. sft-half trains half of the weights (HFT).
Nothing here is after reinforcement learning, which is what eksft is for."""

MORE = """\
Not in the table, since each is more than one run: revised answers (Self-Refine, SEFT: docs/revise.md), rounds (SPIN:
docs/rounds.md), a learnt reward (RFT: docs/reward.md), RL (ReFT: docs/rl.md), code tasks (docs/lab-code.md)."""


def run_quickstart(
    *,
    output: Path | None = None,
    seed: int = 42,
    say: Callable[[Any], Any] = print,
    rows: tuple[str, ...] = tuple(ROWS),
) -> dict[str, Any]:
    """Score the lab's demonstrations, fine-tune the base with each objective, measure, and print a table.

    Args:
        output: new or empty folder for checkpoints, run records, `RESULTS` and the report; by default `OUTPUT`.
        seed: of the order of the rows and of the samples.
        say: what prints lines and the table.
        rows: of `ROWS`.

    Returns:
        What `RESULTS` holds: per row of the table its metrics with intervals and its seconds.

    Raises:
        BallastError: if the folder is there and not empty.
    """
    from ballast.compare.worker import configure_process
    from ballast.report import write_report

    folder = _first_free() if output is None else output
    if _has_content(folder):
        raise BallastError(f"--output {folder}: is not an empty folder, two runs would mix; name a new one")
    configure_process(threads=1)
    started = time.monotonic()
    found = _rows(folder, rows, seed, say)
    results = {"seed": seed, "recipe": dict(RECIPE), "rows": found, "seconds": round(time.monotonic() - started, 1)}
    write_json(folder / RESULTS, results)
    _write_tokens(folder, rows, seed)
    page, _ = write_report([folder])
    say(table(found))
    say(LEGEND)
    say(MORE)
    say(f"{results['seconds']:.0f} s in all. Recipes of your own: docs/recipe.md; rates, seeds, RL: docs/compare.md.")
    say(f"report: {page}")
    return results


def _first_free() -> Path:
    """Return the first of ``runs/quickstart``, ``runs/quickstart-2``, … that holds nothing."""
    names = itertools.chain([OUTPUT], (OUTPUT.with_name(f"{OUTPUT.name}-{n}") for n in itertools.count(2)))
    return next(folder for folder in names if not _has_content(folder))


def _has_content(folder: Path) -> bool:
    return folder.exists() and (not folder.is_dir() or any(folder.iterdir()))


def _write_tokens(folder: Path, rows: tuple[str, ...], seed: int) -> None:
    """Let the report show some rows token by token; the first of them has a wrong result in it."""
    from ballast.objectives import objective
    from ballast.pipeline.inspect import write_tokens

    names = dict.fromkeys(ROWS[row].get("name", row) for row in rows)
    write_tokens(_recipe(seed), [objective(name) for name in names], folder)


def _rows(folder: Path, wanted: tuple[str, ...], seed: int, say: Callable[[Any], Any]) -> list[dict[str, Any]]:
    from ballast.compare.plan import method_recipe
    from ballast.config.sections import MethodSection
    from ballast.pipeline import run_score, run_train
    from ballast.pipeline.evaluate import BASE, TRAINED

    started = time.monotonic()
    recipe, cache = _recipe(seed), str(folder / "reference")
    run_score(recipe.model_copy(update={"reference": ReferenceSection(cache=cache)}), say=lambda _: None)
    say(f"scored the demonstrations under the base, once ({time.monotonic() - started:.1f} s)")
    rows: list[dict[str, Any]] = []
    for name in wanted:
        started = time.monotonic()
        own = {"output": str(folder / name), "evaluation": recipe.evaluation.model_copy(update={"base": not rows})}
        method = method_recipe(recipe, MethodSection(**{"name": name, **ROWS[name]}), cache=cache)
        outcome = run_train(method.model_copy(update=own), say=lambda _: None, progress=False)
        seconds = round(time.monotonic() - started, 1)
        say(f"trained and measured {name} ({seconds:.0f} s)")
        for measured in outcome.measured:
            label = name if measured.name == TRAINED else BASE
            tasks = {task.name: task.plain()["metrics"] for task in measured.record().tasks}
            rows.append({"name": label, "tasks": tasks})
        rows[-1]["seconds"] = seconds
    return rows


def _recipe(seed: int) -> Recipe:
    tasks = [{**task, "seed": seed} if task["name"] == "sampled" else task for task in RECIPE["evaluation"]["tasks"]]
    return Recipe.model_validate({**RECIPE, "evaluation": {"tasks": tasks}, "seed": seed})


def table(rows: list[dict[str, Any]]) -> Any:
    """Return the rows as a rich table, each value with its interval; the base first."""
    from rich.box import SIMPLE
    from rich.table import Table

    view = Table(box=SIMPLE, pad_edge=False, collapse_padding=True)
    view.add_column("", no_wrap=True)
    for column in COLUMNS:
        view.add_column(column.heading)
    for row in sorted(rows, key=lambda row: row["name"] != "base"):
        view.add_row(row["name"], *(_cell(row["tasks"][column.task].get(column.metric), column) for column in COLUMNS))
    return view


def _cell(estimate: Mapping[str, Any] | None, column: Column) -> str | Text:
    from rich.text import Text

    if estimate is None:
        return "–"
    value = f"{estimate['value']:.{column.digits}f}"
    if estimate.get("low") is None:
        return value
    bounds = half_or_bounds(estimate["value"], estimate["low"], estimate["high"], digits=column.digits)
    return Text.assemble(value, " ", (bounds, "dim"))
