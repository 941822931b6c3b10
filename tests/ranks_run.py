"""What each command gives that splits its work; run in this process alone, or as one rank of several by torchrun.

Usage: ranks_run.py FOLDER; in the working directory are the model and the rows of `workspace`. Every rank writes what
it said, how often it hashed weights, and what the commands returned.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from ballast import ranks
from ballast.config.recipe import Recipe

LONG = "1+1=2, " * 16


def workspace(folder: Path) -> None:
    """Make a model and rows: 70 prompts are two parts, and more than one batch to score."""
    from tiny import char_tokenizer, tiny_model

    tiny_model(initializer_range=0.2).save_pretrained(folder / "model")
    char_tokenizer().save_pretrained(folder / "model")
    asked = [{"prompt": f"{n}+{n}=", "completion": f"{2 * n}", "answer": str(2 * n)} for n in range(70)]
    shown = [{"prompt": f"{n}+{n}=", "completion": f"{2 * n} {LONG}"} for n in range(90)]
    for name, rows in (("asked", asked), ("shown", shown)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def recipe(data: str, **sections: Any) -> Recipe:
    return Recipe.from_dict({"model": "model", "data": {"train": [data]}, **sections})


SUMS = {"name": "sums", "data": "asked.jsonl", "limit": 9, "verifier": "last-number", "max_new_tokens": 4}


def commands(folder: str, say: Any) -> dict[str, Any]:
    """Run every command that splits its work into `folder`, and return what they give."""
    from ballast import pipeline

    scored = recipe("shown.jsonl", reference={"cache": f"{folder}/cache"})
    cache = pipeline.run_score(scored, say=say)
    sampled = {"file": f"{folder}/groups", "verifier": "last-number", "own": 2, "max_new_tokens": 4}
    asked = recipe("asked.jsonl", groups=sampled, rows={"file": f"{folder}/rows.jsonl"})
    revising = {"file": f"{folder}/revised", "verifier": "last-number", "rounds": 1, "max_new_tokens": 4}
    tasks = [{**SUMS, "samples": 3, "temperature": 1.0, "batch_tokens": 64, "entropy": True}]
    measured = recipe("asked.jsonl", evaluation={"tasks": tasks})
    ready = pipeline.with_readiness(measured, group=2, samples=3)
    found = {
        "score": [len(cache), cache.key.hex],
        "sample": pipeline.run_sample(asked, say=say),
        "revise": pipeline.run_revise(recipe("asked.jsonl", revise=revising), say=say),
        "evaluate": [
            one.record().plain() for one in pipeline.run_evaluate(measured, say=say, items=f"{folder}/evaluated")
        ],
        "readiness": [one.record().plain() for one in pipeline.run_evaluate(ready, say=say, items=f"{folder}/ready")],
    }
    advised = pipeline.run_advise(recipe("shown.jsonl"), say=say)
    return {**found, "advise": None if advised is None else advised.to_dict()}


def run(folder: str) -> None:
    """Write what this rank said and hashed, and what the commands returned."""
    from unittest import mock

    from ballast.reference import fingerprint

    said: list[str] = []
    with mock.patch.object(fingerprint, "model_fingerprint", wraps=fingerprint.model_fingerprint) as hashed:
        found = commands(folder, lambda line: said.append(str(line)))
    told = {"said": said, "hashed": hashed.call_count, "found": found}
    Path(f"{folder}-rank{ranks.join().rank}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    run(sys.argv[1])
    sys.stdout.flush()
    ranks.leave()
    # Gloo's threads can abort an interpreter that ends in the ordinary way.
    os._exit(0)
