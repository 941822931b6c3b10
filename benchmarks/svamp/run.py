"""Every objective on SVAMP from two starts, through the command line; run again to go on where it stopped.

    python run.py REAL_DATA WORK [--seeds 2] [--jobs 1] [--objectives sft ift gft]

REAL_DATA holds ``data/svamp/SVAMP.json``, ``data/tinystories/tinystories_5k.jsonl`` and ``models/stories260K``. Data,
models and measurements go to WORK; ``results.json`` beside this file is written anew after every step. With
``--objectives`` the others stay in it as they were recorded, if start, rate and seeds are the same.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tables import BASE, MEASURED, collect, tables

HERE = Path(__file__).resolve().parent
RECIPES = HERE / "recipes"
RESULTS = HERE / "results.json"
STARTS = ("raw", "prepared")
REWEIGHT = "objective={name: reweight, rule: power, alpha: 0.5, signal: reference}"
CACHED = "reference.cache=cache/{start}"
OBJECTIVES: dict[str, tuple[str, ...]] = {
    "sft": ("objective=sft",),
    "dft": ("objective=dft",),
    "prift-prob": ("objective=prift-prob", CACHED),
    "prift-mass": ("objective=prift-mass", CACHED),
    "eksft": ("objective=eksft", "reference=model"),
    "reweight": (REWEIGHT, CACHED),
    "ift": ("objective=ift",),
    "gft": ("objective=gft", "groups={verifier: expression, own: 4, max_new_tokens: 20}", "training.logging_steps=1"),
}


@dataclass(frozen=True)
class Bench:
    """Where things are, and how many runs to start at a time."""

    real: Path
    work: Path
    jobs: int

    def start(self, name: str) -> str:
        return str(self.real / "models" / "stories260K") if name == "raw" else "prepared"

    def ballast(self, *words: str, log: str, out: str | None = None) -> float:
        """Run one `ballast` command in the working folder; return the seconds of CPU that it took.

        Its stdout becomes ``out`` when it has succeeded.
        """
        logged = self.work / "logs" / f"{log}.log"
        logged.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "ballast.cli", *words]
        environment = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"} | os.environ
        with logged.open("w") as file, tempfile.TemporaryFile() as printed:
            file.write(" ".join(command) + "\n")
            file.flush()
            process = subprocess.Popen(
                command, cwd=self.work, env=environment, stdout=printed if out else file, stderr=file
            )
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode:
                raise SystemExit(f"{logged}: failed with exit code {process.returncode}")
            if out:
                printed.seek(0)
                write(self.work / out, printed.read().decode())
        return used.ru_utime + used.ru_stime

    def each(self, work: Callable[..., None], items: Iterable[Sequence[Any]]) -> None:
        with ThreadPoolExecutor(self.jobs) as pool:
            for future in [pool.submit(work, *item) for item in items]:
                future.result()


def write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def finished(folder: Path) -> bool:
    record = folder / "run.json"
    return record.is_file() and json.loads(record.read_text(encoding="utf-8"))["status"] == "finished"


def checked_out() -> str:
    """Return the commit of this checkout, with ``+`` where files differ from it; the driver's own record may."""
    git = ("git", "-C", str(HERE))
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    others = ("--porcelain", "--untracked-files=no", "--", ":(top)", f":(exclude){RESULTS.name}")
    changed = subprocess.run([*git, "status", *others], capture_output=True, text=True, check=True).stdout
    return commit + ("+" if changed else "")


def prepare_data(bench: Bench) -> None:
    if not (bench.work / "data" / "report.txt").is_file():
        source = bench.real / "data" / "svamp" / "SVAMP.json"
        subprocess.run([sys.executable, HERE / "prepare.py", source, bench.work / "data"], check=True)
    stories = bench.work / "data" / "tinystories.jsonl"
    if not stories.exists():
        stories.symlink_to((bench.real / "data" / "tinystories" / "tinystories_5k.jsonl").resolve())


def train(bench: Bench, recipe: str, output: str, *words: str) -> None:
    """Train unless it is done; a run that was killed starts afresh in its own folder."""
    folder = bench.work / output
    if finished(folder):
        return
    if folder.exists():
        folder.rename(folder.with_name(f"{folder.name}.broken-{os.getpid()}"))
    commit = checked_out()
    log = f"train-{output.replace('/', '-')}"
    seconds = bench.ballast("train", str(RECIPES / recipe), f"output={output}", *words, log=log)
    write(folder / MEASURED, json.dumps({"commit": commit, "cpu_seconds": round(seconds, 1)}) + "\n")


def train_cell(bench: Bench, start: str, objective: str, rate: float, seed: int) -> None:
    words = [word.format(start=start) if word == CACHED else word for word in OBJECTIVES[objective]]
    words += [f"model={bench.start(start)}", f"training.learning_rate={rate}", f"seed={seed}"]
    train(bench, "train.yaml", f"runs/{start}/{objective}-{rate}-{seed}", *words)


def measure(bench: Bench, recipe: str, start: str, model: str, name: str) -> None:
    out = f"evals/{name}.json"
    if not (bench.work / out).is_file():
        words = (str(RECIPES / recipe), f"model={bench.start(start)}", "--model", model, "--json")
        bench.ballast("evaluate", *words, "--items", f"items/{name}", log=f"evaluate-{name.replace('/', '-')}", out=out)


def validate(bench: Bench, start: str, rate: float) -> None:
    train_cell(bench, start, "sft", rate, 0)
    measure(bench, "validate.yaml", start, f"runs/{start}/sft-{rate}-0", f"validation/{start}-{rate}")


def choose_rate(bench: Bench, start: str, rates: Sequence[float]) -> tuple[float, dict[str, float]]:
    """Return the rate with the best validation accuracy of sft, the smaller one of equals, and all accuracies."""
    found = {}
    for rate in rates:
        record = json.loads((bench.work / f"evals/validation/{start}-{rate}.json").read_text(encoding="utf-8"))
        found[rate] = record[0]["tasks"][0]["metrics"]["accuracy"]["value"]
    best = max(sorted(found), key=lambda rate: found[rate])
    return best, {str(rate): value for rate, value in found.items()}


def cell(bench: Bench, start: str, objective: str, rate: float, seed: int) -> None:
    train_cell(bench, start, objective, rate, seed)
    name = f"{objective}-{rate}-{seed}"
    measure(bench, "evaluate.yaml", start, f"runs/{start}/{name}", f"test/{start}/{name}")


def weights_of(bench: Bench, start: str) -> str:
    """Return what tells a start from another one of the same name."""
    return hashlib.sha256((bench.work / bench.start(start) / "model.safetensors").read_bytes()).hexdigest()[:16]


def recorded(start: str, objectives: Sequence[str], now: Mapping[str, Any]) -> dict[str, Any]:
    """Return the recorded rows of a start that are not measured anew.

    Raises:
        SystemExit: if they are of other weights, another rate or other seeds: one table must not hold both.
    """
    before = json.loads(RESULTS.read_text(encoding="utf-8"))["starts"].get(start, {}) if RESULTS.is_file() else {}
    kept = {name: row for name, row in before.get("rows", {}).items() if name not in (BASE, *objectives)}
    other = [key for key, value in now.items() if before.get(key) != value]
    if kept and other:
        raise SystemExit(
            f"{RESULTS.name}, {start} start: {', '.join(kept)} were measured with other {' and '.join(other)}; "
            "name all objectives to measure everything anew"
        )
    return kept


def record(
    bench: Bench, chosen: Mapping[str, Any], objectives: Sequence[str], kept: Mapping[str, Any], seeds: int
) -> dict[str, Any]:
    """Return the results so far: these starts and objectives anew, others as they were recorded."""
    known = json.loads(RESULTS.read_text(encoding="utf-8"))["starts"] if RESULTS.is_file() else {}
    found = collect(bench.work, chosen, objectives, seeds)
    for start, one in found["starts"].items():
        rows = {**kept[start], **one.pop("rows")}
        order = [name for name in (BASE, *OBJECTIVES) if name in rows]
        known[start] = {"weights": weights_of(bench, start), **one, "rows": {name: rows[name] for name in order}}
    return {**found, "starts": {start: known[start] for start in STARTS if start in known}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("real", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--starts", nargs="+", choices=STARTS, default=list(STARTS))
    parser.add_argument("--objectives", nargs="+", choices=OBJECTIVES, default=list(OBJECTIVES))
    parser.add_argument("--rates", type=float, nargs="+", default=[0.001, 0.003])
    options = parser.parse_args()
    bench = Bench(options.real.resolve(), options.work.resolve(), options.jobs)
    prepare_data(bench)
    starts = options.starts
    # sft has chosen the rate and is what the others are compared with, row by row.
    objectives = [name for name in OBJECTIVES if name in ("sft", *options.objectives)]
    if "prepared" in starts:
        train(bench, "prepared.yaml", "prepared", f"model={bench.start('raw')}")
    bench.each(measure, [(bench, "validate.yaml", s, bench.start(s), f"validation/{s}-base") for s in starts])
    bench.each(measure, [(bench, "evaluate.yaml", s, bench.start(s), f"test/{s}/base") for s in starts])
    bench.each(validate, [(bench, s, rate) for rate in options.rates for s in starts])
    chosen = {s: choose_rate(bench, s, options.rates) for s in starts}
    print(json.dumps({s: {"rate": rate, "validation": seen} for s, (rate, seen) in chosen.items()}))
    kept = {}
    for s in starts:
        now = {"weights": weights_of(bench, s), "learning_rate": chosen[s][0], "seeds": options.seeds}
        kept[s] = recorded(s, objectives, now)
    if any(CACHED in OBJECTIVES[name] for name in objectives):
        for s in starts:
            words = (str(RECIPES / "train.yaml"), f"model={bench.start(s)}", CACHED.format(start=s))
            bench.ballast("score", *words, log=f"score-{s}")
    for seed in range(options.seeds):
        bench.each(cell, [(bench, s, o, chosen[s][0], seed) for s in starts for o in objectives])
        if seed + 1 == options.seeds or not any(kept.values()):
            write(RESULTS, json.dumps(record(bench, chosen, objectives, kept, seed + 1), indent=1) + "\n")
    print(tables(json.loads(RESULTS.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
