"""Objectives of groups multiplied by one of a whole step: weights do not depend on how the step is split."""

from __future__ import annotations

import pytest
import torch

from ballast import objective
from group_rows import run
from training_tools import largest_difference, weights


@pytest.mark.parametrize("factor", ["hpt", "self-train", "luffy"])
def test_splitting_the_step_changes_nothing(tmp_path, factor):
    built = objective("product", of=[factor, "talr"])
    settings = {"max_steps": 1, "learning_rate": 0.5, "optim": "sgd"}
    whole, split = (
        weights(
            run(
                tmp_path / str(size),
                objective=built,
                per_device_train_batch_size=size,
                gradient_accumulation_steps=8 // size,
                **settings,
            )
        )
        for size in (8, 2)
    )
    assert largest_difference(whole, split) < 1e-9
    assert all(bool(torch.isfinite(weight).all()) for weight in whole.values())
