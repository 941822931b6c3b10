"""Do runs survive `kill -9`? Every verb is killed at random moments and run again; what comes out must be the same.

    python scripts/kill_runs.py --kills 200
    python scripts/kill_runs.py --kills 20 --verbs train,rl --seed 3

Each verb runs once undisturbed. Then it runs again and again in new folders, is killed up to three times a run, and
goes on as a user would: `train` and `rl` with `--resume` where a checkpoint or a trained model lies, anew in an emptied
folder where none does, everything else by the same command. Weights, metrics, measurements, cached values, groups and
summaries are then compared with those of the undisturbed run, bit for bit; left out are durations and `train_loss`, the
mean over the steps of the last process alone. Exit code 1 if one differs.

Runs are forked from one process that has imported everything, as imports take longer than all the rest.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import hashlib
import importlib
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from same_numbers import TRAINING, VERIFIER, read_folder

KILLS_PER_RUN = 3
ATTEMPTS = 12
"""After so many kills and starts without an end a run counts as stuck."""
LOGS = "log.txt"
OF_ONE_PROCESS = re.compile(r"(^|\.)train_loss$")
"""What transformers states of the steps of the last process alone."""
PRELOADED = (
    "ballast.cli",
    "ballast.compare",
    "ballast.evaluation.kinds",
    "ballast.lab",
    "ballast.pipeline",
    "ballast.report",
    "ballast.rl.train",
    "ballast.rl.trl",
    "ballast.training",
    "scipy.stats",
)

TASKS: list[dict[str, Any]] = [
    {"name": "greedy", "data": "lab:test", "verifier": VERIFIER, "max_new_tokens": 4, "limit": 4},
    {"name": "text", "kind": "nll", "data": "lab:forgetting", "limit": 4, "base_kl": True},
]
SHARED: dict[str, Any] = {"model": "lab", "data": {"train": "lab:train", "limit": 24}, "seed": 7}
STEPS = {**TRAINING, "gradient_accumulation_steps": 1, "save_strategy": "steps", "save_steps": 1, "report_to": "none"}
RATE = STEPS.pop("learning_rate")
GRPO = {"verifier": VERIFIER, "steps": 3, "prompts": 2, "group": 2, "max_new_tokens": 6}
CELLS = {"objectives": ["sft", "prift-mass"], "rates": [1e-3], "seeds": 1, "then": {"rl": {"steps": 1}}}
RECIPES: dict[str, dict[str, Any]] = {
    "score": {**SHARED, "objective": "prift-mass", "reference": {"cache": "out"}},
    "sample": {
        **SHARED,
        "objective": "gft",
        "groups": {"verifier": VERIFIER, "own": 2, "max_new_tokens": 6, "file": "out"},
    },
    "train": {
        **SHARED,
        "objective": "prift-mass",
        "reference": {"cache": "cache"},
        "training": {**STEPS, "learning_rate": RATE},
        "evaluation": {"tasks": TASKS},
        "output": "out",
    },
    "rl": {**SHARED, "rl": {**GRPO, "save_steps": 1}, "evaluation": {"tasks": TASKS}, "output": "out"},
    "compare": {
        **SHARED,
        "rl": GRPO,
        "compare": CELLS,
        "training": {**STEPS, "save_strategy": "no", "max_steps": 2},
        "evaluation": {"tasks": TASKS},
        "output": "out",
    },
}
RESUMED = ("train", "rl")


@dataclass
class Tally:
    """What became of one verb: kills by where they hit, runs that ended the same, and what differed."""

    hits: Counter[str] = field(default_factory=Counter)
    equal: int = 0
    faults: list[str] = field(default_factory=list)

    @property
    def kills(self) -> int:
        """How many processes were killed at work."""
        return self.hits.total()


def preload() -> None:
    """Import what runs need, and let the collector pass it over."""
    import torch

    torch.set_num_threads(1)
    for name in PRELOADED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()


def start(words: list[str], folder: Path) -> int:
    """Fork a process that runs a command in a folder, and return its number."""
    sys.stdout.flush()
    if child := os.fork():
        return child
    code = 1
    try:
        os.chdir(folder)
        log = os.open(LOGS, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        code = command(words)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def command(words: list[str]) -> int:
    """Run a command of ballast in this process and return its exit code."""
    from ballast import parts
    from ballast.cli import app
    from ballast.reference.writer import CacheWriter

    # Small ones, so that a kill falls between two of them.
    parts.ROWS_PER_PART = 6
    assert CacheWriter.__init__.__kwdefaults__ is not None
    CacheWriter.__init__.__kwdefaults__["shard_tokens"] = 60
    try:
        app(words)
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def end(child: int, seconds: float | None) -> int | None:
    """Wait for a process, kill it after some seconds, and return its exit code; None where it was killed."""
    if seconds is not None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                break
            time.sleep(0.002)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return None if code == -signal.SIGKILL else code


def words_of(verb: str, folder: Path) -> list[str]:
    """Return the command that starts a run or goes on with it; what cannot be gone on with is thrown away."""
    output, plain = folder / "out", [verb, "recipe.json", *(["--jobs", "1"] if verb == "compare" else [])]
    if verb not in RESUMED or not output.exists():
        return plain
    if list(output.glob("checkpoint-*")) or status(output) in ("trained", "finished"):
        return [verb, "recipe.json", "--resume"]
    shutil.rmtree(output)
    return plain


def status(output: Path) -> str:
    """Return what the record of a run says, ``none`` where there is no record."""
    with contextlib.suppress(FileNotFoundError):
        return str(json.loads((output / "run.json").read_text())["status"])
    return "none"


def where(verb: str, folder: Path) -> str:
    """Return how far a killed run had come."""
    output = folder / "out"
    if verb in RESUMED:
        saved = len(list(output.glob("checkpoint-*")))
        return f"{status(output)}, {saved} checkpoints" if status(output) == "running" else status(output)
    if verb == "compare":
        runs = [status(path.parent) for path in output.rglob("run.json")]
        summed = ", summary" if (output / "summary.json").exists() else ""
        return f"{runs.count('finished')} of {len(runs)} runs{summed}"
    parts = len([*output.glob("shard-*.safetensors"), *output.glob("part-*.parquet")])
    return f"{parts} parts"


def outcome(verb: str, folder: Path) -> dict[str, Any]:
    """Return everything that a run left and that is no matter of time."""
    found = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in _bytes(folder)}
    for cache in {path.parent for path in folder.rglob("shard-*.safetensors")}:
        found[f"values in {cache.relative_to(folder)}"] = _values(cache)
    numbers = {name: value for name, value in read_folder(folder).items() if "shard-" not in name}
    return found | {name: _lasting(value) for name, value in numbers.items()}


def _lasting(value: Any) -> Any:
    if isinstance(value, list):
        return [_lasting(one) for one in value]
    if isinstance(value, dict):
        return {name: one for name, one in value.items() if not OF_ONE_PROCESS.search(name)}
    return value


def _bytes(folder: Path) -> list[tuple[str, Path]]:
    kinds = ("part-*.parquet", "out/manifest.json" if list(folder.glob("out/part-*")) else "")
    return [(path.relative_to(folder).as_posix(), path) for kind in kinds if kind for path in folder.rglob(kind)]


def _values(folder: Path) -> dict[str, str]:
    """Return a hash of each row's values: which shard a row lies in is a matter of when the writer was killed."""
    from ballast.reference import ReferenceCache

    cache = ReferenceCache.open(folder)
    found = {}
    for digest in (digest.hex() for digest in cache._rows):
        values = cache.lookup(digest)
        found[digest] = hashlib.sha256(b"".join(values[name].tobytes() for name in sorted(values))).hexdigest()
    return dict(sorted(found.items()))


def differences(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """Return the names of what differs."""
    return sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))


class Verb:
    """A verb, how long it takes and what comes out of it when nothing disturbs it."""

    def __init__(self, name: str, place: Path) -> None:
        self.name, self.place, self.tally = name, place, Tally()
        folder = self._folder("alone")
        since = time.monotonic()
        if code := end(start(words_of(name, folder), folder), None):
            raise SystemExit(f"{name}: exit code {code}\n{(folder / LOGS).read_text()}")
        self.seconds = time.monotonic() - since
        self.wanted = outcome(name, folder)

    def run(self, number: int, chance: random.Random, most: int) -> None:
        """Run once with up to so many kills and compare."""
        folder, kills = self._folder(f"run-{number}"), 0
        for _ in range(ATTEMPTS):
            after = chance.uniform(0, self.seconds) if kills < most else None
            since = time.monotonic()
            words = words_of(self.name, folder)
            code = end(start(words, folder), after)
            if code is None:
                kills += 1
                self.tally.hits[where(self.name, folder)] += 1
                continue
            if kills == 0:
                # The machine may be busier or idler than it was.
                self.seconds = (self.seconds + time.monotonic() - since) / 2
            self._judge(code, folder)
            return
        self.tally.faults.append(f"{folder}: did not end")

    def _judge(self, code: int, folder: Path) -> None:
        try:
            changed = differences(outcome(self.name, folder), self.wanted) if code == 0 else []
        except Exception as error:
            changed = [repr(error)]
        if code == 0 and not changed:
            self.tally.equal += 1
            shutil.rmtree(folder)
            return
        last = (folder / LOGS).read_text().strip().split("\n")[-1]
        self.tally.faults.append(f"{folder}: {', '.join(changed) or f'exit code {code}: {last}'}")

    def _folder(self, name: str) -> Path:
        folder = self.place / self.name / name
        folder.mkdir(parents=True)
        (folder / "recipe.json").write_text(json.dumps(RECIPES[self.name]))
        return folder


def kill_all(verbs: list[str], kills: int, seed: int, place: Path, say: Callable[[str], None] = print) -> list[Verb]:
    """Kill so many processes, the verbs by turns, and return what became of them."""
    chance = random.Random(seed)
    made = []
    for name in verbs:
        made.append(Verb(name, place))
        say(f"{name}: {made[-1].seconds:.1f} s undisturbed")
    number = 0
    while (done := sum(verb.tally.kills for verb in made)) < kills:
        verb = made[number % len(made)]
        faults = len(verb.tally.faults)
        verb.run(number, chance, min(KILLS_PER_RUN, kills - done))
        for fault in verb.tally.faults[faults:]:
            say(f"{verb.name}: DIFFERS: {fault}")
        number += 1
        if number % 10 == 0:
            say(f"{done} kills")
    return made


def table(verbs: list[Verb]) -> str:
    """Return the tallies as a table in Markdown."""
    lines = ["| verb | kills | resumed runs equal | different | where they hit |", "|---|---|---|---|---|"]
    for verb in verbs:
        tally = verb.tally
        hits = "; ".join(f"{place}: {count}" for place, count in sorted(tally.hits.items()))
        lines.append(f"| `{verb.name}` | {tally.kills} | {tally.equal} | {len(tally.faults)} | {hits} |")
    return "\n".join(lines)


def main() -> None:
    """Kill, compare, and print a table; exit code 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--verbs", default=",".join(RECIPES), help="by comma: %(default)s")
    parser.add_argument("--seed", type=int, default=None, help="of the moments; default: the time")
    parser.add_argument("--keep", type=Path, help="an empty folder for the runs; those that differ stay there")
    arguments = parser.parse_args()
    verbs = arguments.verbs.split(",")
    if unknown := [verb for verb in verbs if verb not in RECIPES]:
        parser.error(f"--verbs: {unknown[0]!r} is none of {', '.join(RECIPES)}")
    seed = time.time_ns() % 2**32 if arguments.seed is None else arguments.seed
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", CUDA_VISIBLE_DEVICES="")
    preload()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        place = arguments.keep or Path(temporary)
        made = kill_all(verbs, arguments.kills, seed, place, lambda line: print(line, flush=True))
    kills = sum(verb.tally.kills for verb in made)
    print(f"{kills} kills in {time.monotonic() - began:.0f} s, seed {seed}\n\n{table(made)}")
    sys.exit(any(verb.tally.faults for verb in made))


if __name__ == "__main__":
    main()
