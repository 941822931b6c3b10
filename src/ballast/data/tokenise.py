"""From raw rows to token ids and masks, as TRL's trainer makes them, and to what became of their texts."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

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
from ballast.data.values import PLACE
from ballast.errors import BallastError

if TYPE_CHECKING:
    from datasets import Dataset, Features

VERSION = "ballast-tokens-2"
"""Part of the name under which `datasets` keeps the result: another way of tokenising must not find an old one."""
BATCH = 256


def tokenise(
    dataset: Dataset,
    layout: Format,
    tokenizer: Any,
    options: PrepareOptions,
    rules: trl.LossRules,
    *,
    name: str,
    numbers: Sequence[int],
) -> Dataset:
    """Return ``input_ids`` and masks of raw rows, whole, with what became of their texts.

    Rows without a message of the assistant are left out where only its text is trained: there is nothing to mark.

    Columns: ``place`` of the row in the data, ``completion_mask`` and ``prompt_is_prefix`` of rows with a prompt,
    ``assistant_masks`` where the assistant alone is trained, ``left_out`` (JSON of kinds of text, see `Audit`) and
    ``by_role`` (JSON of token counts) of chats.

    Args:
        numbers: what the rows are called.

    Raises:
        BallastError: naming the first row that does not fit its format, cannot be tokenised, or of which a trained
            message is gone.
    """
    how = _Tokenise(
        problem=layout.check,
        tokenizer=tokenizer,
        chat_template=rules.chat_template,
        text_field=options.dataset_text_field,
        assistant_only=options.assistant_only_loss,
        # Sorted: `datasets` finds what it made before by a hash of all this.
        ends=tuple(sorted({*tokenizer.get_added_vocab(), *tokenizer.all_special_tokens})),
        numbers=numbers,
    )
    return dataset.map(
        how,
        batched=True,
        batch_size=BATCH,
        with_indices=True,
        remove_columns=dataset.column_names,
        features=_features(dataset.column_names, options.assistant_only_loss),
        num_proc=options.num_proc,
        desc=f"Tokenizing {name} dataset",
    )


def _columns(given: Sequence[str], assistant_only: bool) -> dict[str, str]:
    """Return the columns made of those given, and the types of their entries."""
    made = {"input_ids": "int32", "left_out": "string", "by_role": "string", PLACE: "int64"}
    made |= {"completion_mask": "int64", "prompt_is_prefix": "bool"} if "prompt" in given else {}
    return made | ({"assistant_masks": "int64"} if assistant_only else {})


def _features(given: Sequence[str], assistant_only: bool) -> Features:
    from datasets import Features, List, Value

    kinds = {name: Value(kind) for name, kind in _columns(given, assistant_only).items()}
    lists = {name for name, kind in kinds.items() if "int" in kind.dtype and name != PLACE}
    return Features({name: List(kind) if name in lists else kind for name, kind in kinds.items()})


@dataclass(frozen=True)
class _Texts:
    """A row as text, and what it is called."""

    number: int
    whole: Rendered
    prompt: Rendered | None
    chat: Chat | None = None


@dataclass(frozen=True)
class _Tokens:
    """A row as tokens, with a mask of the assistant's where these alone are trained."""

    encoded: Encoded
    mask: list[int] | None = None


@dataclass(frozen=True)
class _Tokenise:
    """What `Dataset.map` calls with columns of rows and their places."""

    problem: Callable[[Row], str | None]
    tokenizer: Any
    chat_template: str | None
    text_field: str
    assistant_only: bool
    ends: tuple[str, ...]
    numbers: Sequence[int]
    version: str = VERSION

    def __call__(self, batch: Mapping[str, list[Any]], places: Sequence[int]) -> dict[str, list[Any]]:
        rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        read = [self._read(row, self.numbers[place]) for row, place in zip(rows, places, strict=True)]
        texts = [one for one in read if one is not None]
        kept = [place for one, place in zip(read, places, strict=True) if one is not None]
        whole = self._masked(texts) if self.assistant_only else self._encoded(texts)
        prompts = encode([one.prompt for one in texts if one.prompt is not None], self.tokenizer)
        out: dict[str, list[Any]] = {name: [] for name in _columns(list(batch), self.assistant_only)}
        for place, one in enumerate(texts):
            columns = {**self._columns(one, whole[place]), PLACE: kept[place]}
            if one.prompt is not None:
                columns |= _completion(prompts[place].ids, whole[place].encoded.ids)
            for name, value in columns.items():
                out[name].append(value)
        return out

    @cached_property
    def _ends(self) -> frozenset[str]:
        return frozenset(self.ends)

    def _read(self, row: Row, number: int) -> _Texts | None:
        try:
            if problem := self.problem(row):
                raise BallastError(problem)
            messages = conversation(row)
            if self.assistant_only and not any(one["role"] == "assistant" for one in messages or ()):
                return None
            prompt = render_prompt(row, self.tokenizer, self.chat_template) if "prompt" in row else None
            if messages is None:
                return self._plain(row, number, prompt)
            return self._chat(row, number, messages, prompt)
        except Exception as error:  # a template may raise anything
            reason = " ".join(str(error).split()) or type(error).__name__
            told = reason if isinstance(error, BallastError) else f"cannot be tokenised: {reason}"
            raise BallastError(f"row {number}: {told}") from error

    def _plain(self, row: Row, number: int, prompt: Rendered | None) -> _Texts:
        text, end = row[self.text_field] if prompt is None else row["completion"], self.tokenizer.eos_token
        before, ended = prompt.text if prompt else "", text if text.endswith(end) else text + end
        return _Texts(number, Rendered(before + ended, special=True), prompt)

    def _chat(self, row: Row, number: int, messages: list[dict[str, Any]], prompt: Rendered | None) -> _Texts:
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
        return _Texts(number, whole, prompt, Chat(messages, options, whole.text, arrived))

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
                f"row {texts[unmarked].number}: cannot be tokenised: assistant_only_loss=True, but the chat template "
                "marks no token of its assistant messages; put {% generation %}...{% endgeneration %} round the "
                "assistant's text, or remove the row"
            )
        return [found[place] for place in range(len(texts))]

    def _columns(self, one: _Texts, tokens: _Tokens) -> dict[str, Any]:
        """Return all columns of a row but those of its prompt."""
        ids, mask, chat = tokens.encoded.ids, tokens.mask, one.chat
        masks = {} if mask is None else {"assistant_masks": mask}
        if chat is None:
            return {"input_ids": ids, "left_out": None, "by_role": None, **masks}
        found = chat.arrived.left_out | unended(chat, self.tokenizer.eos_token, self._ends)
        found |= {} if mask is None else unmarked(chat, tokens.encoded, mask)
        placed = {what: f"row {one.number}: {text}" for what, text in found.items()}
        trains_all = one.prompt is None and mask is None
        return {
            "input_ids": ids,
            "left_out": json.dumps(placed) if placed else None,
            "by_role": json.dumps(tokens_by_role(chat, tokens.encoded)) if trains_all else None,
            **masks,
        }


def _completion(prompt: list[int], ids: list[int]) -> dict[str, Any]:
    shared = trl.common_prefix_length(prompt, ids)
    mask = [0] * shared + [1] * (len(ids) - shared)
    return {"completion_mask": mask, "prompt_is_prefix": shared == len(prompt)}
