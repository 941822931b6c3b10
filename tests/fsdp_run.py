"""One rank of a sharded forward and backward; started by test_training_distributed, not by pytest.

Prints the largest difference between the gradients of a model sharded by FSDP2 and of the same model alone.
"""

import os

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from ballast.head import token_stats
from ballast.training.compat import add_statistics
from tiny import tiny_model


def backward(model, ids):
    labels = ids.clone()
    labels[:, :2] = -100
    outputs = model(
        input_ids=ids,
        labels=labels,
        statistics=lambda hidden, head, targets: token_stats(
            hidden, head, targets, fields=("logprob", "entropy"), backend="chunked", chunk=3
        ),
    )
    (0.1 * outputs.stats.entropy - outputs.stats.logprob).sum().backward()


def main() -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2,))
    ids = torch.randint(4, 60, (2, 9), generator=torch.Generator().manual_seed(0))
    for tied in (True, False):
        alone, sharded = (tiny_model(tied=tied, dtype=torch.float64) for _ in range(2))
        for model in (alone, sharded):
            add_statistics(model)
        for layer in sharded.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(sharded, mesh=mesh)
        backward(alone, ids)
        backward(sharded, ids)
        pairs = zip(sharded.parameters(), alone.parameters(), strict=True)
        difference = max(float((ours.grad.full_tensor() - theirs.grad).abs().max()) for ours, theirs in pairs)
        size = max(float(weight.grad.abs().max()) for weight in alone.parameters())
        if distributed.get_rank() == 0:
            print(f"RESULT {tied} {difference} {size}", flush=True)
    distributed.barrier()
    # Gloo's threads can abort an interpreter that ends in the ordinary way, long after all is measured.
    os._exit(0)


if __name__ == "__main__":
    main()
