"""One rank of IFT on two; started by test_training_ift_distributed, not by pytest.

Usage: ift_ranks.py OUTPUT; rank 0 writes the final weights of each case, and differences of gradients under FSDP2.
"""

import os
import sys
import tempfile
from pathlib import Path

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import ballast
from ballast.head import two_phase
from ballast.training.reduction import token_layout
from ballast.training.trl import add_statistics
from ift_tools import all_weights, double, trained

CHECKPOINTING = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
REENTRANT = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}

CASES = {
    "noisy": ({"schedule": "noisy", "lam": 0.5}, {}, False),
    "checkpointing": ({}, CHECKPOINTING, False),
    "reentrant checkpointing": ({}, REENTRANT, False),
    "tied, checkpointing": ({}, CHECKPOINTING, True),
    "attached, checkpointing": ({"embeddings": "attached"}, CHECKPOINTING, False),
    "weight decay": ({}, {**CHECKPOINTING, "weight_decay": 0.5, "optim": "adamw_torch", "learning_rate": 1e-3}, False),
}


def end(folder: Path, case: str, batch: int):
    """Train a case for three steps and return its weights and first log."""
    options, settings, tied = CASES[case]
    settings = {"max_steps": 3, "learning_rate": 0.01, "per_device_train_batch_size": batch, **settings}
    trainer = trained(folder, options, model=double(tied=tied), **settings)
    return all_weights(trainer), trainer.state.log_history[0]


def backward(model, ids: torch.Tensor) -> None:
    labels = ids.clone()
    labels[:, :2] = -100
    objective = ballast.objective("ift", lam=0.5, embeddings="attached")
    layout = dict(zip(("sequence", "position"), token_layout({"labels": labels}), strict=True))

    def found(hidden, head, targets):
        return two_phase(hidden, head, targets, objective.per_token_loss, columns=layout)

    model(input_ids=ids, labels=labels, statistics=found, prepare=objective.prepare_inputs).loss.backward()


def sharded_difference(tied: bool) -> float:
    """Return the largest difference between the gradients of a sharded model and of the same one alone."""
    ids = torch.randint(4, 60, (2, 9), generator=torch.Generator().manual_seed(0))
    alone, sharded = double(tied=tied), double(tied=tied)
    for model in (alone, sharded):
        add_statistics(model)
    mesh = init_device_mesh("cpu", (2,))
    for layer in sharded.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    for model in (alone, sharded):
        backward(model.train(), ids)
    pairs = zip(sharded.parameters(), alone.parameters(), strict=True)
    return max(
        float((ours.grad.full_tensor() - theirs.grad).abs().max() / theirs.grad.abs().max()) for ours, theirs in pairs
    )


def main(output: str) -> None:
    torch.set_num_threads(1)
    ends = {}
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            ends[case] = end(Path(folder), case, batch=4)
    if distributed.get_world_size() != 2:
        raise SystemExit("expected two processes")
    sharded = {str(tied): sharded_difference(tied) for tied in (True, False)}
    if distributed.get_rank() == 0:
        torch.save({"ends": ends, "sharded": sharded}, output)
    distributed.barrier()
    # Gloo's threads can abort an interpreter that ends in the ordinary way, long after all is saved.
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1])
