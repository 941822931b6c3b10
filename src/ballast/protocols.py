"""What ballast asks of other people's objects: models, tokenizers, and whoever is told of progress."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Progress = Callable[[int, int], None]
"""Called with (done, total)."""
Say = Callable[[Any], Any]
"""What prints a line, or something that rich can show."""


class Model(Protocol):
    """A causal language model, as `transformers.PreTrainedModel` and `peft.PeftModel` are."""

    config: Any
    training: bool

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...

    def eval(self) -> Any: ...

    def train(self, mode: bool = True) -> Any: ...

    def to(self, *args: Any, **kwargs: Any) -> Any: ...

    def modules(self) -> Iterator[nn.Module]: ...

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...

    def state_dict(self) -> Mapping[str, Tensor]: ...

    def get_input_embeddings(self) -> nn.Module: ...

    def get_output_embeddings(self) -> nn.Module | None: ...


class Tokenizer(Protocol):
    """A tokenizer, as `transformers.PreTrainedTokenizerBase` is."""

    chat_template: Any
    eos_token_id: int | None
    pad_token_id: int | None

    def __call__(self, text: Any, **kwargs: Any) -> Any: ...

    def __len__(self) -> int: ...

    def convert_ids_to_tokens(self, ids: int) -> Any: ...

    def decode(self, token_ids: Sequence[int], **kwargs: Any) -> str: ...

    def apply_chat_template(self, conversation: Any, **kwargs: Any) -> Any: ...
