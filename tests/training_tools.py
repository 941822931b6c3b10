"""Short runs of the trainer on tiny random models, and the weights that they end with."""

from __future__ import annotations

from typing import Any

from tiny import char_tokenizer, tiny_model

OBJECTIVES = (
    *("sft", "dft", "prift-prob", "prift-mass", "eksft", "gift", "iw-sft", "product", "reweight"),
    *("weighted-sft", "psft", "deft", "talr", "tail-sft", "gem", "idft"),
)

# prift-mass keeps few tokens of a random model at its default threshold; a low one makes the weights vary.
OPTIONS: dict[str, dict[str, Any]] = {
    "prift-mass": {"threshold": 0.02},
    "eksft": {"rho": 0.3},
    "psft": {"clip": 0.05},
    "idft": {"warmup": 0.2, "transition": 0.6},
    "deft": {"exponent": "cayley"},
    "gift": {"beta": 3},
    "product": {"of": ["srft", {"name": "prift-mass", "threshold": 0.02}, "kl-sft"]},
}


def rows(count: int = 8) -> list[dict[str, Any]]:
    """Demonstrations of very different lengths, so that a mean of means shows, with weights, some of them 0."""
    return [
        {"prompt": f"{n}+{n * 7}=", "completion": "abc" * (n % 4) + str(n * 8) + "x" * n, "weight": (n % 3) / 2}
        for n in range(count)
    ]


def dataset(count: int = 8):
    from datasets import Dataset

    return Dataset.from_list(rows(count))


def config(tmp_path, **changes: Any):
    """Arguments of a short, plain run: SGD without momentum or clipping, so that weights show gradients."""
    import ballast

    settings = {
        "output_dir": str(tmp_path),
        "max_steps": 1,
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 3,
        "learning_rate": 0.1,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "weight_decay": 0.0,
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        **changes,
    }
    kind = settings.pop("config_class", ballast.TrainingConfig)
    return kind(**settings)


def objective(name: str):
    import ballast

    return ballast.objective(name, **OPTIONS.get(name, {}))


def run(
    tmp_path, name: str, *, model=None, data=None, tokenizer=None, reference=None, peft_config=None, **changes: Any
):
    """Train and return the trainer."""
    import ballast

    trainer = ballast.Trainer(
        model if model is not None else tiny_model(),
        config(tmp_path, **changes),
        train_dataset=data if data is not None else dataset(),
        processing_class=tokenizer or char_tokenizer(),
        objective=objective(name),
        reference=reference,
        peft_config=peft_config,
    )
    trainer.train()
    return trainer


def weights(trainer) -> dict[str, Any]:
    """Copies of the trainable weights by name."""
    return {name: weight.detach().clone() for name, weight in trainer.model.named_parameters() if weight.requires_grad}


def largest_difference(left: dict[str, Any], right: dict[str, Any]) -> float:
    """The largest absolute difference between two sets of weights."""
    assert left.keys() == right.keys()
    return max(float((left[name] - right[name]).abs().max()) for name in left)
