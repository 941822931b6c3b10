"""One rank of a sharded forward and backward; started by test_training_distributed, not by pytest.

Prints the largest difference between the gradients of a model sharded by FSDP2 and of the same model alone.
"""

import os

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from ballast import objective
from ballast.head import Formed, fused_pass, two_phase
from ballast.training.trl import add_statistics
from tiny import tiny_model


def both_ways(hidden, head, targets):
    """Return the sum of a loss formed in one pass and of one formed in two phases, of several tiles each."""
    one = fused_pass(hidden, head, targets, objective("dft"), chunk=3)
    fields = ("logprob", "entropy")
    two = two_phase(hidden, head, targets, lambda s: 0.1 * s.entropy - s.logprob, fields=fields, chunk=3)
    return Formed(one.loss + two.loss, two.stats, None)


def backward(model, ids):
    labels = ids.clone()
    labels[:, :2] = -100
    model(input_ids=ids, labels=labels, statistics=both_ways).loss.backward()


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
