"""From raw rows to token ids and masks, as TRL's trainer makes them, and to what became of their texts."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ballast.data import trl
from ballast.data.audit import audit
from ballast.data.chat_tokens import Chat, tokens_by_role, unended, unmarked
from ballast.data.formats import Format
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

VERSION = "ballast-tokens-3"
"""Part of the key of the cache: another way of tokenising must not find an old result."""


def tokeniser(layout: Format, tokenizer: Any, options: PrepareOptions, rules: trl.LossRules) -> Tokeniser:
    """Return what turns rows of a format into tokens and masks, as these options say."""
    return Tokeniser(
        problem=layout.check,
        tokenizer=tokenizer,
        chat_template=rules.chat_template,
        text_field=options.dataset_text_field,
        assistant_only=options.assistant_only_loss,
        ends=frozenset({*tokenizer.get_added_vocab(), *tokenizer.all_special_tokens}),
    )


@dataclass(frozen=True)
class Tokenised:
    """A row as tokens, and what became of its texts.

    Attributes:
        place: of the row among those given.
        columns: ``input_ids``, with ``completion_mask`` of rows with a prompt, ``assistant_masks`` where the assistant
            alone is trained.
        prompt_is_prefix: whether the tokens begin with those of the prompt alone.
        left_out: kinds of text that the chat template has left out (see `Audit`), each with an example.
        by_role: how many tokens are whose, of chats that are trained as a whole.
    """

    place: int
    columns: dict[str, Any]
    prompt_is_prefix: bool = True
    left_out: Mapping[str, str] = field(default_factory=dict)
    by_role: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Texts:
    """A row as text, and what it is called."""

    place: int
    called: str
    whole: Rendered
    prompt: Rendered | None
    chat: Chat | None = None


@dataclass(frozen=True)
class _Tokens:
    """A row as tokens, with a mask of the assistant's where these alone are trained."""

    encoded: Encoded
    mask: list[int] | None = None


@dataclass(frozen=True)
class Tokeniser:
    """Turns rows into tokens and masks, whole, and tells what became of their texts.

    Rows without a message of the assistant are left out where only its text is trained: there is nothing to mark.
    """

    problem: Callable[[Row], str | None]
    tokenizer: Any
    chat_template: str | None
    text_field: str
    assistant_only: bool
    ends: frozenset[str]

    def __call__(self, rows: Sequence[Row], called: Sequence[str]) -> list[Tokenised]:
        """Return the rows as tokens; `called` says what each is called.

        Raises:
            BallastError: naming the first row that does not fit its format, cannot be tokenised, or of which a trained
                message is gone.
        """
        read = (self._read(row, place, name) for place, (row, name) in enumerate(zip(rows, called, strict=True)))
        texts = [one for one in read if one is not None]
        whole = self._masked(texts) if self.assistant_only else self._encoded(texts)
        prompts = iter(encode([one.prompt for one in texts if one.prompt is not None], self.tokenizer))
        return [
            self._tokenised(one, tokens, None if one.prompt is None else next(prompts).ids)
            for one, tokens in zip(texts, whole, strict=True)
        ]

    def _read(self, row: Row, place: int, called: str) -> _Texts | None:
        try:
            if problem := self.problem(row):
                raise BallastError(problem)
            messages = conversation(row)
            if self.assistant_only and not any(one["role"] == "assistant" for one in messages or ()):
                return None
            prompt = render_prompt(row, self.tokenizer, self.chat_template) if "prompt" in row else None
            if messages is None:
                return _Texts(place, called, self._plain(row, prompt), prompt)
            whole, chat = self._chat(row, messages, prompt)
            return _Texts(place, called, whole, prompt, chat)
        except Exception as error:  # a template may raise anything
            reason = " ".join(str(error).split()) or type(error).__name__
            told = reason if isinstance(error, BallastError) else f"cannot be tokenised: {reason}"
            raise BallastError(f"{called}: {told}") from error

    def _plain(self, row: Row, prompt: Rendered | None) -> Rendered:
        text, end = row[self.text_field] if prompt is None else row["completion"], self.tokenizer.eos_token
        before, ended = prompt.text if prompt else "", text if text.endswith(end) else text + end
        return Rendered(before + ended, special=True)

    def _chat(self, row: Row, messages: list[dict[str, Any]], prompt: Rendered | None) -> tuple[Rendered, Chat]:
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
        return whole, Chat(messages, options, whole.text, arrived)

    def _encoded(self, texts: Sequence[_Texts]) -> list[_Tokens]:
        return [_Tokens(encoded) for encoded in encode([one.whole for one in texts], self.tokenizer)]

    def _masked(self, texts: Sequence[_Texts]) -> list[_Tokens]:
        """Return tokens with the mask that the template's generation markers give; rows with the same options at once.

        Raises:
            BallastError: no token of a row is marked.
        """
        alike: dict[str, dict[int, Chat]] = {}
        for place, one in enumerate(texts):
            if one.chat is not None:
                alike.setdefault(json.dumps(one.chat.options), {})[place] = one.chat
        found: dict[int, _Tokens] = {}
        for chats in alike.values():
            made = self.tokenizer.apply_chat_template(
                [chat.messages for chat in chats.values()],
                tokenize=True,
                return_dict=True,
                return_assistant_tokens_mask=True,
                tokenizer_kwargs={"verbose": False},
                **next(iter(chats.values())).options,
            )
            for n, place in enumerate(chats):
                encoded = Encoded(made["input_ids"][n], partial(made.char_to_token, n))
                found[place] = _Tokens(encoded, made["assistant_masks"][n])
        unmarked = next((place for place, tokens in found.items() if 1 not in (tokens.mask or ())), None)
        if unmarked is not None:
            raise BallastError(
                f"{texts[unmarked].called}: cannot be tokenised: assistant_only_loss=True, but the chat template "
                "marks no token of its assistant messages; put {% generation %}...{% endgeneration %} round the "
                "assistant's text, or remove the row"
            )
        return [found[place] for place in range(len(texts))]

    def _tokenised(self, one: _Texts, tokens: _Tokens, prompt: list[int] | None) -> Tokenised:
        ids, mask, chat = tokens.encoded.ids, tokens.mask, one.chat
        columns: dict[str, Any] = {"input_ids": ids}
        shared = 0 if prompt is None else trl.common_prefix_length(prompt, ids)
        if prompt is not None:
            columns["completion_mask"] = [0] * shared + [1] * (len(ids) - shared)
        if mask is not None:
            columns["assistant_masks"] = mask
        prefix = prompt is None or shared == len(prompt)
        if chat is None:
            return Tokenised(one.place, columns, prefix)
        found = chat.arrived.left_out | unended(chat, self.tokenizer.eos_token, self.ends)
        found |= {} if mask is None else unmarked(chat, tokens.encoded, mask)
        trains_all = prompt is None and mask is None
        by_role = tokens_by_role(chat, tokens.encoded) if trains_all else {}
        return Tokenised(
            one.place, columns, prefix, {what: f"{one.called}: {text}" for what, text in found.items()}, by_role
        )
