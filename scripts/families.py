"""Try every causal language model of transformers at a tiny size, and write the table of docs/models.md.

    python scripts/families.py                     try all families
    python scripts/families.py llama mamba2        these
    python scripts/families.py --page              write the tables of docs/models.md from what was found last

What is found goes into benchmarks/results/families.jsonl, a line for each family.

A family works where the gradient that `ballast.Trainer` trains on is that of the model's own logits, of all weights and
of a LoRA adapter on all linear layers; TRL's is compared as well. Weights are random, and no model is built that has
more than `family_sizes.LARGEST` of them.
"""

from __future__ import annotations

import argparse
import copy
import json
import re
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from family_sizes import tiny_model

ROOT = Path(__file__).resolve().parents[1]
PAGE, RESULTS = ROOT / "docs" / "models.md", ROOT / "benchmarks" / "results" / "families.jsonl"
BLOCK = re.compile(r"(<!-- families: (\w+) -->\n).*?(<!-- end of families -->)", re.DOTALL)
SAME = 5e-6
"""Largest difference of two gradients, as a share of the largest entry."""

MAMBA = ("out_proj", "conv1d")
EXCLUDED: Mapping[str, tuple[str, ...]] = {
    "deepseek_v4": ("o_a_proj",),
    "llama4": ("router",),
    "llama4_text": ("router",),
    "phimoe": ("router",),
    **dict.fromkeys(("falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h"), MAMBA),
}
"""Linear layers that an adapter cannot sit on; ballast or PEFT names them."""
UNTRIED = {
    "blt": "its patcher, encoders and decoder do not fit each other at a tiny size",
    "dots3_note": "its vision tower does not fit its text model at a tiny size",
    "dots3_note_text": "more weights than are tried, however small",
    "gemma3n": "its vision tower needs the package timm; its text model is `gemma3n_text`",
    "gemma4_assistant": "drafts for a Gemma 4 beside it, and is no model by itself",
    "gemma4_unified_assistant": "drafts for a Gemma 4 beside it, and is no model by itself",
    "musicgen": "writes audio codes; transformers cannot build its decoder from its own configuration",
    "musicgen_melody": "writes audio codes; transformers cannot build its decoder from its own configuration",
}
"""Families that were not tried, and why."""


@dataclass(frozen=True)
class Found:
    """What became of a family.

    Attributes:
        family: `model_type` of its configuration.
        cls: the class of model.
        full, lora: largest difference from the gradient of the model's own logits, as a share of its largest entry;
            None where it was not reached.
        trl: largest difference from TRL's gradient, of both; None where TRL fails.
        refused: the line that ballast refuses it with.
        failed: what went wrong otherwise.
    """

    family: str
    cls: str
    full: float | None = None
    lora: float | None = None
    trl: float | None = None
    refused: str = ""
    failed: str = ""

    @property
    def works(self) -> bool:
        return all(value is not None and value <= SAME for value in (self.full, self.lora))


def families() -> dict[str, str]:
    """Return the class of model of each family that `AutoModelForCausalLM` knows."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return dict(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def measure(family: str) -> Found:
    """Return what becomes of a family: gradients, a refusal, or a failure."""
    from ballast.errors import BallastError

    found: dict[str, Any] = {"family": family, "cls": families()[family]}
    if family in UNTRIED:
        return Found(**found, failed=f"not tried: {UNTRIED[family]}")
    try:
        model = tiny_model(family)
    except Exception as error:
        return Found(**found, failed=f"cannot be built: {_line(error)}")
    with tempfile.TemporaryDirectory() as folder:
        for mode in ("full", "lora"):
            try:
                found[mode], trl = gradients(copy.deepcopy(model), folder, lora=mode == "lora")
                if found[mode] > SAME:  # rounding, where float64 has less
                    found[mode], _ = gradients(copy.deepcopy(model).double(), folder, lora=mode == "lora")
            except BallastError as error:
                return Found(**found, refused=f"{mode}: {_line(error)}")
            except Exception as error:  # each model class has errors of its own
                return Found(**found, failed=f"{mode}: {_line(error)}")
            found["trl"] = None if trl is None or found.get("trl", 0) is None else max(trl, found.get("trl", 0.0))
    return Found(**found)


def gradients(model: Any, folder: str, *, lora: bool) -> tuple[float, float | None]:
    """Return by how much the trainer's gradient differs from that of the model's own logits, and from TRL's."""
    from trl import SFTConfig, SFTTrainer

    import ballast
    from ballast.models import load_tokenizer, resolve, section_of

    tokenizer = load_tokenizer(resolve(section_of("lab")))
    if lora:
        model = adapted(model, EXCLUDED.get(model.config.model_type))
    plain, theirs = copy.deepcopy(model), copy.deepcopy(model)
    trainer = ballast.Trainer(
        model, arguments(ballast.TrainingConfig, folder), train_dataset=rows(), processing_class=tokenizer
    )
    batch = next(iter(trainer.get_train_dataloader()))
    tokens = (batch["labels"][:, 1:] != -100).sum()
    coefficient = trainer.router_coefficient()
    ours = gradient_of(trainer, batch, tokens)
    truth = own_gradient(plain, batch, coefficient)
    try:
        reference = SFTTrainer(theirs, arguments(SFTConfig, folder), train_dataset=rows(), processing_class=tokenizer)
        other = gradient_of(reference, {key: batch[key] for key in ("input_ids", "attention_mask", "labels")}, tokens)
    except Exception:  # a family that TRL does not train
        other = None
    return difference(ours, truth), None if other is None else difference(ours, other)


def adapted(model: Any, excluded: Sequence[str] | None) -> Any:
    """Return the model with a LoRA adapter on all its linear layers that is not zero."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    settings = LoraConfig(
        task_type="CAUSAL_LM",
        r=2,
        target_modules="all-linear",
        exclude_modules=None if excluded is None else list(excluded),
        init_lora_weights=False,
    )
    return get_peft_model(model, settings)


def arguments(kind: Any, folder: str) -> Any:
    return kind(
        output_dir=folder, max_steps=1, per_device_train_batch_size=2, gradient_checkpointing=False, use_cpu=True,
        bf16=False, report_to=[], disable_tqdm=True, save_strategy="no", dataloader_pin_memory=False,
    )  # fmt: skip


def rows() -> Any:
    """Two rows of different lengths, so that padding shows."""
    from datasets import Dataset

    tokens = [[5, 9, 30, 14, 7, 3, 8], [6, 11, 22, 33, 44, 19, 16, 41, 9, 7, 25]]
    return Dataset.from_list([{"input_ids": ids, "labels": [-100] * 3 + ids[3:]} for ids in tokens])


def gradient_of(trainer: Any, batch: Mapping[str, Any], tokens: Any) -> dict[str, Any]:
    trainer.model.train()
    torch.manual_seed(2)
    trainer.current_gradient_accumulation_steps = 1
    trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=tokens).backward()
    return collected(trainer.model)


def own_gradient(model: Any, batch: Mapping[str, Any], coefficient: float) -> dict[str, Any]:
    """Return the gradient of the mean negative log-likelihood from the model's own logits, and of its router's loss."""
    model.train()
    torch.manual_seed(2)
    options = {"output_router_logits": True} if coefficient else {}
    output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False, **options)
    loss = torch.nn.functional.cross_entropy(
        output.logits[:, :-1].flatten(0, 1).float(), batch["labels"][:, 1:].flatten()
    )
    (loss + coefficient * router_loss(model, output, batch) if coefficient else loss).backward()
    return collected(model)


def router_loss(model: Any, output: Any, batch: Mapping[str, Any]) -> Any:
    """Return the load-balancing loss of the model's own forward; Llama 4 declares its weight and has none."""
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    if getattr(output, "aux_loss", None) is not None or not output.router_logits:
        return getattr(output, "aux_loss", None) or 0.0
    config = model.config.get_text_config()
    return load_balancing_loss_func(
        output.router_logits, config.num_local_experts, config.num_experts_per_tok, batch["attention_mask"]
    )


def collected(model: Any) -> dict[str, Any]:
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


def difference(left: Mapping[str, Any], right: Mapping[str, Any]) -> float:
    """Return the largest difference of two gradients as a share of the largest entry; a missing one is zero."""
    largest = max(float(one.abs().max()) for one in right.values())
    if not largest > 0:
        raise ValueError("the gradient is zero, so nothing can be compared")
    apart = [
        float(
            (left.get(name, zero := 0 * (right if name in right else left)[name]) - right.get(name, zero)).abs().max()
        )
        for name in {**left, **right}
    ]
    return max(apart) / largest


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".removeprefix("BallastError: ").split())[:200]


def tables(found: Sequence[Found]) -> dict[str, str]:
    """Return the tables of the page by name."""
    works = [one for one in found if one.works]
    rows = [
        f"| `{one.family}` | {_figure(one.full)} | {_figure(one.lora)} | {_figure(one.trl)} | {note(one)} |"
        for one in works
    ]
    head = ["| family | all weights | LoRA | TRL | |", "| --- | --- | --- | --- | --- |"]
    others = [one for one in found if not one.works]
    return {
        "works": "\n".join([*head, *rows]),
        "others": "\n".join(
            ["| family | class | what became of it |", "| --- | --- | --- |"]
            + [f"| `{one.family}` | `{one.cls}` | {one.refused or one.failed or 'other gradients'} |" for one in others]
        ),
        "count": f"{len(works)} of {len(found)} families have the gradient of their own logits to {SAME:g}, with all "
        f"weights and with LoRA; {len([one for one in others if one.refused])} are refused, "
        f"{len(UNTRIED)} were not tried.",
    }


def note(found: Found) -> str:
    """Return what is particular about a family that works."""
    notes = []
    if excluded := EXCLUDED.get(found.family):
        notes.append(f"LoRA: `exclude_modules: [{', '.join(excluded)}]`")
    if found.trl is None:
        notes.append("TRL fails")
    elif found.trl > 1e-4:
        notes.append("TRL's logits are not the model's")
    return "; ".join(notes)


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.0e}"


def stored() -> dict[str, Found]:
    """Return what was found last, by family."""
    lines = RESULTS.read_text(encoding="utf-8").splitlines() if RESULTS.is_file() else []
    return {one.family: one for one in (Found(**json.loads(line)) for line in lines)}


def store(found: Found) -> None:
    """Put what was found of a family in the place of what was found before."""
    lines = [asdict(one) for _, one in sorted({**stored(), found.family: found}.items())]
    RESULTS.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("families", nargs="*", help="model types; all where none is named")
    parser.add_argument("--page", action="store_true", help="write the tables of docs/models.md instead")
    given = parser.parse_args(words)
    if given.page:
        made = tables(list(stored().values()))
        text = BLOCK.sub(lambda match: f"{match[1]}{made[match[2]]}\n\n{match[3]}", PAGE.read_text(encoding="utf-8"))
        PAGE.write_text(text, encoding="utf-8")
        return 0
    found = []
    for family in given.families or sorted(families()):
        found.append(measure(family))
        store(found[-1])
        print(found[-1], flush=True)
    return 0 if all(one.works or one.refused for one in found) else 1


if __name__ == "__main__":
    import datasets
    import transformers

    datasets.disable_progress_bars()
    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity_error()
    torch.set_num_threads(1)
    sys.exit(main())
