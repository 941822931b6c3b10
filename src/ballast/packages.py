"""What a setting needs and ballast does not bring, a package or a login; missed before a weight is read, not after."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from ballast.errors import BallastError

BITSANDBYTES = (
    "adamw_bnb_8bit", "adamw_8bit", "ademamix", "ademamix_8bit", "lion_8bit", "lion_32bit", "paged_adamw_32bit",
    "paged_adamw_8bit", "paged_ademamix_32bit", "paged_ademamix_8bit", "paged_lion_32bit", "paged_lion_8bit",
    "rmsprop_bnb", "rmsprop_bnb_8bit", "rmsprop_bnb_32bit",
)  # fmt: skip
GALORE = (
    "galore_adamw", "galore_adamw_8bit", "galore_adafactor", "galore_adamw_layerwise", "galore_adamw_8bit_layerwise",
    "galore_adafactor_layerwise",
)  # fmt: skip
APOLLO = ("apollo_adamw", "apollo_adamw_layerwise")

# By setting and value: modules, one of which is needed.
NEEDED: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "report_to": {
        "azure_ml": ("azureml",),
        "clearml": ("clearml",),
        "codecarbon": ("codecarbon",),
        "comet_ml": ("comet_ml",),
        "dagshub": ("dagshub",),
        "dvclive": ("dvclive",),
        "flyte": ("flytekit",),
        "kubeflow": ("kubeflow",),
        "mlflow": ("mlflow",),
        "neptune": ("neptune",),
        "swanlab": ("swanlab",),
        "tensorboard": ("tensorboard", "tensorboardX"),
        "trackio": ("trackio",),
        "wandb": ("wandb",),
    },
    "optim": {
        **dict.fromkeys(BITSANDBYTES, ("bitsandbytes",)),
        **dict.fromkeys(GALORE, ("galore_torch",)),
        **dict.fromkeys(APOLLO, ("apollo_torch",)),
        **dict.fromkeys(("lomo", "adalomo"), ("lomo_optim",)),
        **dict.fromkeys(("schedule_free_adamw", "schedule_free_radam", "schedule_free_sgd"), ("schedulefree",)),
        **dict.fromkeys(("adamw_torch_4bit", "adamw_torch_8bit"), ("torchao",)),
        "adamw_anyprecision": ("torchdistx",),
        "adamw_torch_npu_fused": ("torch_npu",),
        "adamw_torch_xla": ("torch_xla",),
        "grokadamw": ("grokadamw",),
        "stable_adamw": ("optimi",),
    },
    "use_liger_kernel": {"True": ("liger_kernel",)},
    "deepspeed": {"True": ("deepspeed",)},
    "attn_implementation": {
        "flash_attention_2": ("flash_attn", "kernels"),
        "flash_attention_3": ("flash_attn_interface", "kernels"),
    },
    "quantization": {
        "aqlm": ("aqlm",),
        "awq": ("gptqmodel", "awq"),
        "bitsandbytes": ("bitsandbytes",),
        "compressed-tensors": ("compressed_tensors",),
        "gptq": ("gptqmodel",),
        "hqq": ("hqq",),
        "quanto": ("optimum",),
        "torchao": ("torchao",),
    },
}
INSTALLED_AS = {
    "azureml": "azureml-mlflow", "flash_attn": "flash-attn", "flash_attn_interface": "flash-attn-3", "flytekit":
    "flytekitplugins-deck-standard", "galore_torch": "galore-torch", "apollo_torch": "apollo-torch", "lomo_optim":
    "lomo-optim", "liger_kernel": "liger-kernel", "optimi": "torch-optimi", "optimum": "optimum-quanto", "awq":
    "autoawq",
}  # fmt: skip
"""Modules whose package is called otherwise."""
INSTEAD = {
    "report_to": "leave report_to out: the run's own metrics.jsonl has the log",
    "optim": "take optim=adamw_torch",
    "use_liger_kernel": "leave it out",
    "deepspeed": "leave it out",
    "attn_implementation": "take sdpa",
    "quantization": "start from weights that are not quantised",
}
"""What to do where the package is not to be had."""


def lacking(setting: str, value: object) -> str | None:
    """Return which package a setting's value needs that is not installed, and the remedy; None where it needs none."""
    of_the_hub = setting == "attn_implementation" and "/" in str(value)
    modules = ("kernels",) if of_the_hub else NEEDED[setting].get(str(value))
    if modules is None or any(find_spec(name) is not None for name in modules):
        return None
    name = INSTALLED_AS.get(modules[0], modules[0])
    return (
        f"{value!r} needs the package {name}, which is not installed, so the run would end before its first step; "
        f"pip install {name}, or {INSTEAD[setting]}"
    )


def refuse_lacking(args: Any, section: str) -> None:
    """Refuse arguments of a transformers trainer whose packages are not installed, or that need a login to the hub.

    Args:
        args: `transformers.TrainingArguments`.
        section: what stands before an argument's name in the error, such as ``training``.

    Raises:
        BallastError: naming argument, package or login, and remedy.
    """
    if args.push_to_hub and (problem := _hub_problem(args.hub_token)):
        raise BallastError(f"{section}.push_to_hub is not possible: {problem}, or leave it out")
    reports = [args.report_to] if isinstance(args.report_to, str) else args.report_to or []
    given = [*(("report_to", name) for name in reports), ("optim", getattr(args.optim, "value", args.optim))]
    for name, value in (*given, ("use_liger_kernel", args.use_liger_kernel)):
        if problem := lacking(name, value):
            raise BallastError(f"{section}.{name} is not possible: {problem}")
    if unknown := [name for name in reports if name not in (*NEEDED["report_to"], "none", "all")]:
        known = ", ".join(NEEDED["report_to"])
        raise BallastError(f"{section}.report_to is not possible: nothing is called {unknown[0]!r}; known: {known}")
    optim = str(getattr(args.optim, "value", args.optim))
    if optim in (*GALORE, *APOLLO) and not args.optim_target_modules:
        raise BallastError(
            f"{section}.optim is not possible: {optim!r} needs to know which weights it projects; set "
            f"{section}.optim_target_modules, such as all-linear"
        )


def _hub_problem(token: str | None) -> str | None:
    """Return what keeps a model from being uploaded to the hub, as far as this machine tells; None for nothing."""
    from huggingface_hub import constants, get_token

    if constants.is_offline_mode():
        return "the hub is switched off (HF_HUB_OFFLINE), so nothing could be uploaded; unset it"
    if not (token or get_token()):
        return "nobody is logged in to the hub, so the run would end before its first step; run `hf auth login`"
    return None


def refuse_without(package: str, extra: str, what: str, instead: str) -> None:
    """Refuse what needs a package of one of ballast's extras that is not installed.

    Raises:
        BallastError: naming package, extra and what else to do.
    """
    if find_spec(package) is None:
        raise BallastError(
            f"{what} needs the package {package}, which is not installed; pip install 'ballast-ft[{extra}]', or take "
            f"{instead}"
        )
