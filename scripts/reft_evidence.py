"""ReFT and its baselines on the lab: warm-up, RL from it and from the base, fine-tuning alone, both self-trainings.

    python scripts/reft_evidence.py run FOLDER SEED...     # recipes/lab-reft.yaml for these seeds; done stages are kept
    python scripts/reft_evidence.py keep FOLDER            # figures and differences into docs/evidence

Each stage is a command of the recipe's head, run in one process.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import evidence
import numpy as np

ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "recipes" / "lab-reft.yaml"
KEPT = ROOT / "docs" / "evidence" / "reft"
PAGE = ROOT / "docs" / "evidence" / "reft.md"
VERIFIER = "ballast.lab.arithmetic:verify"
LONG = {"max_steps": 120, "lr_scheduler_type": "cosine", "warmup_steps": 0.1}
"""Of fine-tuning from the base alone, on the demonstrations and on the rows of rejection sampling."""
ONLINE = {"max_steps": 40, "learning_rate": 1e-4}
"""Of online self-training from the warm-up."""
METRICS = (("greedy", "accuracy"), ("sampled", "pass@1"), ("sampled", "maj@8"), ("sampled", "pass@8"))
SHOWN = (*METRICS, ("sampled", "entropy"))
START = "<!-- tables: scripts/reft_evidence.py -->"
LEVEL = 0.05


@dataclass(frozen=True)
class Claim:
    """What ReFT's authors say, as one stage ahead of another."""

    says: str
    higher: str
    lower: str


CLAIMS = (
    Claim("RL after a warm-up beats fine-tuning on the same questions (ReFT)", "reft", "sft-long"),
    Claim("RL after a warm-up beats the warm-up (ReFT)", "reft", "warm-up"),
    Claim("a warm-up is needed: RL after one beats RL from the base (ReFT)", "reft", "base-rl"),
    Claim("RL beats offline self-training (ReFT)", "reft", "offline"),
    Claim("RL beats online self-training (ReFT)", "reft", "online"),
    Claim("offline self-training beats fine-tuning (ReFT)", "offline", "sft-long"),
    Claim("online self-training beats the warm-up", "online", "warm-up"),
)


MEASURED = ("warm-up", "reft", "base-rl", "sft-long", "offline", "online")
STAGES = ("warm-up", "reft", "base-rl", "sft-long", "groups", "offline", "online")


def run(folder: Path, seeds: Sequence[int]) -> None:
    """Run the stages that are not done yet, each for all seeds before the next."""
    for name in STAGES:
        for seed in seeds:
            done = folder / str(seed) / f"{name}.json"
            if not done.exists():
                started = time.process_time()
                _stage(name, folder / str(seed), seed)
                done.write_text(json.dumps({"seconds": round(time.process_time() - started, 1)}))


def _stage(name: str, place: Path, seed: int) -> None:
    from ballast.config.recipe import load_recipe
    from ballast.pipeline import run_rl, run_sample, run_train

    def say(line: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {seed} {name} {line}", flush=True)

    def recipe(*words: str) -> Any:
        return load_recipe(RECIPE, [f"seed={seed}", f"output={place / name}", "evaluation.base=false", *words])

    def trained(*words: str, **training: Any) -> None:
        run_train(recipe(*words, *(f"training.{key}={value}" for key, value in training.items())), say=say)

    def groups(**others: Any) -> str:
        return f"groups={json.dumps({'verifier': VERIFIER, 'max_new_tokens': 80, **others})}"

    warm, rows = f"model={place / 'warm-up'}", place / "rows.jsonl"
    stages: Mapping[str, Callable[[], object]] = {
        "warm-up": trained,
        "reft": lambda: run_rl(recipe(warm), say=say),
        "base-rl": lambda: run_rl(recipe(), say=say),
        "sft-long": lambda: trained(**LONG),
        "groups": lambda: run_sample(
            recipe(warm, groups(own=8, file=str(place / "groups")), f"rows={rows}", "evaluation={}"), say=say
        ),
        "offline": lambda: trained(f"data.train={rows}", **LONG),
        "online": lambda: trained(warm, "objective=self-train", groups(own=1), **ONLINE),
    }
    stages[name]()


def keep(folder: Path) -> None:
    """Write the figures of the seeds that have run, the claims and the page's tables to docs/evidence/reft."""
    from ballast.compare.statistics import holm, over_both, over_seeds, paired_p

    runs = _runs(folder)
    figures = {
        name: {
            "seeds": len(some),
            "seconds": float(np.mean([_seconds(folder, seed, name) for seed in some])),
            **{f"{task}/{metric}": asdict(over_seeds(_values(some, task, metric))) for task, metric in SHOWN},
        }
        for name, some in runs.items()
    }
    differences: list[dict[str, Any]] = []
    for claim in CLAIMS:
        seeds = sorted(runs.get(claim.higher, {}).keys() & runs.get(claim.lower, {}).keys())
        for task, metric in METRICS if len(seeds) > 1 else ():
            higher, lower = (
                np.array([runs[name][seed].result.items[task][metric] for seed in seeds])
                for name in (claim.higher, claim.lower)
            )
            means = (higher - lower).mean(axis=1)
            found = {"seeds": asdict(over_seeds(means)), "both": asdict(over_both(higher - lower))}
            differences.append({**asdict(claim), "metric": f"{task}/{metric}", **found, "p": paired_p(means)})
    for one, adjusted in zip(differences, holm([one["p"] for one in differences]), strict=True):
        one["p_holm"] = adjusted
    KEPT.mkdir(parents=True, exist_ok=True)
    content = {"figures": figures, "differences": differences}
    (KEPT / "summary.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    evidence.put(PAGE, _tables(content) + "\n", START)


def _runs(folder: Path) -> dict[str, dict[int, Any]]:
    """Return the runs that are through, by stage and seed."""
    from ballast.records.runs import is_run, read_run

    found: dict[str, dict[int, Any]] = {}
    for place in sorted(folder.iterdir()):
        for name in MEASURED:
            if (place / f"{name}.json").exists() and is_run(place / name):
                found.setdefault(name, {})[int(place.name)] = read_run(place / name)
    return {name: found[name] for name in MEASURED if name in found}


def _seconds(folder: Path, seed: int, name: str) -> float:
    return float(json.loads((folder / str(seed) / f"{name}.json").read_text())["seconds"])


def _values(runs: Mapping[int, Any], task: str, metric: str) -> list[float]:
    return [float(run.value(task, metric)) for run in runs.values()]


def _tables(content: Mapping[str, Any]) -> str:
    """Return the tables of figures and of claims as Markdown."""
    names = [f"{task} {metric}" for task, metric in SHOWN]
    lines = [f"| | seeds | {' | '.join(names)} | seconds |", "|---" * (len(names) + 3) + "|"]
    for name, one in content["figures"].items():
        cells = [_half(one[f"{task}/{metric}"]) for task, metric in SHOWN]
        lines.append(f"| {name} | {one['seeds']} | {' | '.join(cells)} | {one['seconds']:.0f} |")
    lines += ["", "| claim | measured by | difference | other seeds and items | p (Holm) | verdict |", "|---" * 6 + "|"]
    for one in content["differences"]:
        what = f"{one['metric'].partition('/')[2]}, {one['higher']} − {one['lower']}"
        both = [_interval(one[key]) for key in ("seeds", "both")]
        lines.append(f"| {one['says']} | {what} | {both[0]} | {both[1]} | {_p(one['p_holm'])} | {_verdict(one)} |")
    return "\n".join(lines)


def _half(estimate: Mapping[str, Any]) -> str:
    if estimate["low"] is None:
        return f"{estimate['value']:.3f}"
    return f"{estimate['value']:.3f} ±{(estimate['high'] - estimate['low']) / 2:.3f}"


def _interval(estimate: Mapping[str, Any]) -> str:
    bounds = "" if estimate["low"] is None else f" [{estimate['low']:+.3f}, {estimate['high']:+.3f}]"
    return f"{estimate['value']:+.3f}{bounds}"


def _p(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _verdict(one: Mapping[str, Any]) -> str:
    if one["p_holm"] is None or one["p_holm"] >= LEVEL:
        return "not shown"
    return "held" if one["seeds"]["value"] > 0 else "the reverse"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run")
    running.add_argument("folder", type=Path)
    running.add_argument("seeds", type=int, nargs="+")
    commands.add_parser("keep").add_argument("folder", type=Path)
    given = parser.parse_args()
    if given.command == "keep":
        keep(given.folder)
        return
    import torch

    torch.set_num_threads(1)
    run(given.folder, given.seeds)


if __name__ == "__main__":
    main()
