"""Where the time of a case goes: matrix products and everything else, by operator, with the memory that they touch."""

from __future__ import annotations

import resource
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from harness import table

PRODUCTS = ("mm", "mm_", "addmm", "addmm_", "bmm", "baddbmm", "baddbmm_")
UNTOUCHED = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "resize_")
PAGE = resource.getpagesize()


@dataclass(frozen=True)
class Operator:
    """What one operator took in a run: milliseconds of its own, calls, bytes of its operands, operations of products.

    Operands are counted once per call, read or written; how often a product reads one again is its own affair.
    """

    milliseconds: float
    calls: int
    bytes: int
    flops: int


@dataclass(frozen=True)
class Profile:
    """Processor time and fresh memory of a run without a profiler, and operators of further runs.

    Attributes:
        seconds: processor time.
        system: the part of it that the kernel took, most of it to hand out fresh memory.
        fresh: bytes of memory that were touched for the first time, by page faults.
        operators: by name.
    """

    seconds: float
    system: float
    fresh: int
    operators: dict[str, Operator]

    def total(self, products: bool) -> Operator:
        """Return the sum over the matrix products or over everything else."""
        chosen = [one for name, one in self.operators.items() if (name in PRODUCTS) == products]
        sums = (sum(getattr(one, key) for one in chosen) for key in ("milliseconds", "calls", "bytes", "flops"))
        return Operator(*sums)


class Touched(TorchDispatchMode):
    """Adds up the operands of every operator that computes, by name, and the operations of the matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: dict[str, int] = defaultdict(int)
        self.flops: dict[str, int] = defaultdict(int)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result, name = func(*args, **(kwargs or {})), func.overloadpacket.__name__
        if func.is_view or name in UNTOUCHED:
            return result
        given = [*_tensors(args), *_tensors(tuple((kwargs or {}).values()))]
        known = {id(tensor) for tensor in given}
        touched = [*given, *(tensor for tensor in _tensors((result,)) if id(tensor) not in known)]
        self.bytes[name] += sum(tensor.numel() * tensor.element_size() for tensor in touched)
        if name in PRODUCTS:
            left, right = [tensor for tensor in _tensors(args) if tensor.dim() > 1][-2:]
            self.flops[name] += 2 * left.numel() * right.shape[-1]
        return result


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _tensors(value)


def profiled(case: Callable[[], Any]) -> Profile:
    """Run a case three times: counting its operands, by the clock alone, and under torch's profiler."""
    with Touched() as touched:
        case()
    before, started = resource.getrusage(resource.RUSAGE_SELF), time.process_time()
    case()
    seconds, after = time.process_time() - started, resource.getrusage(resource.RUSAGE_SELF)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as watch:
        case()
    operators = {}
    for event in watch.key_averages():
        name = event.key.removeprefix("aten::")
        counts = touched.bytes.get(name, 0), touched.flops.get(name, 0)
        operators[name] = Operator(event.self_cpu_time_total / 1000, event.count, *counts)
    fresh = (after.ru_minflt - before.ru_minflt) * PAGE
    return Profile(seconds, after.ru_stime - before.ru_stime, fresh, operators)


def summary(profiles: Mapping[str, Profile]) -> str:
    """Return a table with one line per case: products against everything else."""
    lines = []
    for name, one in profiles.items():
        products, rest = one.total(products=True), one.total(products=False)
        share = products.milliseconds / (products.milliseconds + rest.milliseconds)
        lines.append(
            [
                name,
                f"{1000 * one.seconds:.0f}",
                f"{products.milliseconds:.0f} ({share:.0%})",
                f"{products.flops / products.milliseconds / 1e6:.0f}",
                f"{rest.milliseconds:.0f}",
                f"{products.bytes / 2**20:.0f}",
                f"{rest.bytes / 2**20:.0f}",
                f"{one.fresh / 2**20:.0f}",
                f"{1000 * one.system:.0f}",
            ]
        )
    header = ["case", "processor ms", "products, ms", "GFLOP/s", "other operators, ms"]
    header += ["operands of products, MiB", "of the others, MiB", "fresh memory, MiB", "kernel, ms"]
    return table(header, lines)


def operators(profiles: Mapping[str, Profile], least: float = 0.01) -> str:
    """Return a table of the operators that take at least this share of some case, in milliseconds of their own."""
    wholes = {name: sum(item.milliseconds for item in one.operators.values()) for name, one in profiles.items()}
    names = {
        operator
        for name, one in profiles.items()
        for operator, item in one.operators.items()
        if item.milliseconds >= least * wholes[name]
    }

    def cells(operator: str) -> list[float]:
        found = [one.operators.get(operator) for one in profiles.values()]
        return [0.0 if item is None else item.milliseconds for item in found]

    lines = [[name, *(f"{value:.0f}" for value in cells(name))] for name in sorted(names, key=lambda n: -max(cells(n)))]
    return table(["operator, ms of its own", *profiles], lines)
