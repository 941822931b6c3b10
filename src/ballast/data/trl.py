"""Every contact with TRL: what it decides about rows, tokens, labels and batches is asked of it, not copied."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from ballast.errors import BallastError

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from ballast.data.options import PrepareOptions


# -- data: tokens, labels, truncation, packing, collation --


@dataclass(frozen=True)
class LossRules:
    """What TRL's trainer decides on construction about which tokens are trained, and under which chat template."""

    chat_template: str | None
    completion_only_loss: bool
    notes: tuple[str, ...] = ()


def training_tokenizer(tokenizer: PreTrainedTokenizerBase, options: PrepareOptions) -> PreTrainedTokenizerBase:
    """Return a copy of ``tokenizer`` with the eos token, chat template and pad token that TRL's trainer would set.

    Raises BallastError for a vision processor, a token outside the vocabulary, or a template that is no Jinja file.
    """
    from transformers import PreTrainedTokenizerBase

    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise BallastError(
            f"a {type(tokenizer).__name__} is not supported, vision processors included; pass the text tokenizer itself"
        )
    ready = with_template(copy.deepcopy(tokenizer), options.chat_template_path, options.eos_token)
    if options.pad_token is not None:
        _check_token(ready, "pad_token", options.pad_token)
    pad_token = options.pad_token or ready.pad_token or ready.eos_token
    if pad_token is not None and pad_token in ready.get_vocab():
        ready.pad_token = pad_token
    return ready


def with_template(tokenizer: PreTrainedTokenizerBase, path: str | None, eos_token: str | None) -> Any:
    """Return ``tokenizer`` after giving it the chat template in a file and an end token; None leaves its own.

    Raises BallastError for a token outside the vocabulary, or a template that is no Jinja file.
    """
    if eos_token is not None:
        _check_token(tokenizer, "eos_token", eos_token)
        tokenizer.eos_token = eos_token
    if path is not None:
        tokenizer.chat_template = _read_template(path)
    return tokenizer


def _check_token(tokenizer: PreTrainedTokenizerBase, option: str, token: str) -> None:
    if token not in tokenizer.get_vocab():
        raise BallastError(f"{option}={token!r} is not in the tokenizer's vocabulary; name one of its tokens")


def _read_template(path: str) -> str:
    if not path.endswith((".jinja", ".j2")):
        raise BallastError(
            f"chat_template_path={path!r} is no .jinja file; taking the template of another tokenizer can add tokens "
            "and resize the model: run trl.clone_chat_template yourself and pass the resulting model and tokenizer"
        )
    if not os.path.isfile(path):
        raise BallastError(f"chat_template_path={path!r}: no such file")
    return Path(path).read_text(encoding="utf-8")


def is_conversational(row: Mapping[str, Any]) -> bool:
    """Whether TRL reads the row as a list of chat messages."""
    from trl.data_utils import is_conversational as trl_is_conversational

    return trl_is_conversational(dict(row))


def trl_loss_rules(row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, options: PrepareOptions) -> LossRules:
    """Decide from the first row, as TRL's trainer does, which tokens are trained and under which template.

    Raises BallastError where ``assistant_only_loss`` cannot work: plain rows, or a template without generation markers.
    """
    from trl.chat_template_utils import (
        get_training_chat_template,
        has_generation_markers,
        is_chat_template_stop_token_trained,
    )

    completion_only = options.completion_only_loss
    if completion_only is None:
        completion_only = "prompt" in row and "completion" in row
    if not options.assistant_only_loss:
        return LossRules(None, completion_only)
    if not is_conversational(row):
        raise BallastError(
            "assistant_only_loss=True needs chat messages, but the rows are plain; use prompt/completion rows with "
            "completion_only_loss, or give 'messages'"
        )
    template = None
    if not has_generation_markers(tokenizer.chat_template):
        try:
            template = get_training_chat_template(tokenizer)
        except ValueError:
            raise BallastError(
                "assistant_only_loss=True, but the chat template has no {% generation %} markers and TRL knows no "
                "training version of it, so no token would be trained; put {% generation %}...{% endgeneration %} "
                "round the assistant's text (chat_template_path=your.jinja), give prompt and completion in place of "
                "messages, or set assistant_only_loss=False"
            ) from None
    notes: tuple[str, ...] = ()
    if not is_chat_template_stop_token_trained(tokenizer, chat_template=template):
        notes = ("the chat template leaves the assistant's end-of-turn token untrained: the model may not stop",)
    return LossRules(template, completion_only, notes)


@dataclass(frozen=True)
class Step:
    """One thing that TRL's preparation does with each row.

    Attributes:
        function: returns the row's new columns, or whether the row is kept.
        arguments: of the function, beside the row.
        removed: columns that go.
        keeps: whether the function tells which rows are kept.
    """

    function: Callable[..., Any]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    removed: tuple[str, ...] = ()
    keeps: bool = False

    def __call__(self, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        if self.keeps:
            return [row for row in rows if self.function(row)]
        left = [{name: value for name, value in row.items() if name not in self.removed} for row in rows]
        made = (self.function(row, **self.arguments) for row in rows)
        return [row | new for row, new in zip(left, made, strict=True)]


class _Recorder:
    """Stands where TRL takes a data set, and keeps what it would do to the rows."""

    def __init__(self, column_names: Sequence[str]) -> None:
        self.column_names = list(column_names)
        self.steps: list[Step] = []

    def map(
        self, function: Callable[..., Any], *, fn_kwargs: Mapping[str, Any], remove_columns: Sequence[str] = ()
    ) -> _Recorder:
        self.steps.append(Step(function, fn_kwargs, tuple(remove_columns)))
        return self

    def filter(self, function: Callable[..., Any]) -> _Recorder:
        self.steps.append(Step(function, keeps=True))
        return self


def trl_steps(
    column_names: Sequence[str], options: PrepareOptions, rules: LossRules, *, max_length: int | None = None
) -> tuple[Step, ...]:
    """Return what TRL's own preparation does with each tokenised row to make its ``labels``, never packing.

    Args:
        column_names: ``input_ids`` and masks, or ``labels``.
        max_length: None leaves the rows whole; a number truncates them and drops those left fully masked.
    """
    from trl.trainer import sft_trainer

    trainer: Any = SimpleNamespace(completion_only_loss=rules.completion_only_loss)
    arguments: Any = SimpleNamespace(
        max_length=max_length, truncation_mode=options.truncation_mode, shuffle_dataset=False
    )
    recorder: Any = _Recorder(column_names)
    unread: Any = None
    # Nothing is done to a row here, so no process has to wait for another, which may have its rows already.
    with patch.object(sft_trainer, "global_then_local_main_first", nullcontext):
        sft_trainer.SFTTrainer._prepare_dataset(trainer, recorder, unread, arguments, False, None, "rows")
    return tuple(recorder.steps)


def common_prefix_length(ids: list[int], other: list[int]) -> int:
    """Return where TRL lets a completion start: after what the prompt alone and the whole row have in common."""
    from trl.data_utils import common_prefix_length as trl_common_prefix_length

    return trl_common_prefix_length(ids, other)


def trl_pack(dataset: Dataset, length: int, strategy: str, num_proc: int | None = None) -> Dataset:
    """Pack every list column of ``dataset`` with ``trl.pack_dataset``."""
    from trl.data_utils import pack_dataset

    return pack_dataset(dataset, length, strategy, {"num_proc": num_proc, "desc": "Packing"})


def trl_collator(
    pad_token_id: int, *, padding_free: bool, pad_to_multiple_of: int | None, return_position_ids: bool
) -> Any:
    """TRL's own collator for token ids and labels."""
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    return DataCollatorForLanguageModeling(
        pad_token_id=pad_token_id,
        padding_free=padding_free,
        pad_to_multiple_of=pad_to_multiple_of,
        return_position_ids=return_position_ids,
    )
