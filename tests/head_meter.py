"""Counts what a computation does with the vocabulary: its products, and the memory alive at once."""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode

PRODUCTS = {"mm", "addmm", "addmm_", "bmm", "baddbmm", "matmul", "linear"}


class Meter(TorchDispatchMode):
    """Watches every tensor that is created and every product.

    Attributes:
        products: (rows, inner size, columns) of every product in which the vocabulary is a dimension.
        largest: elements of the largest tensor created, views apart.
        peak: bytes of storage that were alive at once, of tensors created here.
    """

    def __init__(self, vocab):
        super().__init__()
        self.vocab, self.products, self.largest, self.alive, self.peak = vocab, [], 0, 0, 0
        self._seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in PRODUCTS:
            left, right = [item for item in args if isinstance(item, torch.Tensor) and item.dim() == 2][-2:]
            sizes = (left.shape[0], left.shape[1], right.shape[1])
            if self.vocab in sizes:
                self.products.append(sizes)
        result = func(*args, **(kwargs or {}))
        given = {item.untyped_storage().data_ptr() for item in args if isinstance(item, torch.Tensor)}
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor, given)
        return result

    def _count(self, tensor, given):
        storage = tensor.untyped_storage()
        if storage.data_ptr() in given or storage.data_ptr() in self._seen or not storage.nbytes():
            return
        self.largest = max(self.largest, tensor.numel())
        self._seen.add(storage.data_ptr())
        self.alive += storage.nbytes()
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._release, storage.data_ptr(), storage.nbytes())

    def _release(self, pointer, count):
        self._seen.discard(pointer)
        self.alive -= count
