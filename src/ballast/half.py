"""Half fine-tuning: which weights of a model train, drawn at random within every kind of matrix; imports no torch."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from hashlib import blake2b
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from ballast.errors import BallastError
from ballast.options import Options, OptionsError, shown
from ballast.protocols import Model

IN_LAYER = re.compile(r"(.*?)\.(\d+)\.(.+)")
"""A parameter in a layer: what is before the layer's number, the number, the path in the layer."""
TENSOR = re.compile(r"\.weight$|\.bias$|_bias$")
"""What a parameter's name has beyond that of its matrix or norm."""
ROUTER = re.compile(r"(?:.*\.)?(gate|router|shared_expert_gate)(\..*)?")
KINDS = {
    "attention": re.compile(
        r"(?:.*\.)?\w*(?:attn|attention)\."
        r"(q_proj|k_proj|v_proj|o_proj|out_proj|qkv_proj|c_attn|c_proj|query_key_value|dense|Wqkv)"
    ),
    "feed-forward": re.compile(
        r"(?:.*\.)?(gate_proj|up_proj|gate_up_proj|down_proj|fc1|fc2|fc_in|fc_out|c_fc|w1|w2|w3|dense_h_to_4h|"
        r"dense_4h_to_h)|(?:.*\.)?mlp\.c_proj"
    ),
}
"""Matrices by their path in a layer, for the level ``category``."""
NORM = "norm"
MARK = "_ballast_half"
"""Attribute of a model that `freeze` has split: the names of the weights that trained before."""


class HalfOptions(Options):
    """Which weights train and which keep their values; a bare number is the ``fraction``."""

    owner: ClassVar[str] = "half."

    fraction: float = Field(0.5, ge=0, le=1)
    """Share of the matrices of every kind that train."""
    level: Literal["category", "layer", "model"] = "category"
    """What is drawn: `category`: matrices within every kind (attention, feed-forward), spread evenly over the layers;
    `layer`: whole layers; `model`: any matrices of any layer."""
    embeddings: bool = True
    """Whether token embedding, LM head, what else lies outside of the layers, and routers of experts train."""
    norms: Literal["half", "all", "none"] = "half"
    """Layer norms that train: `half` draws them as the matrices are drawn, at the same fraction."""
    round: int = Field(0, ge=0)
    """Another number draws anew: one for each stage of training, such as 0 for fine-tuning and 1 for RL."""
    complement: bool = False
    """Train what is not drawn instead: a stage with it after one without it covers every matrix once."""
    seed: int | None = Field(None, ge=0)
    """Decides what is drawn; none given takes the run's seed."""


def _longhand(value: Any) -> Any:
    return {"fraction": value} if isinstance(value, int | float) and not isinstance(value, bool) else value


Half = Annotated[HalfOptions, BeforeValidator(_longhand, json_schema_input_type=float | dict[str, Any])]
"""The options as a field: a mapping, or the fraction alone."""


def half_options(value: Any) -> HalfOptions:
    """Return the options that a number or a mapping names.

    Raises:
        OptionsError: it names none that are allowed.
    """
    value = _longhand(value)
    if not isinstance(value, Mapping):
        raise OptionsError([((), f"must be a fraction or a mapping of options; got {shown(value)}")], HalfOptions.owner)
    return HalfOptions.from_dict(value)


@dataclass(frozen=True)
class Part:
    """What is drawn as one: a matrix or a norm of a layer, with its bias."""

    layer: str
    path: str
    kind: str
    names: tuple[str, ...]


def chosen(shapes: Mapping[str, Sequence[int]], options: HalfOptions, seed: int) -> frozenset[str]:
    """Return the names of the parameters that train (half fine-tuning, arXiv 2404.18466).

    Of a kind that has m matrices in every layer, the layer at place r of a random order trains ``⌊(r+1)mf⌋ − ⌊rmf⌋``,
    so that over the layers the share is exact to one matrix. The draw depends on the seed, the round and the names
    alone: it is the same in every process, on every device and in every dtype.

    Args:
        shapes: name → shape of every parameter; tied ones once.
        seed: that of the run, where the options have none.

    Raises:
        BallastError: a matrix is of no kind that the level `category` knows, the model has no layers, or nothing would
            train.
    """
    parts = list(_parts(shapes))
    if not parts:
        raise BallastError("half: the model has no numbered layers to draw from; leave it out")
    if options.level == "category":
        _check_kinds(parts)
    key = f"{seed if options.seed is None else options.seed}/hft/{options.round}"
    drawn = _drawn({part: _pool(part, options.level) for part in parts if part.kind != "router"}, options.fraction, key)
    found = {name for part in parts for name in part.names if _trains(part, part in drawn, options)}
    if options.embeddings:
        found |= shapes.keys() - {name for part in parts for name in part.names}
    if not found:
        raise BallastError("half: no weight would train; raise fraction, or set embeddings to true")
    return frozenset(found)


def _trains(part: Part, drawn: bool, options: HalfOptions) -> bool:
    if part.kind == "router":
        return options.embeddings
    if part.kind == NORM and options.norms != "half":
        return options.norms == "all"
    return drawn != options.complement


def _parts(shapes: Mapping[str, Sequence[int]]) -> Iterator[Part]:
    """Yield the matrices and norms of all layers, each with its biases."""
    found: dict[tuple[str, str], list[str]] = {}
    for name in shapes:
        if match := IN_LAYER.fullmatch(name):
            found.setdefault((f"{match[1]}.{match[2]}", TENSOR.sub("", match[3])), []).append(name)
    for (layer, path), names in found.items():
        matrix = any(len(shapes[name]) > 1 and not name.endswith("bias") for name in names)
        kind = next((kind for kind, pattern in KINDS.items() if pattern.fullmatch(path)), "matrix") if matrix else NORM
        yield Part(layer, path, "router" if ROUTER.fullmatch(path) else kind, tuple(names))


def _check_kinds(parts: Iterable[Part]) -> None:
    unknown = sorted({part.path for part in parts if part.kind == "matrix"})
    if unknown:
        raise BallastError(
            f"half: {', '.join(unknown)}: no attention or feed-forward matrices that are known here, so half of each "
            "kind cannot be drawn; set level to model, which draws from all matrices alike"
        )


def _pool(part: Part, level: str) -> tuple[str, str, str]:
    """Return what a part is drawn among: a pool, a group of the pool, and what stands for the part there."""
    if level == "layer":
        return "layers", "", part.layer
    if level == "model":
        return ("norms" if part.kind == NORM else "matrices"), "", f"{part.layer}.{part.path}"
    above = part.path.rpartition(".")[0]
    return (NORM if part.kind == NORM else f"{part.kind} {above}"), part.layer, part.path


def _drawn(places: Mapping[Part, tuple[str, str, str]], fraction: float, key: str) -> set[Part]:
    """Return the parts that are drawn."""
    groups: dict[tuple[str, str], set[str]] = {}
    for pool, group, item in places.values():
        groups.setdefault((pool, group), set()).add(item)
    alike: dict[tuple[str, int], list[str]] = {}
    for (pool, group), items in groups.items():
        alike.setdefault((pool, len(items)), []).append(group)
    share = Fraction(str(fraction))
    taken: set[tuple[str, str, str]] = set()
    for (pool, size), names in alike.items():
        for rank, group in enumerate(_shuffled(names, f"{key}/{pool}/{size}")):
            count = math.floor((rank + 1) * size * share) - math.floor(rank * size * share)
            order = _shuffled(groups[pool, group], f"{key}/{pool}/{group}")
            taken |= {(pool, group, item) for item in order[:count]}
    return {part for part, place in places.items() if place in taken}


def _shuffled(names: Iterable[str], key: str) -> list[str]:
    """Return names in an order that looks random and depends on them and the key alone, not on a generator."""
    return sorted(names, key=lambda name: blake2b(f"{key}/{name}".encode()).digest())


@dataclass(frozen=True)
class Split:
    """A model's weights in two: those that train and those that keep their values.

    Attributes:
        shapes: of all parameters by name.
        trained: names of those that train.
    """

    options: HalfOptions
    seed: int
    shapes: Mapping[str, Sequence[int]]
    trained: frozenset[str]

    @classmethod
    def of(cls, model: Model, options: HalfOptions, seed: int) -> Split:
        """Return the split of a model, which may be without weights; raises what `chosen` and `check_model` raise."""
        check_model(model)
        shapes = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
        return cls(options, seed, shapes, chosen(shapes, options, seed))

    def count(self, *, layers: bool = False, trained: bool = False) -> int:
        """Return how many numbers the weights have: all or those that train, of the model or of its layers."""
        names = self.trained if trained else self.shapes
        return sum(math.prod(self.shapes[name]) for name in names if not layers or IN_LAYER.fullmatch(name))

    @property
    def layer_share(self) -> float:
        """Share of the layers' weights that trains; heads of unequal sizes keep it off the fraction."""
        return self.count(layers=True, trained=True) / self.count(layers=True)

    @property
    def digest(self) -> str:
        """Digest of the names that train."""
        return blake2b("\n".join(sorted(self.trained)).encode(), digest_size=16).hexdigest()

    def record(self) -> dict[str, Any]:
        """Return what a run keeps of it."""
        return {
            "options": self.options.to_dict(),
            "seed": self.seed if self.options.seed is None else self.options.seed,
            "tensors": len(self.shapes),
            "tensors_trained": len(self.trained),
            "parameters": self.count(),
            "parameters_trained": self.count(trained=True),
            "layer_share": round(self.layer_share, 6),
            "digest": self.digest,
        }

    def line(self) -> str:
        """Return the share as a line to print."""
        whole, part = self.count(), self.count(trained=True)
        return (
            f"half: {len(self.trained)} of {len(self.shapes)} tensors train, {part:,} of {whole:,} parameters "
            f"({part / whole:.1%}); {self.layer_share:.1%} of the layers' weights"
        )


def check_model(model: Model) -> None:
    """Refuse a model whose weights cannot be split.

    Raises:
        BallastError: it has an adapter, or weights that are quantised.
    """
    if hasattr(model, "peft_config"):
        raise BallastError(
            "half: the model has an adapter, whose matrices are not the model's: leave half out, or train all weights "
            "(without LoRA)"
        )
    if getattr(model.config, "quantization_config", None) is not None:
        raise BallastError("half: the model's weights are quantised and would not train; load it unquantised")


def check_arguments(options: HalfOptions, args: Any, section: str = "training") -> None:
    """Refuse training arguments (of transformers) under which not the chosen weights would train.

    Raises:
        BallastError: naming the argument.
    """
    reentrant = args.gradient_checkpointing and (args.gradient_checkpointing_kwargs or {}).get("use_reentrant")
    if reentrant and not options.embeddings:
        raise BallastError(
            f"{section}.gradient_checkpointing_kwargs is refused: with use_reentrant and half.embeddings false no "
            "input of a layer needs a gradient, so that layers that are computed again would not train; leave "
            "use_reentrant out"
        )
    given = args.fsdp_config or {}
    version, own = given.get("version", 2), given.get("use_orig_params", True)
    if os.environ.get("ACCELERATE_USE_FSDP") == "true" and not args.fsdp:
        version, own = os.environ.get("FSDP_VERSION", "1"), os.environ.get("FSDP_USE_ORIG_PARAMS", "false")
    if str(version) == "1" and str(own).lower() in ("false", "0", "no"):
        raise BallastError(
            f"{section}.fsdp_config is refused: FSDP1 with use_orig_params false makes one weight of a layer's "
            "matrices, which trains as a whole, and half would not be trained; set it to true, or take FSDP2 (version: "
            "2)"
        )


def freeze(model: Model, options: HalfOptions | None, seed: int) -> Split | None:
    """Let the chosen weights train and the others keep their values; without options undo an earlier call.

    To be called before an optimiser exists: what does not train then has no gradient, no moments and no decay.

    Raises:
        BallastError: what `Split.of` raises.
    """
    if options is None:
        if (before := getattr(model, MARK, None)) is not None:
            for name, weight in model.named_parameters():
                weight.requires_grad_(name in before)
            setattr(model, MARK, None)
        return None
    split = Split.of(model, options, seed)
    if getattr(model, MARK, None) is None:
        setattr(model, MARK, frozenset(name for name, weight in model.named_parameters() if weight.requires_grad))
    for name, weight in model.named_parameters():
        weight.requires_grad_(name in split.trained)
    return split
