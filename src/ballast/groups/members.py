"""Answers as token ids with their rewards: those that come with the data, tokenised and judged once."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ballast.data import trl
from ballast.data.messages import last_text, messages_problem, template_problem
from ballast.data.options import PrepareOptions
from ballast.data.prepare import prepare
from ballast.data.prompts import left_out_of_prompts
from ballast.data.readers import from_rows
from ballast.data.render import prompt_columns
from ballast.errors import BallastError
from ballast.evaluation import generation
from ballast.groups.options import GroupOptions
from ballast.stats import ORIGINS
from ballast.verifiers.options import judge
from ballast.verifiers.registry import ScoredBatch, Verifier, check_rows, score_answers

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Member:
    """One answer of a group.

    Attributes:
        ids: token ids of prompt and answer; exactly these are trained on.
        start: place of the answer's first token in `ids`.
        origin: one of `ORIGINS`.
        reward: the verifier's, 0 … 1; None where nothing judged.
        text: the answer as the verifier reads it.
        ended: whether the answer ended by itself.
        ref_logprob: log-probability in nats of each of the answer's tokens under the model as it was when the round
            was sampled; None where it was not asked.
    """

    ids: tuple[int, ...]
    start: int
    origin: str
    reward: float | None
    text: str
    ended: bool = True
    ref_logprob: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Group:
    """The answers to one prompt; `row` is the prompt's place in the data, from 0."""

    row: int
    members: tuple[Member, ...]


@dataclass(frozen=True)
class _Given:
    """An answer that comes with the data, before it is tokenised: text, or messages of the assistant."""

    row: int
    origin: str
    answer: Any

    @property
    def place(self) -> str:
        return f"row {self.row + 1}: the {self.origin}'s answer"

    @property
    def text(self) -> str:
        return last_text(self.answer)


class GroupRows:
    """The prompts of a data set with what their groups have before anything is sampled.

    Attributes:
        rows: the raw rows, as the verifier reads them.
        tokenizer: with the end-of-text token and chat template that training uses.
        options: how groups are made up.
        verify: judges the answers of every origin; None for nobody.
        truncated: answers cut to the maximum length.
        notes: what became of the given answers' texts, as lines to print.
        errors, timeouts: given answers that score 0 because the verifier failed or overran its time.
    """

    def __init__(
        self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase, options: GroupOptions, prepared: PrepareOptions
    ) -> None:
        """Tokenise and judge the given answers.

        Args:
            dataset: rows with ``prompt`` (text or messages), ``completion`` where `options.expert` is 1, perhaps
                ``teachers`` (a list of completions), and what the verifier reads.
            tokenizer: of the model; left as it is.
            options: how groups are made up.
            prepared: how demonstrations are tokenised; sequences are cut at its `limit`.

        Raises:
            BallastError: naming the first row that cannot be used.
        """
        from ballast.data.exact import as_stored

        refuse_preparation(prepared)
        self.options = options
        self.tokenizer = trl.training_tokenizer(tokenizer, prepared)
        self.verify = judge_of(options)
        self.rows: list[dict[str, Any]] = list(as_stored(dataset.with_format(None)))
        check_prompts(self.rows, options)
        if self.verify is not None:
            check_rows(self.verify, self.rows)
        self.truncated = 0
        self._end = "max_length" if prepared.limit == prepared.max_length else "the model's context"
        self.notes: tuple[str, ...] = ()
        given = list(_given(self.rows, options))
        scored = self.judged([(one.text, self.rows[one.row]) for one in given])
        self.errors, self.timeouts = scored.errors, scored.timeouts
        rewards = scored.scores if self.verify is not None else [None] * len(given)
        sequences = self._tokenise(given, prepared)
        self._fixed: list[list[Member]] = [[] for _ in self.rows]
        for one, (ids, start), reward in zip(given, sequences, rewards, strict=True):
            self._fixed[one.row].append(Member(ids, start, one.origin, reward, one.text))
        self._prompt_ids = generation.encode_rows(self.tokenizer, self.rows)
        self.notes += self._left_out({one.row for one in given})
        sizes = [len(ids) for ids in self._prompt_ids]
        check_room(sizes, options, max_length=prepared.max_length, context=prepared.context)

    def __len__(self) -> int:
        return len(self.rows)

    def fixed(self, row: int) -> tuple[Member, ...]:
        """Return the expert's and the teacher's answers to a prompt."""
        return tuple(self._fixed[row])

    def prompt_ids(self, row: int) -> tuple[int, ...]:
        """Return the ids of a prompt as sampling continues it."""
        return self._prompt_ids[row]

    def judged(self, answers: Sequence[tuple[str, Row]]) -> ScoredBatch:
        """Return the verdicts on some answers, none where there is no verifier."""
        return ScoredBatch(()) if self.verify is None else score_answers(self.verify, answers)

    def check_ends(self, ends: set[int]) -> None:
        """Warn where an expert's answer has no token that ends an own one: own answers would never be whole.

        Args:
            ends: ids at which the model's answers end.
        """
        lacking = (
            row
            for row, members in enumerate(self._fixed)
            for member in members
            if member.origin == "expert" and ends.isdisjoint(member.ids[member.start :])
        )
        row = None if self.truncated or not self.options.own else next(lacking, None)
        if row is not None:
            warnings.warn(
                f"row {row + 1}: the expert's answer has none of the tokens that end an own one "
                f"({', '.join(map(str, sorted(ends)))}): a model that learns to end as the expert does is cut off and "
                "scores 0; set training.eos_token to the chat template's end of turn",
                stacklevel=3,
            )

    def lines(self) -> list[str]:
        """Return what the groups consist of, as lines to print."""
        members = [member for group in self._fixed for member in group]
        rewards = {origin: [m.reward for m in members if m.origin == origin] for origin in ORIGINS[:2]}
        parts = [f"{len(found):,} {origin} answers{mean_reward(found)}" for origin, found in rewards.items() if found]
        own = [f"{self.options.own} own answers for each"] if self.options.own else []
        lines = [f"groups: {len(self.rows):,} prompts; {', '.join([*parts, *own])}"]
        if self.truncated:
            lines.append(f"groups: {self.truncated:,} answers truncated to {self._end}")
        return lines + [f"groups: {note}" for note in self.notes]

    def _left_out(self, given: set[int]) -> tuple[str, ...]:
        """Return what a template leaves out of prompts that no given answer was prepared with."""
        bare = [row for row in range(len(self.rows)) if row not in given]
        return left_out_of_prompts([self.rows[row] for row in bare], self.tokenizer, [row + 1 for row in bare])

    def _tokenise(self, given: Sequence[_Given], prepared: PrepareOptions) -> list[tuple[tuple[int, ...], int]]:
        """Return ids and the first trained place of every answer, tokenised as a demonstration is."""
        if not given:
            return []
        options = replace(prepared, max_length=None, context=None, shuffle_dataset=False)
        flat = [{**prompt_columns(self.rows[one.row]), "completion": one.answer} for one in given]
        raw, numbers = from_rows(flat, "groups").dataset, [one.row + 1 for one in given]
        made = prepare(raw, self.tokenizer, options, name="groups", numbers=numbers)
        ready, self.notes = made.dataset, made.report.notes
        if len(ready) != len(given):
            empty = next((one.place for one in given if not one.text), f"one of the {len(given)} given answers")
            raise BallastError(f"{empty} has no token to train on; remove the row, or fill it in")
        sequences = []
        for one, ids, labels in zip(given, ready["input_ids"], ready["labels"], strict=True):
            start = next(place for place, label in enumerate(labels) if label != -100 and place)
            limit = prepared.limit
            if limit is not None and start >= limit:
                raise BallastError(
                    f"row {one.row + 1}: prompt of {start} tokens leaves nothing of the {one.origin}'s answer within "
                    f"{self._end} {limit}; shorten the prompt, or remove the row"
                )
            self.truncated += limit is not None and len(ids) > limit
            sequences.append((tuple(ids[:limit]), start))
        return sequences


def mean_reward(rewards: Sequence[float | None]) -> str:
    """Return `` (mean reward …)`` of the rewards that there are, nothing where there is none."""
    judged = [reward for reward in rewards if reward is not None]
    return f" (mean reward {sum(judged) / len(judged):.3f})" if judged else ""


def judge_of(options: GroupOptions) -> Verifier | None:
    """Return the verifier that the options name."""
    return None if options.verifier is None else judge(options, options.seconds)


def refuse_preparation(prepared: PrepareOptions) -> None:
    """Refuse ways of preparing demonstrations that groups do not have.

    Raises:
        BallastError: naming the setting.
    """
    refused = {
        "packing": (prepared.packing, "the answers of a group are laid out when they are sampled; use padding_free"),
        "truncation_mode": (prepared.truncation_mode != "keep_start", "groups cut at the end; use keep_start"),
        "completion_only_loss": (prepared.completion_only_loss is False, "an advantage is of an answer, not a prompt"),
        "assistant_only_loss": (prepared.assistant_only_loss, "an answer is one completion; leave it out"),
    }
    for name, (is_set, reason) in refused.items():
        if is_set:
            raise BallastError(f"training.{name} does not go with groups: {reason}")


def check_prompts(rows: Sequence[Row], options: GroupOptions) -> None:
    """Refuse rows whose group would lack what the options promise.

    Raises:
        BallastError: naming the first such row.
    """
    columns = list(rows[0]) if rows else []
    if not rows:
        raise BallastError("groups: there are no rows")
    if "prompt" not in columns:
        raise BallastError(
            f"groups: no column 'prompt' (columns: {', '.join(columns)}): a group answers one prompt; give prompt and "
            "completion, or rename with columns"
        )
    for index, row in enumerate(rows):
        if problem := _row_problem(row, options):
            raise BallastError(f"row {index + 1}: {problem}")


def check_room(
    sizes: Sequence[int], options: GroupOptions, *, max_length: int | None = None, context: int | None = None
) -> None:
    """Refuse prompts of these numbers of tokens that leave no room for an answer, None being without bound.

    Raises:
        BallastError: naming the first such row.
    """
    new, option = options.max_new_tokens if options.own else 0, "groups.max_new_tokens"
    cut = "own answers would be cut after they were judged"
    generation.check_room(sizes, new, max_length, option=option, what="training.max_length", why=cut)
    generation.check_room(sizes, new, context, option=option)


def _row_problem(row: Row, options: GroupOptions) -> str | None:
    if not row["prompt"]:
        return "the prompt is empty"
    if options.expert and not row.get("completion"):
        return "no expert's answer ('completion' is missing or empty); fill it in, or set groups.expert to 0"
    teachers = row.get("teachers")
    if teachers is not None and not isinstance(teachers, list):
        return f"'teachers' is {type(teachers).__name__}, not a list of completions"
    kind = type(row["prompt"])
    wrong = next((one for one in teachers or () if not one or not isinstance(one, kind)), None)
    if options.teacher != 0 and wrong is not None:
        return f"'teachers' holds {wrong!r:.40}, not a completion like the prompt ({'text' if kind is str else 'chat'})"
    taken = len(teachers or ()) if options.teacher is None else min(options.teacher, len(teachers or ()))
    if not options.expert and not options.own and not taken:
        return (
            "the group is empty: no expert, no teachers in the row, no own answers; raise groups.own or groups.expert"
        )
    return None if kind is str else _chat_problem(row, options)


def _chat_problem(row: Row, options: GroupOptions) -> str | None:
    """Return what keeps a chat template from writing the prompt and the given answers, or None."""
    chats = [("prompt", row["prompt"]), *([("completion", row["completion"])] if options.expert else [])]
    chats += [("teachers", answer) for answer in (row.get("teachers") or ())[: options.teacher]]
    found = (messages_problem(messages, column) for column, messages in chats)
    return template_problem(row) or next((problem for problem in found if problem), None)


def _given(rows: Iterable[Row], options: GroupOptions) -> Iterable[_Given]:
    for index, row in enumerate(rows):
        if options.expert:
            yield _Given(index, "expert", row["completion"])
        for answer in (row.get("teachers") or ())[: options.teacher]:
            yield _Given(index, "teacher", answer)
