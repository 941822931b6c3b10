"""Prompts with answers of each origin, a verifier, and short GFT runs on tiny models that do end an answer."""

from __future__ import annotations

from typing import Any

from ballast.verifiers.registry import Verifier
from tiny import char_tokenizer, tiny_model
from training_tools import config

CHARACTERS = "0123456789+=x"


def even(completion: str, row: Any) -> float:
    """Reward answers of an even number of digits: half of what a random model says."""
    return float(sum(character.isdigit() for character in completion) % 2 == 0)


EVEN = Verifier("even", even)
NOTHING = Verifier("nothing", lambda completion, row: 0.0)

GROUPS = {"verifier": "group_rows:EVEN", "own": 3, "max_new_tokens": 10}


def prompts(count: int = 8) -> list[dict[str, Any]]:
    """Rows whose experts' and teachers' answers differ in length; every third row has no teacher."""
    return [
        {
            "prompt": f"{n}+{n * 7}=",
            "completion": str(n * 8) + "x" * n,
            "teachers": [str(n), "x" * n + "12"] if n % 3 else [],
            "answer": str(n * 8),
        }
        for n in range(count)
    ]


def tokenizer():
    return char_tokenizer(characters=CHARACTERS)


def model(seed: int = 0, **settings: Any):
    import torch

    return tiny_model(seed, vocab=4 + len(CHARACTERS), **{"dtype": torch.float64, **settings})


def trainer(tmp_path, *, net=None, groups=None, rows=None, objective=None, evaluation=None, lora=None, **changes: Any):
    """Return a GFT trainer on eight prompts that has not trained yet."""
    from datasets import Dataset

    import ballast

    wanted = GROUPS if groups is None else groups
    return ballast.Trainer(
        model() if net is None else net,
        config(tmp_path, **changes),
        train_dataset=None if "file" in wanted else Dataset.from_list(prompts() if rows is None else rows),
        eval_dataset=evaluation,
        processing_class=tokenizer(),
        objective={"name": "gft", "tau": 0.3} if objective is None else objective,
        groups=wanted,
        peft_config=lora,
    )


def run(tmp_path, **settings: Any):
    """Train and return the trainer."""
    made = trainer(tmp_path, **settings)
    made.train()
    return made
