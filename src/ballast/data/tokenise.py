"""From raw rows to token ids and masks, as TRL's trainer makes them, and to what became of their texts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ballast.data import trl
from ballast.data.audit import Audit, audit, shortened
from ballast.data.messages import Message
from ballast.data.options import PrepareOptions
from ballast.data.render import (
    Encoded,
    Rendered,
    Row,
    conversation,
    encode,
    render_chat,
    render_prompt,
    template_options,
)
from ballast.errors import BallastError

if TYPE_CHECKING:
    from datasets import Dataset

VERSION = "ballast-tokens-1"
"""Part of the name under which `datasets` keeps the result: another way of tokenising must not find an old one."""
NO_END, OTHER_END = "no end", "other end"
"""Keys beside the kinds of text that a template leaves out: answers that end without the tokenizer's end token."""
TEMPLATE = "template"
"""What the tokens belong to that are no message's."""
BATCH = 256


def tokenise(
    dataset: Dataset,
    tokenizer: Any,
    options: PrepareOptions,
    rules: trl.LossRules,
    *,
    name: str,
    numbers: Sequence[int],
) -> Dataset:
    """Return ``input_ids`` and masks of raw rows, whole, with what became of their texts.

    Columns: ``completion_mask`` and ``prompt_is_prefix`` of rows with a prompt, ``assistant_masks`` where the
    assistant alone is trained, ``left_out`` (JSON of kinds of text, see `Audit`) and ``by_role`` (JSON of token counts)
    of chats.

    Args:
        numbers: what the rows are called.

    Raises:
        BallastError: naming the first row that cannot be tokenised, or of which a trained message is gone.
    """
    how = _Tokenise(
        tokenizer=tokenizer,
        chat_template=rules.chat_template,
        text_field=options.dataset_text_field,
        assistant_only=options.assistant_only_loss,
        ends=frozenset([*tokenizer.get_added_vocab(), *tokenizer.all_special_tokens]),
        numbers=numbers,
    )
    return dataset.map(
        how,
        batched=True,
        batch_size=BATCH,
        with_indices=True,
        remove_columns=dataset.column_names,
        features=_features(dataset.column_names, options),
        num_proc=options.num_proc,
        desc=f"Tokenizing {name} dataset",
    )


def _features(columns: Sequence[str], options: PrepareOptions) -> Any:
    from datasets import Features, List, Value

    features = {"input_ids": List(Value("int32")), "left_out": Value("string"), "by_role": Value("string")}
    if "prompt" in columns:
        features |= {"completion_mask": List(Value("int64")), "prompt_is_prefix": Value("bool")}
    if options.assistant_only_loss:
        features |= {"assistant_masks": List(Value("int64"))}
    return Features(features)


@dataclass(frozen=True)
class _Texts:
    """A row as text; `messages` and what became of them where it is a chat."""

    whole: Rendered
    prompt: Rendered | None
    messages: list[dict[str, Any]] | None = None
    arrived: Audit | None = None
    masked: Mapping[str, list[int]] | None = None


@dataclass(frozen=True)
class _Tokenise:
    """What `Dataset.map` calls with columns of rows and their places."""

    tokenizer: Any
    chat_template: str | None
    text_field: str
    assistant_only: bool
    ends: frozenset[str]
    numbers: Sequence[int]
    version: str = VERSION

    def __call__(self, batch: Mapping[str, list[Any]], places: Sequence[int]) -> dict[str, list[Any]]:
        rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        numbers = [self.numbers[place] for place in places]
        read = [self._read(row, number) for row, number in zip(rows, numbers, strict=True)]
        whole = encode([one.whole for one in read], self.tokenizer) if not self.assistant_only else []
        prompts = encode([one.prompt for one in read if one.prompt is not None], self.tokenizer)
        out: dict[str, list[Any]] = {}
        for place, (one, number) in enumerate(zip(read, numbers, strict=True)):
            encoded = whole[place] if one.masked is None else Encoded(one.masked["input_ids"])
            columns = self._told(one, number, encoded) | {"input_ids": encoded.ids}
            if one.masked is not None:
                columns["assistant_masks"] = one.masked["assistant_masks"]
            if one.prompt is not None:
                columns |= _completion(prompts[place].ids, encoded.ids)
            for name, value in columns.items():
                out.setdefault(name, []).append(value)
        return out

    def _read(self, row: Row, number: int) -> _Texts:
        try:
            messages = conversation(row)
            prompt = render_prompt(row, self.tokenizer, self.chat_template) if "prompt" in row else None
            return self._plain(row, prompt) if messages is None else self._chat(row, messages, prompt)
        except Exception as error:  # a template may raise anything
            reason = " ".join(str(error).split()) or type(error).__name__
            told = reason if isinstance(error, BallastError) else f"cannot be tokenised: {reason}"
            raise BallastError(f"row {number}: {told}") from error

    def _plain(self, row: Row, prompt: Rendered | None) -> _Texts:
        text, end = row[self.text_field] if prompt is None else row["completion"], self.tokenizer.eos_token
        before, ended = prompt.text if prompt else "", text if text.endswith(end) else text + end
        return _Texts(Rendered(before + ended, special=True), prompt)

    def _chat(self, row: Row, messages: list[dict[str, Any]], prompt: Rendered | None) -> _Texts:
        options = template_options(row, self.chat_template)
        whole = render_chat(messages, self.tokenizer, options)
        arrived = audit(
            messages,
            whole.text,
            tools=options["tools"],
            options=row.get("chat_template_kwargs"),
            template=str(options["chat_template"] or self.tokenizer.chat_template),
            trained_from=0 if prompt is None else len(row["prompt"]),
        )
        if arrived.gone is not None:
            raise BallastError(
                f"the chat template leaves out a whole message of the assistant, {arrived.gone}, so nothing of it "
                "would be trained; use a template that writes it (chat_template_path=your.jinja), or remove the row"
            )
        return _Texts(whole, prompt, messages, arrived, self._masked(messages, options))

    def _masked(self, messages: Sequence[Message], options: Mapping[str, Any]) -> Mapping[str, list[int]] | None:
        """Return ids and mask where only the assistant's text is trained: no text has the mask."""
        if not self.assistant_only:
            return None
        masked = self.tokenizer.apply_chat_template(
            messages,
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
            tokenizer_kwargs={"verbose": False},
            **options,
        )
        if 1 not in masked["assistant_masks"]:
            raise BallastError(
                "cannot be tokenised: assistant_only_loss=True, but the chat template marks no token of its assistant "
                "messages; put {% generation %}...{% endgeneration %} round the assistant's text, or remove the row"
            )
        return masked

    def _told(self, one: _Texts, number: int, encoded: Encoded) -> dict[str, Any]:
        if one.messages is None or one.arrived is None:
            return {"left_out": None, "by_role": None}
        left_out = one.arrived.left_out | _unended(one.messages, one.whole.text, one.arrived, self.tokenizer, self.ends)
        roles = None
        if one.prompt is None and not self.assistant_only:
            roles = _tokens_by_role(one.messages, encoded, one.arrived)
        placed = {what: f"row {number}: {text}" for what, text in left_out.items()}
        return {
            "left_out": json.dumps(placed) if placed else None,
            "by_role": None if roles is None else json.dumps(roles),
        }


def _completion(prompt: list[int], ids: list[int]) -> dict[str, Any]:
    shared = trl.common_prefix_length(prompt, ids)
    mask = [0] * shared + [1] * (len(ids) - shared)
    return {"completion_mask": mask, "prompt_is_prefix": shared == len(prompt)}


def _unended(
    messages: Sequence[Message], text: str, arrived: Audit, tokenizer: Any, ends: frozenset[str]
) -> dict[str, str]:
    """Return what follows a last answer in place of the tokenizer's end token, nothing where that follows."""
    last = len(messages) - 1
    if messages[last]["role"] != "assistant" or not arrived.spans or arrived.spans[-1][0] != last:
        return {}
    tail = text[arrived.spans[-1][2] :]
    if tokenizer.eos_token and tokenizer.eos_token in tail:
        return {}
    other = _first_of(ends, tail[:200])
    return {NO_END: shortened(text[-40:])} if other is None else {OTHER_END: shortened(other)}


@lru_cache(maxsize=64)  # all rows of a template have the same few endings
def _first_of(tokens: frozenset[str], text: str) -> str | None:
    pieces = (text[start:end] for start in range(len(text)) for end in range(len(text), start, -1))
    return next((piece for piece in pieces if piece in tokens and piece.strip()), None)


def _tokens_by_role(messages: Sequence[Message], encoded: Encoded, arrived: Audit) -> dict[str, int] | None:
    if encoded.token_at is None:
        return None
    counts: Counter[str] = Counter()
    taken = 0
    for place, start, end in arrived.spans:
        first = max(_token(encoded.token_at, range(start, end), 0), taken)
        taken = max(_token(encoded.token_at, range(end - 1, start - 1, -1), first - 1) + 1, first)
        counts[messages[place]["role"]] += taken - first
    counts[TEMPLATE] = len(encoded.ids) - counts.total()
    return dict(counts)


def _token(token_at: Callable[[int], int | None], characters: Iterable[int], otherwise: int) -> int:
    return next((token for token in map(token_at, characters) if token is not None), otherwise)
