"""Stop strings: end an answer at the first token after which its text contains one.

The text decides, not the ids: a stop string may begin and end within tokens. After every token only the end of the text
is decoded, as much of it as can hold a stop string that this token completed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ballast.errors import BallastError
from ballast.protocols import Tokenizer

if TYPE_CHECKING:
    from torch import Tensor

SLACK = 8
"""Characters at the start of a decoded piece that may differ from the whole text's: lost spaces, half characters."""


def check_stop(tokenizer: Tokenizer, stop: Sequence[str]) -> None:
    """Refuse stop strings that no answer's text can contain.

    Raises:
        BallastError: naming the first one.
    """
    special = [text for token in tokenizer.all_special_ids if (text := tokenizer.decode([token]))]
    for one in stop:
        if found := next((text for text in special if text in one), None):
            raise BallastError(
                f"stop {one!r}: {found!r} is a special token, which an answer's text leaves out, so this would never "
                "be found; leave it out, and make the token an end token (training.eos_token) if answers end with it"
            )


def answer_text(tokenizer: Tokenizer, prompt: Sequence[int], answer: Sequence[int]) -> str:
    """Return an answer's text without special tokens."""
    # Decoded behind its prompt: alone, sentencepiece-like tokenizers would lose the answer's leading space.
    before = tokenizer.decode(prompt, skip_special_tokens=True)
    whole = tokenizer.decode([*prompt, *answer], skip_special_tokens=True)
    return whole[len(before) :] if whole.startswith(before) else tokenizer.decode(answer, skip_special_tokens=True)


def before_stop(text: str, stop: Sequence[str]) -> str | None:
    """Return the text before the earliest stop string, None where there is none."""
    places = [place for one in stop if (place := text.find(one)) >= 0]
    return text[: min(places)] if places else None


class StopStrings:
    """Looks for stop strings in the answers of one batch; a stopping criterion of transformers' `generate`.

    Attributes:
        lengths: as a criterion: new tokens of every row, the one that completed a stop string included; None where
            none has.
    """

    def __init__(
        self, tokenizer: Tokenizer, prompts: Sequence[Sequence[int]], stop: Sequence[str], ends: set[int]
    ) -> None:
        self.lengths: list[int | None] = [None] * len(prompts)
        self._tokenizer, self._stop, self._ends = tokenizer, stop, ends
        self._special = set(tokenizer.all_special_ids)
        self._reach = max(map(len, stop)) + SLACK
        self._prompts = prompts
        self._before = [_last(tokenizer, ids, SLACK) for ids in prompts]
        self._answers: list[list[int]] = [[] for _ in prompts]
        self._unfinished = set(range(len(prompts)))
        self._step = 0

    def completes(self, row: int, token: int) -> bool:
        """Return whether the newest token of a row completes a stop string."""
        # Special tokens have no text. A run of them would make the window grow.
        if token in self._special:
            return False
        self._answers[row].append(token)
        return self._has_stopped(row)

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        """Return which rows have a stop string, `input_ids` ending with the newest token of all rows."""
        import torch

        self._step += 1
        newest = input_ids[:, -1].tolist()
        for row in sorted(self._unfinished):
            if self.completes(row, newest[row]):
                self.lengths[row] = self._step
            if self.lengths[row] is not None or newest[row] in self._ends:
                self._unfinished.remove(row)
        return torch.tensor([length is not None for length in self.lengths], device=input_ids.device)

    def _has_stopped(self, row: int) -> bool:
        answer = self._answers[row]
        window = [*_last(self._tokenizer, answer[:-1], self._reach), answer[-1]]
        if len(window) < len(answer):
            text = self._tokenizer.decode(window, skip_special_tokens=True)
        else:
            text = answer_text(self._tokenizer, self._before[row], answer)
        if before_stop(text, self._stop) is None:
            return False
        return before_stop(answer_text(self._tokenizer, self._prompts[row], answer), self._stop) is not None


def _last(tokenizer: Tokenizer, ids: Sequence[int], characters: int) -> Sequence[int]:
    """Return the last ids, enough for so many characters, or all there are."""
    size = characters
    while size < len(ids) and len(tokenizer.decode(ids[-size:], skip_special_tokens=True)) < characters:
        size *= 2
    return ids[-size:]
