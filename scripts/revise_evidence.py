"""SEFT against rejection sampling, and what Self-Refine does to answers, on the lab.

    python scripts/revise_evidence.py run runs/revise     # goes on where it was stopped; about ten minutes of a core
    python scripts/revise_evidence.py keep runs/revise    # docs/evidence/revise.json, and the tables of revise.md

Every step is what a command of ballast does (`sample`, `revise`, `train`, `evaluate`), in one process.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import evidence

from ballast.config.recipe import load_recipe
from ballast.lab import problems

EVIDENCE = Path(__file__).parent.parent / "docs" / "evidence"
PAGE, KEPT = EVIDENCE / "revise.md", EVIDENCE / "revise.json"
START = "<!-- tables: scripts/revise_evidence.py -->"
VERIFIER = "ballast.lab.arithmetic:verify"
TEXTS = 'refine: "{draft} {prompt}"\nreviser: "{draft} {prompt}"\nmajor: "major. "\nminor: "minor. "\nno: "no"\n'
FRESH = 'refine: "{prompt}"\n'
CRITIQUE = 'feedback: "{draft} {prompt}"\nrefine: "{feedback} {prompt}"\n'
SEEDS, ROUNDS, PROMPTS, STEPS, RATE = range(1, 6), 2, 192, 12, 1e-4
ARMS = ("seft", "seft-judged", "rejection")
TEST = {"data": "lab:test", "verifier": VERIFIER, "max_new_tokens": 64}
FLIPS: dict[str, dict[str, Any]] = {
    "none, asked afresh": {"templates": "fresh.yaml"},
    "none, draft shown": {"templates": "texts.yaml"},
    "the model's second solution": {"templates": "critique.yaml", "feedback": "model"},
    "verifier (oracle)": {"templates": "fresh.yaml", "stop": "verifier", "oracle": True},
    "reviser": {"templates": "texts.yaml", "how": "reviser", "reviser": "reviser"},
}
MEASURED = ("greedy/accuracy", "sampled/mean@4", "sampled/pass@4", "sampled/entropy")


def quietly(_: object) -> None:
    """Say nothing."""


def recipe(**sections: Any) -> Any:
    return load_recipe(None, [f"{key}={json.dumps(value)}" for key, value in sections.items()])


def train(model: str, rows: str, output: str, seed: int, **training: Any) -> None:
    from ballast.pipeline import run_train

    fixed = {"per_device_train_batch_size": 32, "gradient_checkpointing": False, "save_strategy": "no",
             "report_to": "none", "logging_steps": 50, "disable_tqdm": True}  # fmt: skip
    run_train(recipe(model=model, data={"train": rows}, objective="sft", output=output, seed=seed,
                     training={**fixed, **training}), say=quietly)  # fmt: skip


def make_reviser() -> None:
    """Sample own answers to 1,024 demonstrations, pair them, and train the reviser."""
    from ballast.pipeline import run_revise, run_sample

    groups = {"verifier": VERIFIER, "own": 2, "max_new_tokens": 64, "file": "groups"}
    run_sample(recipe(model="lab", data={"train": "lab:train-many", "limit": 1024}, groups=groups), say=quietly)
    pairs = {"how": "reviser", "templates": "texts.yaml", "pairs": "pairs.jsonl"}
    run_revise(recipe(model="lab", groups={"file": "groups"}, revise=pairs), say=quietly)
    train("lab", "pairs.jsonl", "reviser", 42, num_train_epochs=2, learning_rate=3e-4, lr_scheduler_type="cosine")


def revised(arm: str, model: str, seed: int, number: int, spent: Mapping[str, Any] | None) -> dict[str, Any]:
    """Make the rows of one round; rejection sampling gets as many tokens as SEFT spent."""
    from ballast.pipeline import run_revise

    size = PROMPTS
    common = {"verifier": VERIFIER, "max_new_tokens": 64, "file": f"{arm}-{seed}-{number}-rows"}
    options: dict[str, Any] = {"how": "reviser", "reviser": "reviser", "templates": "texts.yaml"}
    if arm == "seft-judged":
        options |= {"accept": "verifier", "only_correct": True}
    if arm == "rejection":
        assert spent is not None
        size = round(spent["spent_tokens"] / (spent["draft_tokens"] * (2 - spent["reward"]["draft"])))
        options = {
            "how": "self-refine",
            "rounds": 1,
            "feedback": "none",
            "templates": "fresh.yaml",
            "only_correct": True,
        }
    asked = problems(1000 + 10 * seed + number, size, (3, 4))
    source = f"{arm}-{seed}-{number}.jsonl"
    Path(source).write_text("".join(json.dumps(row) + "\n" for row in asked))
    found = run_revise(
        recipe(model=model, data={"train": source}, seed=seed, revise={**common, **options}), say=quietly
    )
    return {**found, "draft_tokens": _draft_tokens(common["file"])}


def _draft_tokens(folder: str) -> float:
    from ballast.revise.rows import read_kept

    rows = read_kept(folder)
    return sum(row["versions"][0]["tokens"] for row in rows) / len(rows)


def measured(model: str, tasks: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    from ballast.pipeline import run_evaluate

    (found,) = run_evaluate(recipe(evaluation={"tasks": list(tasks)}), paths=[model], say=quietly)
    return {f"{task.name}/{name}": one.value for task in found.results for name, one in task.metrics.items()}


def scored(model: str) -> dict[str, float]:
    sampled = {"samples": 4, "temperature": 1.0, "entropy": True, "k": [1, 4], "limit": 50}
    return measured(model, [{"name": "greedy", "limit": 100, **TEST}, {"name": "sampled", **TEST, **sampled}])


def flips(seed: int) -> dict[str, float]:
    tasks = [{"name": name, "limit": 100, "temperature": 1.0, "seed": seed, **TEST, "revise": {"rounds": 1, **loop}}
             for name, loop in FLIPS.items()]  # fmt: skip
    return measured("lab", tasks)


def one_round(arm: str, seed: int, number: int) -> dict[str, Any]:
    model = "lab" if number == 1 else f"{arm}-{seed}-{number - 1}-policy"
    spent = json.loads(Path(f"seft-{seed}-{number}.json").read_text())["rows"] if arm == "rejection" else None
    rows = revised(arm, model, seed, number, spent)
    output = f"{arm}-{seed}-{number}-policy"
    shutil.rmtree(output, ignore_errors=True)
    train(model, f"{arm}-{seed}-{number}-rows", output, seed, max_steps=STEPS, learning_rate=RATE)
    return {"rows": rows, "scores": scored(output)}


def run(folder: Path) -> None:
    """Do what is not there yet."""
    import os

    from ballast.pipeline import quiet

    quiet()
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    for name, text in (("texts", TEXTS), ("fresh", FRESH), ("critique", CRITIQUE)):
        Path(f"{name}.yaml").write_text(text)
    if not Path("reviser/config.json").exists():
        make_reviser()
    done("base.json", lambda: scored("lab"))
    # Round by round, so that what is there after a stop is whole for all seeds.
    for number in range(1, ROUNDS + 1):
        for seed in SEEDS:
            for arm in ARMS:
                done(f"{arm}-{seed}-{number}.json", partial(one_round, arm, seed, number))
    for seed in SEEDS:
        done(f"flips-{seed}.json", partial(flips, seed))


def done(name: str, make: Callable[[], Mapping[str, Any]]) -> None:
    if not Path(name).exists():
        print(name, flush=True)
        Path(name).write_text(json.dumps(make(), indent=1) + "\n")


def collect(folder: Path) -> dict[str, Any]:
    """Return everything that was measured."""
    names = [f"{arm}-{seed}-{number}" for seed in SEEDS for number in range(1, ROUNDS + 1) for arm in ARMS]
    names += ["base", *(f"flips-{seed}" for seed in SEEDS)]
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in names}


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean over seeds and half of its 95 % interval, by Student's t."""
    import numpy as np
    from scipy.stats import t

    array = np.asarray(values, dtype=np.float64)
    return float(array.mean()), float(t.ppf(0.975, len(array) - 1) * array.std(ddof=1) / len(array) ** 0.5)


def shown(values: Sequence[float], sign: bool = False) -> str:
    mean, half = interval(values)
    return f"{mean:+.3f} ±{half:.3f}" if sign else f"{mean:.3f} ±{half:.3f}"


def tables(found: Mapping[str, Any]) -> str:
    """Return the page's tables."""
    head = [
        "| | greedy | mean@4 | pass@4 | entropy | rows trained on | tokens sampled |",
        "|---|---|---|---|---|---|---|",
    ]
    base = " | ".join(f"{found['base'][name]:.3f}" for name in MEASURED)
    lines = [*head, f"| base | {base} | – | – |"]
    for number in range(1, ROUNDS + 1):
        for arm in ARMS:
            rows = [found[f"{arm}-{seed}-{number}"] for seed in SEEDS]
            cells = [shown([one["scores"][name] for one in rows]) for name in MEASURED]
            cells += [f"{interval([one['rows'][key] for one in rows])[0]:,.0f}" for key in ("kept", "spent_tokens")]
            lines.append(f"| {arm}, round {number} | {' | '.join(cells)} |")
    lines += [
        "",
        "Differences, paired by seed:",
        "",
        "| | greedy | mean@4 | pass@4 | entropy |",
        "|---|---|---|---|---|",
    ]
    for number in range(1, ROUNDS + 1):
        for arm in ARMS[:2]:
            cells = [
                shown([found[f"{arm}-{seed}-{number}"]["scores"][name]
                       - found[f"rejection-{seed}-{number}"]["scores"][name] for seed in SEEDS], sign=True)
                for name in MEASURED
            ]  # fmt: skip
            lines.append(f"| {arm} − rejection, round {number} | {' | '.join(cells)} |")
    lines += ["", "What the reviser did to the drafts (arm `seft`):", ""]
    lines += [
        "| | draft score | revised score | right → wrong | wrong → right | major | minor | no | unparsed | cut off |"
    ]
    lines += ["|---|---|---|---|---|---|---|---|---|---|"]
    for number in range(1, ROUNDS + 1):
        rows = [found[f"seft-{seed}-{number}"]["rows"] for seed in SEEDS]
        cells = [shown([one["reward"][key] for one in rows]) for key in ("draft", "answer")]
        cells += [shown([one[key] / one["rows"] for one in rows]) for key in ("right_to_wrong", "wrong_to_right")]
        cells += [f"{interval([one['labels'][key] / one['rows'] for one in rows])[0]:.2f}"
                  for key in ("major", "minor", "no", "unparsed")]  # fmt: skip
        cells.append(f"{interval([one['cut_off'] / one['rows'] for one in rows])[0]:.2f}")
        lines.append(f"| round {number} | {' | '.join(cells)} |")
    lines += ["", "Self-Refine of the untouched base, one round at temperature 1, by what says whether to go on:", ""]
    lines += ["| signal | draft | last answer | difference | right → wrong | wrong → right | tokens a row |"]
    lines += ["|---" * 7 + "|"]
    for name, loop in FLIPS.items():
        rows = [found[f"flips-{seed}"] for seed in SEEDS]
        last = f"{name}/{'oracle_' if loop.get('oracle') else ''}accuracy"
        cells = [shown([one[key] for one in rows]) for key in (f"{name}/draft_accuracy", last)]
        cells.append(shown([one[last] - one[f"{name}/draft_accuracy"] for one in rows], sign=True))
        cells += [shown([one[f"{name}/{key}"] for one in rows]) for key in ("right_to_wrong", "wrong_to_right")]
        cells.append(f"{interval([one[f'{name}/spent_tokens'] for one in rows])[0]:.0f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def keep(folder: Path) -> None:
    KEPT.write_text(json.dumps(collect(folder), indent=1) + "\n")
    evidence.put(PAGE, tables(json.loads(KEPT.read_text())) + "\n", START)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("command", choices=("run", "keep"))
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    {"run": run, "keep": keep}[arguments.command](arguments.folder.absolute())


if __name__ == "__main__":
    main()
