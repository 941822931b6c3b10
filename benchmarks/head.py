"""Forward and backward of the LM head: the fused loss against full logits, other fused heads and three bare products.

Time is taken in turn (A B C A B C …), memory in a process for each measurement: its peak less what it held before the
call, less the gradients that it returns. `--device cuda` measures in bfloat16.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from ballast import fused_loss, token_stats
from ballast.head import LMHead, fused_pass
from ballast.objectives import Objective
from harness import Times, child, interleaved, peak_bytes, ratios, record, resident_bytes, spread, table
from profiles import operators, profiled, summary

SIZES = ("512x512x65536", "1024x896x151936")
KINDS = ("logprob", "statistics", "entropy", "kl")
BARE, FULL, OURS = "three bare products", "full logits", "ballast, fused"
ENTROPY_BONUS, KL_PENALTY = 0.01, 0.05


@dataclass(frozen=True)
class Inputs:
    """Hidden states and heads of a model and a reference, targets, and a weight for each token."""

    hidden: Tensor
    weight: Tensor
    targets: Tensor
    weights: Tensor
    ref_hidden: Tensor
    ref_weight: Tensor


def make_inputs(size: str, kind: str, device: str) -> Inputs:
    rows, width, vocab = (int(part) for part in size.split("x"))
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32

    def normal(*shape: int, scale: float) -> Tensor:
        # In place: a temporary as large as the head would stand in the peak of memory.
        return torch.empty(*shape, dtype=dtype, device=device).normal_(0, scale)

    needs_reference = kind == "kl"
    return Inputs(
        hidden=normal(rows, width, scale=1).requires_grad_(),
        weight=normal(vocab, width, scale=2 / width**0.5).requires_grad_(),
        targets=torch.randint(0, vocab, (rows,), device=device),
        weights=torch.rand(rows, device=device) + 0.5,
        ref_hidden=normal(rows, width, scale=1) if needs_reference else torch.empty(0),
        ref_weight=normal(vocab, width, scale=2 / width**0.5) if needs_reference else torch.empty(0),
    )


@dataclass(frozen=True)
class Weighted(Objective):
    """A weighted log-likelihood, and what the kind of measurement adds to it."""

    name: ClassVar[str] = "weighted"
    source: ClassVar[str] = "this benchmark"

    kind: str = "logprob"

    @property
    def needs(self) -> tuple[str, ...]:
        further = {"entropy": ("entropy", "mass"), "kl": ("entropy", "kl")}.get(self.kind, ())
        return ("logprob", "advantage", *further)

    def weight(self, stats: Any) -> Tensor:
        gate = (stats.mass >= 0).to(stats.mass.dtype) if self.kind == "entropy" else 1.0
        return stats.advantage * gate

    def extra(self, stats: Any) -> Tensor:
        if self.kind in ("logprob", "statistics"):
            return super().extra(stats)
        bonus = -ENTROPY_BONUS * stats.entropy
        return bonus + KL_PENALTY * stats.kl if self.kind == "kl" else bonus


def ours(given: Inputs, kind: str) -> Tensor:
    columns, reference = {"advantage": given.weights}, (given.ref_hidden, given.ref_weight) if kind == "kl" else None
    if kind == "statistics":
        fields = ("entropy", "mass", "tied")
        return fused_pass(
            given.hidden, LMHead(given.weight), given.targets, Weighted(), columns=columns, fields=fields
        ).loss
    return fused_loss(given.hidden, given.weight, given.targets, Weighted(kind), columns=columns, reference=reference)


def chunked(given: Inputs, kind: str) -> Tensor:
    from dataclasses import replace

    built = Weighted("logprob" if kind == "statistics" else kind)
    fields = tuple(name for name in built.needs if name != "advantage")
    fields += ("entropy", "mass", "tied") if kind == "statistics" else ()
    reference = (given.ref_hidden, given.ref_weight) if kind == "kl" else None
    stats = token_stats(
        given.hidden, given.weight, given.targets, fields=fields, reference=reference, backend="chunked"
    )
    return built.per_token_loss(replace(stats, advantage=given.weights)).mean()


def full_logits(given: Inputs, kind: str) -> Tensor:
    logits = functional.linear(given.hidden, given.weight).float()
    if kind == "logprob":
        return (functional.cross_entropy(logits, given.targets, reduction="none") * given.weights).mean()
    logp = logits.log_softmax(-1)
    nll = -logp.gather(1, given.targets[:, None]).squeeze(1) * given.weights
    if kind == "statistics":
        with torch.no_grad():
            _entropy(logp), _mass(logits, logp, given.targets)
        return nll.mean()
    bonus = -ENTROPY_BONUS * _entropy(logp)
    if kind == "entropy":
        with torch.no_grad():
            gate = (_mass(logits, logp, given.targets) >= 0).float()
        return (nll * gate + bonus).mean()
    with torch.no_grad():
        logq = functional.linear(given.ref_hidden, given.ref_weight).float().log_softmax(-1)
    return (nll + bonus + KL_PENALTY * (logp.exp() * (logp - logq)).sum(-1)).mean()


def _entropy(logp: Tensor) -> Tensor:
    return -(logp.exp() * logp).sum(-1)


def _mass(logits: Tensor, logp: Tensor, targets: Tensor) -> Tensor:
    at_target = logits.gather(1, targets[:, None])
    return (logp.exp() * (logits < at_target)).sum(-1) + logp.gather(1, targets[:, None]).squeeze(1).exp()


def trl_head(given: Inputs, kind: str) -> Tensor:
    """TRL's head as its trainers call it; it has no mass. The KL is a call of its own, as its distillation makes it."""
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction
    from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE

    outputs = () if kind == "logprob" else ("entropy",)
    logprob, entropy, *_ = ChunkedLogProbFunction.apply(
        given.hidden, given.weight, None, given.targets, 1.0, _CHUNKED_LOGPROB_CHUNK_SIZE, None, 1.0, outputs
    )
    losses = -logprob * given.weights
    if kind in ("entropy", "kl"):
        losses = losses - ENTROPY_BONUS * entropy
    if kind == "kl":
        from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

        reverse = 1.0
        divergence, _ = ChunkedDivergenceFunction.apply(
            given.hidden, given.weight, None, given.ref_hidden, given.ref_weight, None, reverse
        )
        losses = losses + KL_PENALTY * divergence
    return losses.mean()


def torch_head(given: Inputs, kind: str) -> Tensor:
    """Chunked, per token: weights are applied afterwards, so its backward computes the logits again."""
    options = torch.nn.LinearCrossEntropyOptions()
    losses = functional.linear_cross_entropy(
        given.hidden, given.weight, given.targets, reduction="none", options=options
    )
    return (losses * given.weights).mean()


def torch_sum(given: Inputs, kind: str) -> Tensor:
    """Chunked, in one pass: the sum of unweighted losses alone."""
    options = torch.nn.LinearCrossEntropyOptions()
    return functional.linear_cross_entropy(given.hidden, given.weight, given.targets, reduction="mean", options=options)


def liger_head(given: Inputs, kind: str) -> Tensor:
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    return liger_fused_linear_cross_entropy(given.hidden, given.weight, given.targets)


def cce_head(given: Inputs, kind: str) -> Tensor:
    from cut_cross_entropy import linear_cross_entropy

    return (linear_cross_entropy(given.hidden, given.weight, given.targets, reduction="none") * given.weights).mean()


def bare_products(given: Inputs, kind: str) -> None:
    """The least that any head does: project, and multiply a gradient of that size by head and by hidden states."""
    with torch.no_grad():
        logits = given.hidden @ given.weight.T
        given.hidden.grad = logits @ given.weight
        given.weight.grad = logits.T @ given.hidden
        if kind == "kl":
            given.ref_hidden @ given.ref_weight.T


@dataclass(frozen=True)
class Case:
    loss: Callable[[Inputs, str], Tensor | None]
    kinds: tuple[str, ...] = KINDS
    package: str = "torch"
    cuda_only: bool = False

    def missing(self, device: str) -> str | None:
        """Return why the case cannot be measured here, None if it can."""
        if importlib.util.find_spec(self.package) is None:
            return f"{self.package} is not installed"
        if self.cuda_only and device != "cuda":
            return f"{self.package} needs a CUDA device"
        if self.loss in (torch_head, torch_sum) and not hasattr(functional, "linear_cross_entropy"):
            return f"torch {torch.__version__} has no linear_cross_entropy"
        return None


CASES = {
    BARE: Case(bare_products),
    OURS: Case(ours),
    "ballast, chunked": Case(chunked),
    FULL: Case(full_logits),
    "TRL": Case(trl_head, package="trl"),
    "torch, per token": Case(torch_head, kinds=("logprob",)),
    "torch, unweighted mean": Case(torch_sum, kinds=("logprob",)),
    "Liger, unweighted mean": Case(liger_head, kinds=("logprob",), package="liger_kernel", cuda_only=True),
    "Cut Cross-Entropy": Case(cce_head, kinds=("logprob",), package="cut_cross_entropy", cuda_only=True),
}


def run(name: str, given: Inputs, kind: str) -> None:
    """Compute the loss and its gradients, which are left in ``.grad``."""
    given.hidden.grad = given.weight.grad = None
    loss = CASES[name].loss(given, kind)
    if loss is not None:
        loss.backward()
    if given.hidden.is_cuda:
        torch.cuda.synchronize()


def measure_memory(name: str, size: str, kind: str, device: str) -> dict[str, int]:
    """Run the case once in this process; return the bytes beyond its inputs and the gradients that it returns."""
    # The libraries' own buffers are there before the first look.
    run(name, make_inputs("4x8x64", kind, device), kind)
    given = make_inputs(size, kind, device)
    gradients = given.hidden.nbytes + given.weight.nbytes
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run(name, given, kind)
        return {"extra": torch.cuda.max_memory_allocated() - before - gradients, "gradients": gradients}
    before, slack = resident_bytes(), peak_bytes() - resident_bytes()
    run(name, given, kind)
    return {"extra": peak_bytes() - before - gradients, "gradients": gradients, "slack": slack}


def measure(size: str, kind: str, names: list[str], arguments: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Return the table of one size and kind, and its figures."""
    given = make_inputs(size, kind, arguments.device)
    warmup = arguments.warmup if arguments.rounds else 0
    times = interleaved({name: lambda name=name: run(name, given, kind) for name in names}, arguments.rounds, warmup)
    options = ["--sizes", size, "--kinds", kind, "--device", arguments.device, "--threads", str(arguments.threads)]
    memory: dict[str, list[dict[str, int]]] = {
        name: [child(__file__, *options, "--memory-of", name) for _ in range(arguments.memory_runs)] for name in names
    }
    lines, results = [], {}
    for name in names:
        extra = statistics.median(taken["extra"] for taken in memory[name]) if memory[name] else None
        bases = [base for base in (FULL, BARE, "TRL") if base in names and arguments.rounds]
        against = {base: ratios(times[name], times[base]) for base in bases}
        results[name] = {"seconds": times[name], "ratios": against, "memory": memory[name], "extra": extra}
        lines.append([name, *_cells(times[name], against, extra, arguments.device)])
    return table(["case", "ms", *(f"to {base}" for base in bases), "extra memory, MiB"], lines), results


def measure_profiles(
    size: str, kind: str, names: list[str], arguments: argparse.Namespace
) -> tuple[str, dict[str, Any]]:
    """Return the tables that say where each case's time goes, and their figures."""
    given = make_inputs(size, kind, arguments.device)
    found = {name: profiled(lambda name=name: run(name, given, kind)) for name in names}
    return f"{summary(found)}\n\n{operators(found)}", dict(found)


def _cells(times: Times, against: dict[str, Any], extra: float | None, device: str) -> list[str]:
    clock = "wall" if device == "cuda" else "processor"
    taken = getattr(times, clock)
    milliseconds = f"{1000 * statistics.median(taken):.0f}" if taken else "not measured"
    memory = "not measured" if extra is None else f"{extra / 2**20:.0f}"
    return [milliseconds, *(spread(ratio[clock]) for ratio in against.values()), memory]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=[*SIZES], help="tokens x hidden size x vocabulary")
    parser.add_argument("--kinds", choices=KINDS, nargs="+", default=[*KINDS])
    parser.add_argument("--cases", choices=[*CASES], nargs="+", default=[*CASES])
    parser.add_argument("--rounds", type=int, default=7, help="0 leaves time out")
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--memory-runs", type=int, default=3, help="processes per case; 0 leaves memory out")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument(
        "--profile", action="store_true", help="show where the time goes, operator by operator, instead"
    )
    parser.add_argument("--memory-of", choices=[*CASES], help="measure one case's memory in this process, as JSON")
    parser.add_argument("--out", type=Path, help="write the record here, as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.memory_of:
        print(json.dumps(measure_memory(arguments.memory_of, arguments.sizes[0], arguments.kinds[0], arguments.device)))
        return
    if arguments.profile and arguments.device != "cpu":
        parser.error("--profile shows processor time: leave --device out")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("cuda: not measured, there is no such device")
        return
    skipped = {name: reason for name, case in CASES.items() if (reason := case.missing(arguments.device))}
    results: dict[str, Any] = {"skipped": skipped}
    for size in arguments.sizes:
        for kind in arguments.kinds:
            names = [name for name in arguments.cases if name not in skipped and kind in CASES[name].kinds]
            take = measure_profiles if arguments.profile else measure
            shown, results[f"{size} {kind}"] = take(size, kind, names, arguments)
            print(f"\n{size}, {kind}\n\n{shown}", flush=True)
            record("head", vars(arguments), results, arguments.out)
    for name, reason in skipped.items():
        print(f"{name}: not measured, {reason}")
    if not torch.cuda.is_available():
        print("cuda: not measured, there is no such device")


if __name__ == "__main__":
    main()
