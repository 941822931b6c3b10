"""A run of GRPO on a tiny model with five tokens to choose from, so that answers of every kind come up."""

from __future__ import annotations

from ballast.rl import Prompts, RLOptions, Run, reward_verifier
from tiny import CHAT_TEMPLATE, char_tokenizer, tiny_model

ROWS = [{"prompt": prompt, "answer": "a"} for prompt in ("ab", "ba", "aab", "b")]
TINY = {"verifier": "exact", "steps": 1, "prompts": 4, "group": 4, "max_new_tokens": 4, "learning_rate": 1e-2}


def tiny_tokenizer(**settings):
    return char_tokenizer(characters="ab", **settings)


def tiny_policy(seed=3, **settings):
    return tiny_model(seed=seed, **{"vocab": 6, **settings})


def tiny_run(tmp_path, *, rows=ROWS, model=None, tokenizer=None, peft_config=None, verify=None, seed=1, **changes):
    """Return a `Run`; `changes` are options."""
    from datasets import Dataset
    from transformers import PrinterCallback, ProgressCallback

    from ballast.rl import trl

    options = RLOptions(**{**TINY, **changes})
    tokenizer = tokenizer or tiny_tokenizer(chat_template=CHAT_TEMPLATE)
    verify = verify or reward_verifier(options.verifier, options.reward)
    prompts = Prompts.of(Dataset.from_list(rows), tokenizer, options, verify)
    args = trl.config(options, output_dir=str(tmp_path / "out"), seed=seed)
    run = Run(model or tiny_policy(), tokenizer, prompts, verify, options, args, peft_config=peft_config)
    for callback in (PrinterCallback, ProgressCallback):
        run.trainer.remove_callback(callback)
    return run


def logged(run):
    """Return the lines of the run's steps, without times."""
    from ballast.rl.trl import metric_line

    lines = [metric_line(entry) for entry in run.trainer.state.log_history]
    return [
        {name: value for name, value in line.items() if "seconds" not in name} for line in lines if "reward" in line
    ]
