"""What `ballast advise` says of small settings, against what training on them shows.

    python scripts/advise_settings.py truth [NAME…] [--seeds 2]    # train and measure; resumable, one thread
    python scripts/advise_settings.py verdicts                     # score and advise, beside the truth; hit rates
    python scripts/advise_settings.py flaws                        # likely label noise against known flaws

Writes JSON into docs/evidence/advise; what counts as a hit stands in `advise_judged.py`. The settings of ``fix`` are
those on which the rule was chosen, those of ``test`` were trained afterwards with the rule as it stands.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from advise_judged import OBJECTIVES, TASKS, flaws_table, outcome, rates, rates_table, table, truth

EVIDENCE = Path(__file__).parent.parent / "docs" / "evidence" / "advise"
VERIFIER = "ballast.lab.arithmetic:verify"
EPOCHS = {256: 6, 128: 8, 64: 12}
PROBLEMS, SAMPLES, GREEDY = 120, 4, 200


@dataclass(frozen=True)
class Setting:
    """Demonstrations, the model that starts, and the problems that accuracy is measured on.

    Attributes:
        blur: standard deviation of noise added to every weight matrix, in units of its own; None is a random start.
        rewrite: what becomes of each row, by name; see `REWRITES`.
    """

    name: str
    part: str
    seed: int
    terms: tuple[int, ...] = (3, 4)
    asked: int = 4
    size: int = 256
    noise: float = 0.15
    off_style: float = 0.05
    blur: float | None = 0.0
    rewrite: str = "as-it-is"


SETTINGS = (
    Setting("default", "fix", 101),
    Setting("clean-few", "fix", 102, size=64, noise=0.0, off_style=0.0),
    Setting("six-terms", "fix", 103, terms=(6,), asked=6),
    Setting("plus-one", "fix", 104, noise=0.0, off_style=0.0, rewrite="plus-one"),
    Setting("blurred", "fix", 105, blur=0.5),
    Setting("random-start", "fix", 106, terms=(2,), asked=2, blur=None),
    Setting("five-terms", "test", 201, terms=(5,), asked=5),
    Setting("noisy-few", "test", 202, size=64, noise=0.3),
    Setting("seven-terms-clean", "test", 203, terms=(6, 7), asked=6, size=128, noise=0.0, off_style=0.0),
    Setting("result-first", "test", 204, noise=0.0, off_style=0.0, rewrite="result-first"),
    Setting("doubled", "test", 205, rewrite="doubled"),
    Setting("more-blurred", "test", 206, blur=0.8),
    Setting("in-words", "test", 207, noise=0.0, off_style=0.0, rewrite="in-words"),
    Setting("random-start-clean", "test", 208, terms=(2,), asked=2, noise=0.0, off_style=0.0, blur=None),
)


def _changed_answer(change: Callable[[int], int]) -> Callable[[dict], dict]:
    def rewrite(row: dict) -> dict:
        answer = str(change(int(row["answer"])))
        return {**row, "completion": row["completion"].partition("#")[0] + f"#{answer}", "answer": answer}

    return rewrite


def _result_first(row: dict) -> dict:
    return {**row, "completion": re.sub(r"([^;=#]+)=(\d+)", r"\2=\1", row["completion"])}


def _in_words(row: dict) -> dict:
    from ballast.lab.arithmetic import Chain, solve

    chain = Chain(tuple(int(term) for term in re.findall(r"[+-]?\d+", row["prompt"])))
    return {**row, "completion": solve(chain, "words")}


REWRITES: dict[str, Callable[[dict], dict]] = {
    "as-it-is": lambda row: row,
    "plus-one": _changed_answer(lambda answer: answer + 1),
    "doubled": _changed_answer(lambda answer: 2 * answer),
    "result-first": _result_first,
    "in-words": _in_words,
}


def rows_of(setting: Setting) -> tuple[list[dict], list[dict]]:
    """Return demonstrations, and problems that are not among them."""
    from ballast import lab

    given = lab.demonstrations(
        setting.seed, setting.size, terms=setting.terms, noise=setting.noise, off_style=setting.off_style
    )
    # A demonstration without completion is a problem; every rewriting changes its answer alike.
    seen = {row["prompt"] for row in given}
    asked = lab.problems(setting.seed + 1000, GREEDY + 100 if setting.asked > 2 else GREEDY, setting.asked)
    rewrite = REWRITES[setting.rewrite]
    problems = [row for row in asked if row["prompt"] not in seen][:GREEDY]
    return [rewrite(row) for row in given], [rewrite({**row, "completion": ""}) for row in problems]


def build(setting: Setting, folder: Path) -> dict[str, Any]:
    """Write start, demonstrations and problems, and return the part of a recipe that all runs share."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from ballast import lab

    base = lab.base_path()
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    torch.manual_seed(setting.seed)
    if setting.blur is None:
        model = AutoModelForCausalLM.from_config(model.config)
    else:
        with torch.no_grad():
            for weight in model.parameters():
                if weight.dim() > 1:
                    weight.add_(setting.blur * weight.std() * torch.randn(weight.shape))
    model.save_pretrained(folder / "start")
    AutoTokenizer.from_pretrained(base).save_pretrained(folder / "start")
    for name, rows in zip(("demonstrations", "problems"), rows_of(setting), strict=True):
        text = "".join(json.dumps({k: v for k, v in row.items() if v != ""}) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text)
    task = {"data": str(folder / "problems.jsonl"), "verifier": VERIFIER, "max_new_tokens": 80}
    sampled = {"name": "sampled", "limit": PROBLEMS, "samples": SAMPLES, "temperature": 1.0}
    return {
        "model": {"path": str(folder / "start")},
        "data": {"train": str(folder / "demonstrations.jsonl")},
        "reference": {"cache": str(folder / "cache")},
        "training": {
            "num_train_epochs": EPOCHS[setting.size],
            "per_device_train_batch_size": 32,
            "learning_rate": 3e-4,
            "lr_scheduler_type": "cosine",
            "warmup_steps": 0.1,
            "gradient_checkpointing": False,
            "save_strategy": "no",
        },
        "evaluation": {"tasks": [{"name": "greedy", **task}, {**task, **sampled}], "base": False},
    }


def measure(setting: Setting, seeds: range) -> dict[str, Any]:
    """Train with each objective and seed, and return accuracies, the start's too, and the paired differences."""
    from ballast.config.recipe import Recipe
    from ballast.pipeline import run_evaluate, run_train

    kept = EVIDENCE / f"{setting.name}.json"
    record = json.loads(kept.read_text()) if kept.exists() else {"setting": asdict(setting), "runs": {}}
    record["setting"] = json.loads(json.dumps(asdict(setting)))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shared = build(setting, folder)
        for seed in seeds:
            if "start" not in record:
                recipe = Recipe.model_validate({**shared, "evaluation": {**shared["evaluation"], "base": True}})
                (start,) = run_evaluate(recipe, say=_silent)
                record["start"] = _scores(start.results)
            for objective in OBJECTIVES:
                run = f"{objective}-{seed}"
                if run in record["runs"]:
                    continue
                started = time.process_time()
                recipe = Recipe.model_validate(
                    {**shared, "objective": {"name": objective}, "output": str(folder / run), "seed": seed}
                )
                run_train(recipe, say=_silent, progress=False)
                items = folder / run / "evals" / "trained"
                lines = {task: (items / f"{task}.jsonl").read_text().splitlines() for task in TASKS}
                scores = {task: [_mean(json.loads(line)["scores"]) for line in some] for task, some in lines.items()}
                record["runs"][run] = {"scores": scores, "cpu_seconds": round(time.process_time() - started, 1)}
    record["difference"] = difference(record["runs"])
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(record) + "\n")
    return record


def _scores(results: Any) -> dict[str, list[float]]:
    return {one.name: [_mean(item["scores"]) for item in one.items] for one in results}


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _silent(_: Any) -> None:
    return None


def difference(runs: dict[str, Any]) -> dict[str, Any]:
    """Return prift-mass less sft by task: the mean over seeds, with a bootstrap interval over problems."""
    from ballast.evaluation.metrics import ratio

    seeds = sorted({name.rpartition("-")[2] for name in runs})
    found = {}
    for task in TASKS:
        pairs = [[runs[f"{name}-{seed}"]["scores"][task] for name in OBJECTIVES] for seed in seeds]
        per_item = [_mean([b[i] - a[i] for a, b in pairs]) for i in range(len(pairs[0][0]))]
        estimate = ratio(per_item, [1.0] * len(per_item))
        levels = {name: _mean([_mean(pair[place]) for pair in pairs]) for place, name in enumerate(OBJECTIVES)}
        found[task] = {**levels, "difference": estimate.value, "low": estimate.low, "high": estimate.high}
    return {**found, "seeds": len(seeds)}


def verdicts() -> dict[str, Any]:
    """Return what the rule says of every setting, beside what training showed, and how often it hit."""
    from ballast.advise import RULE
    from ballast.config.recipe import Recipe
    from ballast.pipeline import run_advise

    found = []
    for setting in SETTINGS:
        with tempfile.TemporaryDirectory() as name:
            advised = run_advise(Recipe.model_validate(build(setting, Path(name))), say=_silent).advice
        record = json.loads((EVIDENCE / f"{setting.name}.json").read_text())
        expects, shown = advised.regime.expects, truth(record["difference"])
        found.append(
            {
                "name": setting.name,
                "part": setting.part,
                "support": asdict(advised.support),
                "suspect_rows": advised.suspect_rows,
                "regime": advised.regime.name,
                "expects": expects,
                "start": {task: _mean(scores) for task, scores in record["start"].items()},
                "difference": record["difference"],
                "truth": shown,
                "outcome": outcome(expects, shown),
            }
        )
    return {"rule": asdict(RULE), "rates": rates(found), "settings": found}


FLAWS = (
    Setting("fix", "fix", 11),
    Setting("other rows", "test", 31),
    Setting("two terms", "test", 32, terms=(2,)),
    Setting("five terms", "test", 33, terms=(5,)),
    Setting("few flaws", "test", 34, noise=0.05),
    Setting("many flaws", "test", 35, noise=0.4),
    Setting("blurred start", "test", 36, blur=0.5),
    Setting("no flaws", "test", 37, noise=0.0),
    Setting("six terms", "test", 38, terms=(6,)),
)


def flaws() -> list[dict[str, Any]]:
    """Return precision and recall of the suspects against the wrong results that the generator wrote."""
    from ballast.config.recipe import Recipe
    from ballast.pipeline import run_advise

    found = []
    for setting in FLAWS:
        wrong = {row: place for row, one in enumerate(rows_of(setting)[0]) if (place := wrong_token(one)) is not None}
        with tempfile.TemporaryDirectory() as name:
            advised = run_advise(Recipe.model_validate(build(setting, Path(name))), say=_silent).advice
        suspects = {token.row: token.place for token in advised.suspects}
        rows = suspects.keys() & wrong.keys()
        found.append(
            {
                "name": setting.name,
                "part": setting.part,
                "rows": setting.size,
                "flawed_rows": len(wrong),
                "suspect_rows": len(suspects),
                "row_precision": len(rows) / len(suspects) if suspects else None,
                "row_recall": len(rows) / len(wrong) if wrong else None,
                "token_recall": sum(suspects[row] == wrong[row] for row in rows) / len(wrong) if wrong else None,
                "separable": advised.separable,
            }
        )
    return found


def wrong_token(row: dict) -> int | None:
    """Return the place of the first character that differs from the right steps, None in a correct row.

    One token is one character in the lab.
    """
    from ballast.lab.arithmetic import Chain, solve

    chain = Chain(tuple(int(term) for term in re.findall(r"[+-]?\d+", row["prompt"])))
    if row["completion"] in (solve(chain, style) for style in ("steps", "words", "answer")):
        return None
    pairs = zip(solve(chain), row["completion"], strict=False)
    return len(row["prompt"]) + next(place for place, (right, written) in enumerate(pairs) if right != written)


def main() -> None:
    """Run one of the three parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("truth", "verdicts", "flaws"))
    parser.add_argument("names", nargs="*")
    parser.add_argument("--seeds", type=int, default=2)
    given = parser.parse_args()
    if unknown := set(given.names) - {setting.name for setting in SETTINGS}:
        parser.error(f"no such setting: {', '.join(sorted(unknown))}; there are {', '.join(s.name for s in SETTINGS)}")
    import torch

    from ballast.pipeline import quiet

    torch.set_num_threads(1)
    quiet()
    if given.part == "truth":
        for setting in SETTINGS:
            if not given.names or setting.name in given.names:
                record = measure(setting, range(given.seeds))
                print(setting.name, json.dumps(record["difference"]), round(_cpu()), "s", flush=True)
        return
    found = {"verdicts": verdicts, "flaws": flaws}[given.part]()
    (EVIDENCE / f"{given.part}.json").write_text(json.dumps(found, indent=1) + "\n")
    if given.part == "verdicts":
        print(table(found["settings"]), rates_table(found["rates"]), sep="\n\n")
    else:
        print(flaws_table(found))


def _cpu() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_utime


if __name__ == "__main__":
    sys.exit(main())
