"""Do the numbers stay the same? Short runs of everything before a rebuild and after it, compared bit for bit.

    python scripts/same_numbers.py record before.json    # of the code as it stands; some minutes on two cores
    python scripts/same_numbers.py record after.json     # after the change
    python scripts/same_numbers.py compare before.json after.json

Recorded are: weights' hashes, metrics, measurements and answers of a short run of every objective, of a comparison
with RL (`recipes/lab/quick.yaml` cut short) and of `ballast rl`, and the figures in the reports of the stored
evidence. Only commands and the files that they leave are used, so that the script outlives what is inside.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parent.parent
NUMBER = re.compile(r"[-−]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")
# What differs from run to run, and what was asked for rather than measured: durations, places, versions, recipes.
CHANGING = re.compile(
    r"(seconds(/\w+)?|runtime|per_second|time|started|finished|versions|commit|settings|paths?)$|^(recipe|start|schema|format)$"
)

VERIFIER = "ballast.lab.arithmetic:verify"
TASKS: list[dict[str, Any]] = [
    {"name": "greedy", "data": "lab:test", "verifier": VERIFIER, "max_new_tokens": 32, "limit": 16, "base_kl": True},
    {
        "name": "sampled",
        "data": "lab:test",
        "verifier": VERIFIER,
        "max_new_tokens": 32,
        "limit": 8,
        "samples": 4,
        "temperature": 1.0,
        "entropy": True,
    },
    {"name": "forgetting", "kind": "nll", "data": "lab:forgetting", "limit": 16, "base_kl": True},
    {
        "name": "ready",
        "kind": "readiness",
        "data": "lab:test",
        "verifier": VERIFIER,
        "max_new_tokens": 32,
        "limit": 8,
        "group": 4,
        "demonstrations": "data.train",
        "forgetting": "lab:forgetting",
    },
]
TRAINING = {
    "max_steps": 4,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 2,
    "learning_rate": 3e-4,
    "gradient_checkpointing": False,
    "logging_steps": 1,
}
RECIPE: dict[str, Any] = {
    "model": "lab",
    "data": {"train": "lab:train", "eval": "lab:validation", "limit": 96},
    "training": {**TRAINING, "eval_strategy": "steps", "eval_steps": 4, "save_strategy": "no"},
    "evaluation": {"tasks": TASKS},
}
GROUPS = {"verifier": VERIFIER, "own": 3, "max_new_tokens": 32, "refresh": 2}
RUNS: dict[str, dict[str, Any]] = {
    "sft": {},
    "dft": {},
    "prift-prob": {"reference": {"cache": "cache"}},
    "prift-mass": {"reference": {"cache": "cache"}},
    "eksft": {"training": {**RECIPE["training"], "packing": True, "max_length": 256}},
    "ift": {},
    "gft": {"groups": GROUPS},
    "reweight": {"model": {"path": "lab", "lora": {"r": 4, "target_modules": "all-linear"}}},
}
RL = {
    "model": "lab",
    "data": {"train": "lab:train"},
    "rl": {
        "verifier": VERIFIER,
        "steps": 3,
        "prompts": 4,
        "group": 4,
        "max_new_tokens": 32,
        "learning_rate": 1e-4,
        "beta": 0.01,
    },
    "evaluation": {"tasks": TASKS[:2]},
}
CUT_SHORT = (
    "compare.seeds=2",
    "compare.budget.steps=4",
    "compare.then.rl.steps=2",
    "compare.objectives=[sft, prift-mass, eksft]",
    *(f"evaluation.tasks.{index}.limit=12" for index in range(3)),
)


def record(folder: Path) -> dict[str, Any]:
    """Run everything into a new folder and return what came out, by name."""
    # The runs of one cache go one after the other, everything else beside them.
    jobs = [
        ("train", [name for name in RUNS if "reference" not in RUNS[name]]),
        ("train", [name for name in RUNS if "reference" in RUNS[name]]),
        ("other", ["rl", "compare"]),
    ]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda job: [_run(name, folder) for name in job[1]], jobs))
    found = {name: read_folder(folder / name) for name in (*RUNS, "rl", "compare")}
    return {**found, "evidence": evidence(folder)}


def _run(name: str, folder: Path) -> None:
    if name == "compare":
        recipe = str(ROOT / "recipes" / "lab" / "quick.yaml")
        _ballast(folder, "compare", recipe, "output=compare", *CUT_SHORT, "--jobs", "1")
    else:
        written = folder / f"{name}.json"
        verb, recipe = ("rl", RL) if name == "rl" else ("train", {**RECIPE, "objective": name, **RUNS[name]})
        written.write_text(json.dumps({**recipe, "output": name, "seed": 7}))
        _ballast(folder, verb, written.name)
    print(name, flush=True)


def _ballast(folder: Path, *words: str) -> str:
    # One thread: the order of sums is then the same on every machine with these instructions.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "ballast.cli", *words]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def read_folder(folder: Path) -> dict[str, Any]:
    """Return the numbers in the files of one output: by file, each number under its path."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.suffix == ".safetensors":
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif path.name in ("run.json", "summary.json", "tokens.json"):
            found[name] = dict(numbers(json.loads(path.read_text())))
        elif path.suffix == ".jsonl":
            lines = path.read_text().split("\n")
            found[name] = [dict(numbers(json.loads(line))) for line in lines if line]
        elif path.name == "report.md":
            found[name] = figures(path)
    return found


def numbers(value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of plain data with their paths; texts too, without what differs from run to run."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            if not CHANGING.search(str(key)):
                yield from numbers(part, f"{where}.{key}")
    elif isinstance(value, list):
        for index, part in enumerate(value):
            yield from numbers(part, f"{where}[{index}]")
    elif value is not None:
        yield where, value


def evidence(folder: Path) -> dict[str, Any]:
    """Return the figures in the reports of the stored comparisons, written anew from their recipes and summaries."""
    found = {}
    for summary in sorted((ROOT / "docs" / "evidence").glob("*/summary.json")):
        place = folder / f"evidence-{summary.parent.name}"
        place.mkdir()
        recipe = _ballast(folder, "compare", str(ROOT / "recipes" / "lab" / f"{summary.parent.name}.yaml"), "--dry-run")
        plan = {"schema": 1, "recipe": YAML(typ="safe").load(recipe), "versions": {}, "commit": None}
        (place / "compare.json").write_text(json.dumps(plan))
        shutil.copy(summary, place)
        _ballast(folder, "report", str(place))
        found[summary.parent.name] = figures(place / "report.md")
    return found


def figures(page: Path) -> list[str]:
    """Return the numbers in the tables of a page in Markdown, in their order, without columns of durations."""
    found: list[str] = []
    timed: set[int] = set()
    rows = [line.split("|") for line in page.read_text().split("\n") if line.startswith("|")]
    for row, following in zip(rows, [*rows[1:], []], strict=True):
        if following[1:2] and set(following[1]) <= set(" :-") and following[1].strip():
            timed = {place for place, cell in enumerate(row) if "seconds" in cell}
        found += [number for place, cell in enumerate(row) if place not in timed for number in NUMBER.findall(cell)]
    return found


def differences(before: Any, after: Any, where: str = "") -> Iterator[str]:
    """Yield one line for every number that changed, came or went."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in [*before, *(key for key in after if key not in before)]:
            if key not in after:
                yield f"gone: {where} {key} = {json.dumps(before[key])[:120]}"
            elif key not in before:
                yield f"new: {where} {key} = {json.dumps(after[key])[:120]}"
            else:
                yield from differences(before[key], after[key], f"{where} {key}")
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for index, pair in enumerate(zip(before, after, strict=True)):
            yield from differences(*pair, f"{where}[{index}]")
    elif before != after:
        yield f"changed:{where}: {json.dumps(before)[:120]} -> {json.dumps(after)[:120]}"


def _leaves(value: Any) -> int:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 1 if parts is None else sum(_leaves(part) for part in parts)


def main() -> None:
    """Record, or compare two records; exit code 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("record").add_argument("file", type=Path)
    for name in ("before", "after"):
        comparing = verbs.choices.get("compare") or verbs.add_parser("compare")
        comparing.add_argument(name, type=Path)
    arguments = parser.parse_args()
    if arguments.verb == "record":
        with tempfile.TemporaryDirectory() as folder:
            found = record(Path(folder))
        arguments.file.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
        print(f"{arguments.file}: {_leaves(found):,} values")
        return
    before, after = (json.loads(path.read_text()) for path in (arguments.before, arguments.after))
    lines = list(differences(before, after))
    print("\n".join(lines))
    print(f"{_leaves(before):,} values before, {_leaves(after):,} after, {len(lines):,} differences")
    sys.exit(bool(lines))


if __name__ == "__main__":
    main()
