"""What an engine is: prompts in, answers out, each drawn from a seed of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ballast.evaluation.generation import GenerationOptions


@dataclass(frozen=True)
class Request:
    """One answer that is asked for.

    Attributes:
        ids: token ids of the prompt.
        row: the prompt as its row has it, for servers that are asked in text.
        seed: of this answer alone.
    """

    ids: tuple[int, ...]
    row: Any = field(repr=False)
    seed: int


@dataclass(frozen=True)
class Reply:
    """One answer.

    Attributes:
        text: as the server writes it.
        tokens: its length.
        ended: whether it ended by itself, not at the limit of tokens.
        ids: of its tokens; None of a server that is asked in text.
        logprobs: log-probability in nats of each token under the server's model at temperature 1; None as above.
    """

    text: str
    tokens: int
    ended: bool
    ids: tuple[int, ...] | None = None
    logprobs: tuple[float, ...] | None = field(default=None, repr=False)


@dataclass
class Usage:
    """What was asked of a server so far.

    Attributes:
        requests: that were answered.
        prompt_tokens, answer_tokens: as the server counts them.
    """

    requests: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0


class Engine(Protocol):
    """A server that answers."""

    @property
    def kind(self) -> str:
        """As in recipes."""

    @property
    def model(self) -> str:
        """What the server calls its model."""

    @property
    def version(self) -> str | None:
        """Of the server; None where it does not say."""

    @property
    def usage(self) -> Usage:
        """Counts, from the start."""

    def sample(
        self,
        requests: Sequence[Request],
        options: GenerationOptions,
        ends: Sequence[int],
        done: Callable[[int], object] = ...,
    ) -> list[Reply]:
        """Return one reply for each request, in their order.

        Args:
            options: how to sample; `samples`, `seed` and `batch_tokens` are not read, a request is one answer.
            ends: token ids that end an answer.
            done: called with the number of answers so far, from the caller's thread.

        Raises:
            BallastError: the server is away, refuses, or answers what cannot be read.
        """
