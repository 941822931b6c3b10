"""The whole experiment: every method on both maps from every start, in tables, figures and a file of results.

What it runs is imported when it runs: the extras may be missing, which is said in one line.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module, metadata
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ballast.errors import BallastError
from ballast.files import write_atomically

if TYPE_CHECKING:
    from ballast.lab.frozen_lake.training import Policies, Trained

OUTPUT = Path("frozen-lake")
SEEDS = 20
RESULTS, CURVES, POLICIES = "results.json", "curves.png", "policies.png"
EXTRAS = ("gymnasium", "matplotlib")
PACKAGES = ("ballast-ft", "torch", "numpy", "scipy", *EXTRAS)

MEASURES = ("on_way", "on_map")
REPORTED_ORDER = ("dpo", "ift", "orpo", "sft")
"""From the smallest distance to the largest, as the paper reports them."""

RATES = (("adam", 3e-4), ("adam", 1e-3), ("adam", 3e-3), ("sgd", 0.1), ("sgd", 1.0))
OPTIONS: tuple[tuple[str, dict[str, float]], ...] = (
    *(("ift", {"lam": lam, "gamma": gamma}) for lam in (0.0, 0.2, 0.5, 1.0) for gamma in (0.0, 0.95)),
    *(("orpo", {"weight": weight}) for weight in (0.02, 0.1, 0.5)),
    *(("dpo", {"beta": beta}) for beta in (0.02, 0.1, 0.5, 2.5)),
)


def run_frozen_lake(
    *,
    seeds: int = SEEDS,
    steps: int | None = None,
    output: Path = OUTPUT,
    seed: int = 0,
    say: Callable[[Any], Any] = print,
) -> dict[str, Any]:
    """Train every method on both maps from every start, vary rate and options; print tables, draw figures.

    Args:
        seeds: number of initial policies; each is trained with every method, so that differences are paired.
        steps: optimiser steps of each run; None takes the documented number.
        output: new or empty folder for `RESULTS`, `CURVES` and `POLICIES`.
        seed: the initial policies are drawn from it.
        say: what prints lines and tables.

    Returns:
        What `RESULTS` holds.

    Raises:
        BallastError: if an extra is missing, a number is out of range, or the folder is there and not empty.
    """
    _check(seeds, steps, output)
    import torch

    from ballast.lab.frozen_lake.figures import draw_curves, draw_policies
    from ballast.lab.frozen_lake.tables import tables
    from ballast.lab.frozen_lake.training import STEPS, VARIED

    torch.set_num_threads(1)
    started, steps = time.monotonic(), STEPS if steps is None else steps
    starts = _starts(seed, seeds)
    trained = {place: _train_all(place, start, steps) for place, start in starts.items()}
    results = {
        "settings": _settings(seeds, steps, seed),
        "versions": {package: metadata.version(package) for package in PACKAGES},
        "experiments": [_experiment(place, start, trained[place]) for place, start in starts.items()],
        "sensitivity": _sensitivity(starts[VARIED], trained[VARIED], steps),
    }
    output.mkdir(parents=True, exist_ok=True)
    draw_curves(trained, output / CURVES)
    draw_policies(starts, trained, output / POLICIES)
    write_atomically(output / RESULTS, json.dumps(results, indent=1) + "\n")
    for part in tables(results):
        say(part)
    say(f"{time.monotonic() - started:.0f} s in all; {output}: {RESULTS}, {CURVES}, {POLICIES}")
    return results


def _check(seeds: int, steps: int | None, output: Path) -> None:
    if seeds < 2:
        raise BallastError(f"--seeds {seeds}: an interval over seeds takes at least 2")
    if steps is not None and steps < 1:
        raise BallastError(f"--steps {steps}: nothing would be trained; give a number from 1")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise BallastError(f"--output {output}: is not an empty folder, two runs would mix; name a new one")
    for package in EXTRAS:
        try:
            import_module(package)
        except ImportError as error:
            raise BallastError(
                f"{package} is not installed, so the lake can be neither walked nor drawn; "
                "pip install 'ballast-ft[lab]'"
            ) from error


def _starts(seed: int, seeds: int) -> dict[tuple[str, str], Policies]:
    from ballast.lab.frozen_lake.map import MAPS, lake
    from ballast.lab.frozen_lake.training import STARTS, fresh_policies, pretrain

    starts = {}
    for name in MAPS:
        fresh = fresh_policies(seed, seeds, len(lake(name).cells))
        for start, share in STARTS.items():
            starts[name, start] = fresh if share is None else pretrain(lake(name), fresh, share)
    return starts


def _train_all(place: tuple[str, str], start: Policies, steps: int) -> dict[str, Trained]:
    from ballast.lab.frozen_lake.map import lake
    from ballast.lab.frozen_lake.training import METHODS, train

    return {method: train(method, lake(place[0]), start, steps=steps) for method in METHODS}


def difference(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """Return `estimate` of the differences of paired values."""
    from ballast.lab.frozen_lake.training import estimate

    return estimate([own - other for own, other in zip(ours, theirs, strict=True)])


def _measured(values: Sequence[float]) -> dict[str, Any]:
    from ballast.lab.frozen_lake.training import estimate

    return {**estimate(values), "seeds": list(values)}


def _final(runs: Trained) -> dict[str, Any]:
    return {measure: _measured(getattr(runs, measure)[-1].tolist()) for measure in MEASURES}


def _beside(ours: Mapping[str, Any], sft: Mapping[str, Any]) -> dict[str, Any]:
    return {"minus_sft": {measure: difference(ours[measure]["seeds"], sft[measure]["seeds"]) for measure in MEASURES}}


def _short(measured: Mapping[str, Any]) -> dict[str, Any]:
    """Return estimates without the value of every seed."""
    return {key: {part: value for part, value in entry.items() if part != "seeds"} for key, entry in measured.items()}


def _lowest(runs: Trained, measure: str) -> dict[str, Any]:
    """Return the step after which the mean over seeds was smallest, and what was measured there."""
    from ballast.lab.frozen_lake.training import estimate

    values_LR = getattr(runs, measure)
    step = int(values_LR.mean(1).argmin())
    return {"step": step, **estimate(values_LR[step].tolist())}


def _experiment(place: tuple[str, str], start: Policies, trained: Mapping[str, Trained]) -> dict[str, Any]:
    from ballast.lab.frozen_lake.map import lake
    from ballast.lab.frozen_lake.training import way_probability

    ways = {"p_optimal": lake(place[0]).optimal, "p_suboptimal": lake(place[0]).suboptimal}
    first = next(iter(trained.values()))
    rows = {"start": {measure: _measured(getattr(first, measure)[0].tolist()) for measure in MEASURES}}
    rows["start"] |= {key: _measured(way_probability(start.matrix(), way).tolist()) for key, way in ways.items()}
    for method, runs in trained.items():
        rows[method] = {**_final(runs), "lowest": {measure: _lowest(runs, measure) for measure in MEASURES}}
        rows[method] |= {key: _measured(way_probability(runs.matrix, way).tolist()) for key, way in ways.items()}
    return {
        "map": place[0],
        "start": place[1],
        "rows": rows,
        "ift_steps_with_own_states": _measured(trained["ift"].strayed.tolist()),
        "ift_minus_sft": _beside(rows["ift"], rows["sft"])["minus_sft"],
        **_order(rows),
    }


def _order(rows: Mapping[str, Any]) -> dict[str, Any]:
    """Compare neighbours in the reported order: a pair is as reported where its whole interval lies below zero."""
    pairs: list[dict[str, Any]] = [
        {
            "measure": measure,
            "pair": [nearer, farther],
            **difference(rows[nearer][measure]["seeds"], rows[farther][measure]["seeds"]),
        }
        for measure in MEASURES
        for nearer, farther in pairwise(REPORTED_ORDER)
    ]
    seen = {measure: all(pair["high"] < 0 for pair in pairs if pair["measure"] == measure) for measure in MEASURES}
    return {"differences": pairs, "reported_order_seen": seen}


def _sensitivity(start: Policies, trained: Mapping[str, Trained], steps: int) -> dict[str, Any]:
    from ballast.lab.frozen_lake.map import lake
    from ballast.lab.frozen_lake.training import METHODS, VARIED, train

    place = lake(VARIED[0])
    rates: list[dict[str, Any]] = []
    options: list[dict[str, Any]] = []
    for optimiser, rate in RATES:
        final = {
            method: _final(train(method, place, start, steps=steps, optimiser=optimiser, rate=rate))
            for method in METHODS
        }
        rates += [
            {"optimiser": optimiser, "rate": rate, "method": method, **_short(ours), **_beside(ours, final["sft"])}
            for method, ours in final.items()
        ]
    for method, chosen in OPTIONS:
        ours = _final(train(method, place, start, steps=steps, options=chosen))
        beside = _beside(ours, _final(trained["sft"]))
        options.append({"method": method, "options": chosen, **_short(ours), **beside})
    return {"map": VARIED[0], "start": VARIED[1], "rates": rates, "options": options}


def _settings(seeds: int, steps: int, seed: int) -> dict[str, Any]:
    import ballast
    from ballast.lab.frozen_lake import training
    from ballast.lab.frozen_lake.map import ACTIONS, MAPS, lake

    def described(name: str) -> dict[str, Any]:
        ways = {"optimal": lake(name).optimal, "suboptimal": lake(name).suboptimal}
        return {
            "rows": list(MAPS[name]),
            **{key: {"states": way.states, "actions": [ACTIONS[a] for a in way.actions]} for key, way in ways.items()},
        }

    return {
        "seeds": seeds,
        "seed": seed,
        "steps": steps,
        "optimiser": training.OPTIMISER,
        "rate": training.RATE,
        "hidden": training.HIDDEN,
        "encoding": "one-hot",
        "starts": training.STARTS,
        "pretrained_until": training.KNOWN,
        "ift": ballast.objective("ift").to_dict(),
        "dpo_beta": training.BETA,
        "orpo_weight": training.ODDS_WEIGHT,
        "maps": {name: described(name) for name in MAPS},
    }
