"""Models and tokenizers as a recipe names them: safetensors only, no remote code unless asked, nothing random."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ballast import gguf
from ballast.config.recipe import ModelSection
from ballast.errors import BallastError, suggest
from ballast.files import expanded
from ballast.packages import lacking
from ballast.quantised import keep_differentiable
from ballast.sharding import loaded_whole

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ADAPTER_CONFIG = "adapter_config.json"
MADE = {"smollm2": Path("models", "smollm2")}
"""By the name of a model in a recipe: the folder that ``make real-model`` writes it to."""


def resolve(section: ModelSection) -> ModelSection:
    """Return the section with the name of an embedded base, one of `MADE`, or a GGUF file replaced by its folder.

    A GGUF that cannot be used stays: `check_folder` says why.
    """
    from ballast.lab import BASES, base_path

    if section.path in MADE:
        return section.model_copy(update={"path": str(MADE[section.path])})
    if gguf.is_gguf(section.path) and gguf.problem(section.path) is None:
        return section.model_copy(update={"path": str(gguf.unpacked(section.path))})
    if section.path not in BASES:
        return section
    return section.model_copy(update={"path": str(base_path(section.path))})


def section_of(path: str, like: ModelSection | None = None) -> ModelSection:
    """Return the section for a model given by its path: a model, or a folder with a PEFT adapter on top of its base.

    ``like`` gives dtype and loading options, its revision where it is the same model, and the base of an adapter that
    was trained from it.

    Raises:
        BallastError: the adapter's configuration cannot be read.
    """
    path = expanded(path)
    start = like or ModelSection(path=path)
    folder = Path(path)
    if not (folder / ADAPTER_CONFIG).is_file() or (folder / "config.json").is_file():
        revision = start.revision if path == start.path else None
        return start.model_copy(update={"path": path, "revision": revision, "adapter": None, "lora": None})
    try:
        base = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (ValueError, KeyError) as error:
        raise BallastError(f"{folder / ADAPTER_CONFIG}: not a PEFT adapter configuration") from error
    return start.model_copy(update={"path": like.path if like else base, "adapter": path, "lora": None})


def check_folder(path: str) -> str | None:
    """Return what makes a local folder or GGUF unusable as a model, or None; another path is taken for a hub id."""
    if gguf.is_gguf(path):
        return gguf.problem(path)
    folder = Path(path).expanduser()
    if folder.is_file():
        return f"{path}: is a file; name the folder that holds config.json and the weights"
    if folder in MADE.values() and not folder.is_dir():
        return f"{path}: no such folder; `make real-model` writes it (python scripts/smollm2.py)"
    if not folder.is_dir() and (problem := gguf.gone(folder)):
        return problem
    if not folder.is_dir():
        looks_local = path.startswith((".", "/", "~")) or path.count("/") != 1
        return f"{path}: no such folder" if looks_local and "/" in path else None
    if not (folder / "config.json").is_file():
        if (folder / ADAPTER_CONFIG).is_file():
            return f"{path}: holds a PEFT adapter, not a model; set model.path to its base and model.adapter to this"
        if problem := gguf.folder_problem(folder):
            return problem
        return f"{path}: has no config.json, so it is not a model in transformers format"
    if not any(folder.glob("*.safetensors")):
        if pickled := sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in folder.glob(pattern)):
            return (
                f"{path}: weights are pickled ({pickled[0]}), which can run code on loading; convert them with "
                "model.save_pretrained(folder), which writes safetensors"
            )
        return f"{path}: has no weights (*.safetensors)"
    return None


def folder_problem(path: str) -> str | None:
    """Return what makes a model's path unusable as `section_of` reads it, or None."""
    section = resolve(section_of(path))
    return check_folder(section.path) or (check_adapter(section.adapter) if section.adapter else None)


def load_config(section: ModelSection) -> Any:
    """Return the transformers configuration; no weight is read.

    Raises:
        BallastError: the model cannot be found, or is no causal language model.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    if problem := check_folder(section.path):
        raise BallastError(problem)
    try:
        config = AutoConfig.from_pretrained(section.path, **_where(section))
    except (OSError, ValueError, KeyError) as error:
        raise BallastError(_unloadable(section.path, "config", error)) from error
    quantisation = getattr(config, "quantization_config", None) or {}
    named = quantisation.get("quant_method") if isinstance(quantisation, dict) else None
    if named is not None and (problem := lacking("quantization", getattr(named, "value", named))):
        raise BallastError(f"{section.path}: its weights are quantised: {problem}")
    remote = "AutoModelForCausalLM" in getattr(config, "auto_map", {})
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING and not remote:
        raise BallastError(f"{section.path}: a {config.model_type} model is no causal language model")
    return config


def hub_id(section: ModelSection) -> str | None:
    """Return the name of a model on the hub, None where it is a folder here."""
    named = re.fullmatch(r"([\w.-]+/)?[\w.-]+", section.path, re.ASCII)
    return None if named is None or Path(section.path).exists() else section.path


def licence(section: ModelSection) -> str | None:
    """Return the licence that the card in a local model's folder names, None where it names none."""
    from huggingface_hub import metadata_load
    from yaml import YAMLError

    from ballast.lab import BASES

    card = Path(section.path) / "README.md"
    if section.path in {str(resolve(ModelSection(path=name)).path) for name in BASES}:
        return "apache-2.0"
    try:
        found = (metadata_load(card) or {}).get("license") if card.is_file() else None
    except (ValueError, OSError, YAMLError):
        return None
    return found if isinstance(found, str) and re.fullmatch(r"[\w.+-]+", found, re.ASCII) else None


def attention_problem(section: ModelSection) -> str | None:
    """Return what makes a way to compute attention impossible here, or None."""
    wanted = section.attn_implementation
    if wanted is None or "/" in wanted:  # a kernel of the hub
        return lacking("attn_implementation", wanted)
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    known = ("eager", *ALL_ATTENTION_FUNCTIONS.valid_keys())
    if wanted not in known:
        return f"{wanted!r} is not allowed{suggest(wanted, known)}"
    if problem := lacking("attn_implementation", wanted):
        return problem
    if wanted.startswith("flash_attention") and default_device().type == "cpu":
        return f"{wanted!r} computes on a GPU, and there is none here; take sdpa"
    return None


def load_tokenizer(section: ModelSection, training: Mapping[str, Any] | None = None) -> PreTrainedTokenizerBase:
    """Return the tokenizer of the adapter where it has one, else of the model; a missing pad token is settled later.

    Args:
        training: a recipe's training settings: their chat template and end token take the place of the tokenizer's, so
            that a model is measured on the prompts that it is trained on.

    Raises:
        BallastError: the tokenizer, or what should take its parts' place, is missing or broken.
    """
    from transformers import AutoTokenizer

    from ballast.data.trl import with_template

    if gguf.is_gguf(section.path) and (problem := check_folder(section.path)):
        raise BallastError(problem)
    beside = section.adapter and (Path(section.adapter) / "tokenizer_config.json").is_file()
    path, options = (section.adapter, {}) if beside else (section.path, _where(section))
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, **options)
    except Exception as error:  # every tokenizer backend has errors of its own
        raise BallastError(_unloadable(section.path, "tokenizer", error)) from error
    given = training or {}
    return with_template(tokenizer, given.get("chat_template_path"), given.get("eos_token"))


def load_model(
    section: ModelSection, *, trainable: bool = False, device: torch.device | None = None
) -> PreTrainedModel | PeftModel:
    """Return the causal language model in eval mode, with its adapter where the section names one.

    Args:
        trainable: let the adapter that the section names go on training.
        device: where to put it; None leaves it where it was loaded.

    Raises:
        BallastError: weights are missing or pickled, or do not fit the configuration.
    """
    from transformers import AutoModelForCausalLM

    options = {
        "dtype": section.dtype,
        "attn_implementation": section.attn_implementation,
        "quantization_config": quantization_config(section),
        "use_safetensors": True,
    }
    given = {key: value for key, value in options.items() if value is not None}
    if problem := check_folder(section.path):
        raise BallastError(problem)
    try:
        with loaded_whole():
            found: Any = AutoModelForCausalLM.from_pretrained(
                section.path, output_loading_info=True, **_where(section), **given
            )
    except Exception as error:  # safetensors, torch and transformers each raise their own
        raise BallastError(_unloadable(section.path, "model", error)) from error
    model, loaded = found
    if missing := sorted(loaded["missing_keys"]):
        raise BallastError(
            f"{section.path}: the weights lack {missing[0]!r}{_more(missing)}, which would be random numbers; "
            "the file belongs to another model or was cut short"
        )
    keep_differentiable(model)
    model = (_with_adapter(model, section, trainable) if section.adapter else model).eval()
    return model if device is None else model.to(device)


def quantization_config(section: ModelSection) -> Any:
    """Return the `transformers.BitsAndBytesConfig` that the section describes, or None."""
    asked = section.quantization
    if asked is None:
        return None
    from transformers import BitsAndBytesConfig

    if asked.bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=asked.type or "nf4",
        bnb_4bit_use_double_quant=bool(asked.double),
        bnb_4bit_compute_dtype=asked.compute_dtype or (None if section.dtype == "auto" else section.dtype),
    )


def lora_config(section: ModelSection) -> LoraConfig | None:
    """Return the LoRA configuration that the section describes, or None.

    Raises:
        BallastError: for the first unknown or unusable key.
    """
    if section.lora is None:
        return None
    if problems := lora_problems(section.lora):
        key, message = problems[0]
        raise BallastError(f"model.lora.{key}: {message}")
    from peft import LoraConfig

    return LoraConfig(task_type="CAUSAL_LM", **section.lora)


def lora_problems(lora: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return (key, message) for everything wrong with a mapping of LoraConfig fields."""
    from dataclasses import fields

    from peft import LoraConfig

    known = tuple(field.name for field in fields(LoraConfig) if field.init and field.name != "task_type")
    problems = [(key, f"unknown key{suggest(key, known)}") for key in lora if key not in known]
    rank = lora.get("r", 8)
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        problems.append(("r", f"must be a whole number of at least 1; got {rank!r}"))
    if not problems:
        try:
            LoraConfig(task_type="CAUSAL_LM", **lora)
        except (TypeError, ValueError, ImportError) as error:
            problems.append(("", " ".join(str(error).split())))
    return problems


def empty_model(section: ModelSection, config: Any) -> PreTrainedModel:
    """Return the model that a configuration describes, without weights."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.modeling_utils import set_zero3_state

    # Under ZeRO-3 transformers would spread the weights over the processes, and there are none.
    with torch.device("meta"), set_zero3_state():
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, trust_remote_code=section.trust_remote_code)
    return model


def try_lora(section: ModelSection, config: Any) -> None:
    """Put the LoRA settings on a model without weights, to see what they do to its modules.

    Raises:
        BallastError: PEFT refuses them, or the head would not be trained as they say.
    """
    import torch
    from peft import get_peft_model

    from ballast.head import check_adapted_head
    from ballast.reference.adapters import refuse_unfit_layers

    settings = lora_config(section)
    assert settings is not None
    try:
        with torch.device("meta"), warnings.catch_warnings():
            # Of tied weights, which are refused below.
            warnings.simplefilter("ignore")
            empty = empty_model(section, config)
            refuse_unfit_layers(get_peft_model(empty, settings))
    except BallastError:
        raise
    except ValueError as error:
        raise BallastError(" ".join(str(error).split())) from error
    check_adapted_head(empty)


def adapter_size(section: ModelSection, empty: Any) -> int:
    """Return how many numbers the LoRA settings train on a model without weights, which they are put on."""
    import torch
    from peft import get_peft_model

    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tied weights, which `try_lora` refuses
        settings = lora_config(section)
        assert settings is not None
        adapted = get_peft_model(empty, settings)
    return sum(weights.numel() for weights in adapted.parameters() if weights.requires_grad)


def check_adapter(path: str) -> str | None:
    """Return what makes a local folder unusable as a PEFT adapter, or None."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        return None if path.count("/") == 1 and not path.startswith((".", "/", "~")) else f"{path}: no such folder"
    if not (folder / ADAPTER_CONFIG).is_file():
        return f"{path}: has no {ADAPTER_CONFIG}, so it is not a PEFT adapter"
    if not (folder / "adapter_model.safetensors").is_file():
        return f"{path}: has no adapter_model.safetensors"
    return None


def _with_adapter(model: Any, section: ModelSection, trainable: bool) -> Any:
    from peft import PeftModel

    if problem := check_adapter(str(section.adapter)):
        raise BallastError(problem)
    try:
        return PeftModel.from_pretrained(model, str(section.adapter), is_trainable=trainable, use_safetensors=True)
    except Exception as error:  # peft, safetensors and torch each raise their own
        raise BallastError(_unloadable(str(section.adapter), "adapter", error)) from error


def _where(section: ModelSection) -> dict[str, Any]:
    options: dict[str, Any] = {"trust_remote_code": section.trust_remote_code}
    return options if section.revision is None else {**options, "revision": section.revision}


def _unloadable(path: str, what: str, error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    reason = " ".join(lines[0].split())
    if Path(path).expanduser().exists():
        return f"{path}: cannot load the {what}: {reason}"
    return f"{path}: cannot load the {what}: no such folder here, and not to be had from the hub ({reason})"


def _more(items: list[str]) -> str:
    return f" and {len(items) - 1} more" if len(items) > 1 else ""


def default_device() -> torch.device:
    """Return the accelerator where there is one, else the CPU."""
    import torch

    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator or torch.device("cpu")


def on_rank_0_alone() -> bool:
    """Return whether models are loaded with weights on rank 0 and without content elsewhere, to be sharded by FSDP."""
    from transformers.integrations import is_fsdp_enabled

    return bool(is_fsdp_enabled())
