"""The groups of one run: rounds of sampling ahead of the steps that train on them, laid out as micro-batches."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from ballast.data import Collator
from ballast.errors import BallastError
from ballast.evaluation.generation import end_ids
from ballast.groups import (
    ORIGINS,
    Group,
    GroupOptions,
    GroupRows,
    Member,
    SampledGroups,
    advantages,
    sample_groups,
)
from ballast.groups.members import refuse_preparation
from ballast.groups.options import ROUND
from ballast.groups.read import Wanted
from ballast.groups.sampler import scored_groups
from ballast.sharding import fsdp_version, shards_weights
from ballast.stats import GROUP_FIELDS, JUDGED_FIELDS
from ballast.training.group_metrics import GroupSums

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from ballast.data import PrepareOptions
    from ballast.objectives import Objective
    from ballast.protocols import Model
    from ballast.training.config import TrainingConfig

ROW = "row"
"""Column of a prompt's place in the data: all that a batch of prompts holds."""

OF_ANSWERS = (*GROUP_FIELDS, "ref_logprob")
"""Columns that the answers of a group may bring."""

Batch = dict[str, Any]
Draw = Callable[[Sequence[int], int], SampledGroups]
"""Returns the groups of these rows at this optimiser step."""


class RowCollator:
    """Collates prompts into their places in the data, and rows of any other set as `base` does."""

    def __init__(self, base: Collator) -> None:
        self.base = base

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> Batch:
        if ROW in examples[0]:
            return {ROW: torch.tensor([example[ROW] for example in examples])}
        return self.base(examples)


class GroupBatches:
    """Turns batches of prompts into micro-batches of answers, a round of sampling at a time."""

    def __init__(
        self,
        draw: Draw,
        refresh: int,
        columns: tuple[str, ...],
        rows_left: Callable[[int], int] = int,
        **collation: Any,
    ) -> None:
        """Make an empty queue.

        Args:
            draw: samples and judges.
            refresh: optimiser steps that one round serves.
            columns: what batches carry of the answers, from `OF_ANSWERS`.
            rows_left: how many of the prompts of the batch at hand are there for the first time in the epoch.
            collation: arguments of the collator that lays out sequences.
        """
        self._draw = draw
        self._refresh = refresh
        self._rows_left = rows_left
        self._columns = columns
        self._collate = Collator(columns=columns, **collation)
        self._waiting: deque[list[int]] = deque()
        self._groups: dict[int, Group] = {}
        self._resumed: list[list[int]] = []
        self._prompts: Iterator[Batch] | None = None
        self.rounds: list[SampledGroups] = []
        """Rounds that the log has not counted yet."""

    def take(self, prompts: Iterator[Batch], count: int, step: int) -> tuple[list[Batch], list[Group]]:
        """Return the next `count` micro-batches (fewer at the end of an epoch) and the groups in them.

        Rounds do not cross epochs: the first step of one samples again. They may go beyond the last step, so that a run
        that is resumed with more steps is the longer run.
        """
        if prompts is not self._prompts:
            # What an epoch left that was stopped early, or an earlier call of `train`, is an older model's.
            self._waiting.clear()
            self._prompts = prompts
        if not self._waiting:
            self._begin_round(prompts, count, step)
        parts = [self._waiting.popleft() for _ in range(min(count, len(self._waiting)))]
        found = [[self._groups[row] for row in rows] for rows in parts]
        return [self._lay_out(groups) for groups in found], [group for groups in found for group in groups]

    def state(self) -> dict[str, Any]:
        """Return what is left of the round, JSON-able; empty where a new round begins with the next step."""
        rows = sorted({row for part in self._waiting for row in part})
        return {"waiting": list(self._waiting), "groups": [asdict(self._groups[row]) for row in rows]}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on with the round that `state` was taken of: the model that sampled it is gone."""
        self._resumed = [list(rows) for rows in state["waiting"]]
        self._groups = {
            group["row"]: Group(group["row"], tuple(_member(member) for member in group["members"]))
            for group in state["groups"]
        }

    def _begin_round(self, prompts: Iterator[Batch], count: int, step: int) -> None:
        size = len(self._resumed) or count * self._refresh
        # The range first: a batch drawn beyond the round would be lost.
        # One at a time: only while the last is the latest that was drawn, accelerate knows it for the last.
        parts = [self._first_time(batch[ROW].tolist()) for _, batch in zip(range(size), prompts, strict=False)]
        if self._resumed and parts != self._resumed:
            raise BallastError(
                "the prompts that follow the checkpoint are not those its answers were sampled for: data, batch size, "
                "seed or ignore_data_skip have changed; resume with what the run began with"
            )
        self._waiting.extend(parts)
        if self._resumed:
            self._resumed = []
            return
        rows = list(dict.fromkeys(row for part in parts for row in part))
        drawn = self._draw(rows, step) if rows else SampledGroups(())
        self._groups = {group.row: group for group in drawn.groups}
        self.rounds.append(drawn)

    def _first_time(self, rows: list[int]) -> list[int]:
        return rows[: self._rows_left(len(rows))]

    def _lay_out(self, groups: Sequence[Group]) -> Batch:
        """Return the answers of some groups as one padded (or padding-free) micro-batch.

        A rank whose prompts only fill up the last batch takes part in the step with two tokens that are not trained.
        """
        examples = [one for number, group in enumerate(groups) for one in _examples(number, group)]
        nothing = {"input_ids": [0, 0], "labels": [-100, -100], **{name: [math.nan] * 2 for name in self._columns}}
        return self._collate(examples or [nothing])


@dataclass(frozen=True)
class StoredGroups:
    """What `read_groups` read of the file that the options name, so that it is not read again."""

    options: GroupOptions
    groups: Sequence[Group]


class RunGroups:
    """Everything that a run with groups has and one without does not."""

    def __init__(
        self,
        options: GroupOptions,
        *,
        seed: int,
        stored: Sequence[Group] | None = None,
        wanted: Wanted = Wanted(),  # noqa: B008  # frozen
    ) -> None:
        self.options = options
        self.seed = seed
        self.wanted = wanted
        self.columns = ("origin", "group", *(JUDGED_FIELDS * wanted.judged), *(("ref_logprob",) * wanted.scored))
        """What batches carry of the answers beside their tokens."""
        self.rows: GroupRows | None = None
        self.sums = GroupSums()
        self.prepared = False
        self.step_rows: list[int] = []
        """The prompts of the step."""
        self._read = stored
        self._stored: dict[int, Group] = {}
        self._model: Model | None = None
        self._batches: GroupBatches | None = None

    def source(self, dataset: Dataset | None) -> Dataset:
        """Return the rows to train on; those of groups sampled beforehand stand in a file, not in a data set.

        Raises:
            BallastError: if there are both, or neither.
        """
        from datasets import Dataset

        if not self.options.file:
            if not dataset:
                raise BallastError("train_dataset has no rows: groups are made of its prompts")
            return dataset
        if dataset is not None:
            raise BallastError("train_dataset and groups.file are both given, the rows would be ignored; leave one out")
        return Dataset.from_list([{ROW: 0}])

    def prepare(self, dataset: Dataset | None, tokenizer: PreTrainedTokenizerBase, prepared: PrepareOptions) -> Dataset:
        """Tokenise and judge what is given, or read what was sampled beforehand; return the prompts as rows."""
        from datasets import Dataset

        if self.options.file:
            from ballast.groups.read import read_groups

            refuse_preparation(prepared)
            limits = {"max_length": prepared.max_length, "context": prepared.context}
            groups = self._read or read_groups(self.options.file, tokenizer, **limits, wanted=self.wanted)
            _refuse_ignored(self.options)
            self._stored = {group.row: group for group in groups}
            ids = {group.row: group.members[0].ids[: group.members[0].start] for group in groups}
        else:
            assert dataset is not None
            self.rows = GroupRows(dataset, tokenizer, self.options, prepared)
            ids = {row: self.rows.prompt_ids(row) for row in range(len(self.rows))}
        self.prepared = True
        return Dataset.from_list([{ROW: row, "input_ids": list(prompt)} for row, prompt in ids.items()])

    def attach(self, model: Model, collation: Mapping[str, Any], rows_left: Callable[[int], int]) -> None:
        """Sample with this model from now on; see `GroupBatches` for `rows_left`."""
        if self.rows is not None:
            self.rows.check_ends(end_ids(model, self.rows.tokenizer))
        self._model = model
        self._batches = GroupBatches(self._draw, self.options.refresh, self.columns, rows_left, **collation)

    def take(self, prompts: Iterator[Batch], count: int, step: int) -> list[Batch]:
        """Return the micro-batches of one optimiser step."""
        assert self._batches is not None
        batches, groups = self._batches.take(prompts, count, step)
        self.step_rows = [group.row for group in groups]
        self.sums.add_groups(groups)
        self.sums.add_rounds(self._batches.rounds)
        self._batches.rounds.clear()
        return batches

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint needs, empty where it needs nothing."""
        state = self._batches.state() if self._batches is not None else {}
        return state if state.get("waiting") else {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint's state."""
        assert self._batches is not None
        self._batches.restore(state)

    def _draw(self, rows: Sequence[int], step: int) -> SampledGroups:
        if self.rows is None:
            return SampledGroups.stored([self._stored[row] for row in rows])
        assert self._model is not None
        sampled = sample_groups(self._model, self.rows, rows, seed=self.seed, step=step)
        if not self.wanted.scored:
            return sampled
        return scored_groups(self._model, sampled, batch_tokens=self.options.batch_tokens)


def wanted_of(objective: Objective, reference: object) -> Wanted:
    """Return what an objective reads of its groups with this reference."""
    judged = any(name in JUDGED_FIELDS for name in objective.needs)
    return Wanted(objective.origins, judged, scored=isinstance(reference, str) and reference == ROUND)


def run_groups(
    objective: Objective,
    spec: GroupOptions | StoredGroups | Mapping[str, Any] | None,
    args: TrainingConfig,
    reference: object = None,
) -> RunGroups | None:
    """Return what a run needs for its groups, None where its objective does not train on any.

    Raises:
        BallastError: if the objective needs groups and there are none, or the other way round.
    """
    needs = any(name in GROUP_FIELDS for name in objective.needs)
    if spec is None:
        if needs:
            raise BallastError(
                f"objective {objective.name} trains on groups of answers: say how they are made, such as "
                "groups={'verifier': 'math', 'own': 4}"
            )
        return None
    if not needs:
        raise BallastError(
            f"objective {objective.name} trains on demonstrations, so `groups` would be ignored; leave it out"
        )
    given, stored = (spec.options, spec.groups) if isinstance(spec, StoredGroups) else (spec, None)
    options = given if isinstance(given, GroupOptions) else GroupOptions.from_dict(given)
    wanted = wanted_of(objective, reference)
    if problem := options.lacking(objective.name, wanted.origins, judged=wanted.judged):
        raise BallastError(f"groups.{problem[0]}: {problem[1]}")
    if not options.file and options.own and shards_weights(args):
        name = "FSDP" if fsdp_version(args) else "ZeRO-3"
        raise BallastError(
            f"groups.own: a model sharded by {name} cannot sample while it trains: sample beforehand with "
            "`ballast sample`, and train with groups.file"
        )
    return RunGroups(options, seed=args.seed, stored=stored, wanted=wanted)


def _refuse_ignored(options: GroupOptions) -> None:
    """Refuse options that say other than what the answers of a file were sampled with.

    Raises:
        BallastError: naming the first one.
    """
    from ballast.groups.store import NOT_STORED, is_sampled, read_settings

    defaults = GroupOptions().to_dict()
    for file in options.file:
        is_folder = is_sampled(file)
        stored, free = (read_settings(file).groups, NOT_STORED) if is_folder else ({}, ("file",))
        for name, value in options.to_dict().items():
            if name not in free and value not in (defaults[name], stored.get(name, defaults[name])):
                source = f"sampled with {stored.get(name)!r}" if is_folder else "sampled and judged elsewhere"
                raise BallastError(f"groups.{name}: {value!r} would be ignored: {file} was {source}; leave it out")


def _examples(number: int, group: Group) -> list[dict[str, Any]]:
    """Return the answers of the group of this number as rows for the collator, with the columns that there are."""
    rewards = [member.reward for member in group.members if member.reward is not None]
    found = advantages(rewards) if len(rewards) == len(group.members) else None
    examples = []
    for place, member in enumerate(group.members):
        size = len(member.ids)
        one: dict[str, Any] = {
            "input_ids": list(member.ids),
            "labels": [-100] * member.start + list(member.ids[member.start :]),
        }
        of_answer = {"origin": float(ORIGINS.index(member.origin)), "group": float(number)}
        of_answer |= {} if found is None else {"advantage": found[place], "reward": rewards[place]}
        one |= {name: [value] * size for name, value in of_answer.items()}
        if member.ref_logprob is not None:
            one["ref_logprob"] = [math.nan] * member.start + list(member.ref_logprob)
        examples.append(one)
    return examples


def _member(values: Mapping[str, Any]) -> Member:
    scored = values.get("ref_logprob")
    return Member(**{**values, "ids": tuple(values["ids"]), "ref_logprob": None if scored is None else tuple(scored)})
