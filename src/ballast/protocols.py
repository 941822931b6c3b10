"""What ballast asks of other people's objects: models, tokenizers, and whoever is told of progress."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from torch import nn

Progress = Callable[[int, int], None]
"""Called with (done, total)."""
Say = Callable[[Any], Any]
"""What prints a line, or something that rich can show."""


class Model(Protocol):
    """A causal language model, as `transformers.PreTrainedModel` and `peft.PeftModel` are."""

    config: Any

    @property
    def base_model(self) -> Any: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...

    def eval(self) -> Any: ...

    def to(self, *args: Any, **kwargs: Any) -> Any: ...

    def requires_grad_(self, requires_grad: bool = True) -> Any: ...

    def modules(self) -> Iterator[nn.Module]: ...

    def named_modules(self) -> Iterator[tuple[str, nn.Module]]: ...

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...

    def state_dict(self, *, keep_vars: bool = False) -> dict[str, Any]: ...

    def get_input_embeddings(self) -> nn.Module: ...

    def get_output_embeddings(self) -> Any: ...


class Tokenizer(Protocol):
    """A tokenizer, as `transformers.PreTrainedTokenizerBase` is."""

    chat_template: Any
    eos_token: str | None
    eos_token_id: int | None
    pad_token_id: int | None

    @property
    def all_special_ids(self) -> list[int]: ...

    @property
    def special_tokens_map(self) -> dict[str, Any]: ...

    def __call__(self, text: Any, **kwargs: Any) -> Any: ...

    def __len__(self) -> int: ...

    def get_vocab(self) -> dict[str, int]: ...

    def convert_ids_to_tokens(self, ids: int) -> Any: ...

    def decode(self, token_ids: Any, **kwargs: Any) -> Any: ...

    def apply_chat_template(self, conversation: Any, **kwargs: Any) -> Any: ...
