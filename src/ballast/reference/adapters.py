"""What belongs to the base model and what to PEFT's adapters, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeGuard

from ballast.errors import BallastError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from peft import PeftModel
    from torch import Tensor, nn

    from ballast.protocols import Model

COMPILED_PREFIX = "_orig_mod."
VOLATILE_SETTINGS = frozenset(
    {
        "base_model_name_or_path",
        "revision",
        "inference_mode",
        "peft_version",
        "auto_mapping",
        "task_type",
        "lora_dropout",
    }
)


def is_peft(model: object) -> TypeGuard[PeftModel]:
    """Return whether the model is wrapped in PEFT."""
    return hasattr(model, "peft_config") and hasattr(model, "get_base_model")


def refuse_prompt_learning(model: Model) -> None:
    """Refuse adapters that put virtual tokens before the input, which hidden states of the base would leave out.

    Raises:
        BallastError: for prompt tuning, prefix tuning and their like.
    """
    for name, config in getattr(model, "peft_config", {}).items():
        if getattr(config, "is_prompt_learning", False):
            raise BallastError(
                f"adapter {name!r} ({config.peft_type}) puts virtual tokens before the input: a reference would be "
                "computed without them; use LoRA, or an objective without a reference"
            )


def refuse_unfit_layers(model: Model) -> None:
    """Refuse adapters on layers that are linear by class and compute something else, such as some routers.

    Raises:
        BallastError: an adapter adds to the product of input and weight, which these do not return.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    adapted = [(name, one.get_base_layer()) for name, one in model.named_modules() if isinstance(one, BaseTunerLayer)]
    unfit = {name.rsplit(".", 1)[-1]: type(layer).__name__ for name, layer in adapted if _computes_otherwise(layer)}
    if unfit:
        raise BallastError(
            f"an adapter on {', '.join(map(repr, unfit))} is not possible: {', '.join({*unfit.values()})} computes "
            f"more than the product with its weight, and the adapter would fit into none of it; leave it out: "
            f"exclude_modules: [{', '.join(unfit)}]"
        )


def _computes_otherwise(layer: nn.Module) -> bool:
    """Return whether a linear layer of a model's own file returns something else than one number for each output."""
    import torch

    if not isinstance(layer, torch.nn.Linear) or not type(layer).__module__.startswith("transformers.models."):
        return False
    if type(layer).forward is torch.nn.Linear.forward:
        return False
    given = torch.zeros(1, layer.in_features, device=layer.weight.device, dtype=layer.weight.dtype)
    try:
        with torch.no_grad():
            found = layer(given)
    except RuntimeError:  # made for another shape
        return True
    return not isinstance(found, torch.Tensor) or found.shape != (1, layer.out_features)


def base_state(model: Model) -> tuple[Model, dict[str, Tensor]]:
    """Return the base model and its parameters and persistent buffers under the names they have without PEFT."""
    base = _bare(model)
    return base, {clean: tensor for _, clean, tensor in _entries(base) if clean is not None}


def adapter_state(model: Model) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the settings of the active adapters and every tensor that is not the base's; empty without PEFT."""
    if not is_peft(model):
        return {}, {}
    active = list(model.active_adapters)
    settings = {
        name: {key: value for key, value in config.to_dict().items() if key not in VOLATILE_SETTINGS}
        for name, config in model.peft_config.items()
        if name in active
    }
    base_names = {id(tensor) for tensor in base_state(model)[1].values()}
    others = {name: t for name, t in _tensors(model) if id(t) not in base_names}
    return {"active": active, "settings": settings}, others


def starts_at_base(model: Model) -> bool:
    """Return whether the active adapters leave the outputs as they are without them, as a fresh LoRA does.

    Judged by exact zeros: one factor of every low-rank pair is zero, and every saved module equals its original. Other
    kinds of adapter count as not starting at the base, because zero weights need not mean no effect there.
    """
    if not is_peft(model):
        return True
    if model.active_peft_config.is_prompt_learning:
        return False
    return all(_is_neutral(module) for module in _bare(model).modules())


def trainable_base_names(model: Model) -> list[str]:
    """Return the base's own weights that training would move, which switching the adapter off would not restore."""
    base = _bare(model)
    names = {id(tensor): clean for _, clean, tensor in _entries(base) if clean is not None}
    return sorted(names[id(weight)] for weight in base.parameters() if weight.requires_grad and id(weight) in names)


def _bare(model: Model) -> Model:
    inner: Any = model.get_base_model() if is_peft(model) else model
    return getattr(inner, "_orig_mod", inner)


def _tensors(module: Model) -> Iterator[tuple[str, Tensor]]:
    import torch

    for name, value in module.state_dict(keep_vars=True).items():
        if isinstance(value, torch.Tensor):
            yield name.replace(COMPILED_PREFIX, ""), value


def _entries(base: Model) -> Iterator[tuple[str, str | None, Tensor]]:
    """Yield each tensor's name, its name without PEFT (None for an adapter's own) and the tensor."""
    wrappers = {name.replace(COMPILED_PREFIX, ""): attribute for name, attribute in _wrappers(base)}
    for name, tensor in _tensors(base):
        yield name, _clean(name, wrappers), tensor


def _wrappers(base: Model) -> Iterator[tuple[str, str]]:
    """Yield the path of each module that PEFT put in the place of another, and the attribute that holds the other."""
    import sys

    if "peft" not in sys.modules:
        return
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    for name, module in base.named_modules():
        if isinstance(module, BaseTunerLayer):
            yield name, "base_layer"
        elif isinstance(module, AuxiliaryTrainingWrapper):
            yield name, "original_module"


def _clean(name: str, wrappers: dict[str, str]) -> str | None:
    pieces = name.split(".")
    clean, index = [], 0
    while index < len(pieces):
        clean.append(pieces[index])
        index += 1
        path = ".".join(pieces[:index])
        while path in wrappers and index < len(pieces):
            if pieces[index] != wrappers[path]:
                return None
            index += 1
            path = ".".join(pieces[:index])
    return ".".join(clean)


def _is_neutral(module: nn.Module) -> bool:
    from peft.tuners.lora import LoraLayer
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper

    if isinstance(module, ModulesToSaveWrapper):
        original = dict(module.original_module.named_parameters())
        active = [module.modules_to_save[name] for name in module.active_adapters if name in module.modules_to_save]
        return all(weight.equal(original[name]) for copy in active for name, weight in copy.named_parameters())
    if isinstance(module, LoraLayer):
        pairs: list[tuple[Any, Any]] = [
            (module.lora_A, module.lora_B),
            (module.lora_embedding_A, module.lora_embedding_B),
        ]
        return all(
            _is_zero(first[name]) or _is_zero(second[name])
            for first, second in pairs
            for name in module.active_adapters
            if name in first and name in second
        )
    return not isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper))


def _is_zero(factor: Any) -> bool:
    weights = [factor] if not hasattr(factor, "parameters") else list(factor.parameters())
    return not any(weight.count_nonzero().item() for weight in weights)
