"""One round of sampling: the model's own answers to some prompts, judged, beside those that come with the data."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ballast.evaluation.generation import Completion, GenerationOptions, Sampler, generate
from ballast.evaluation.scoring import ScoredSequence, sequence_statistics
from ballast.groups.members import Group, GroupRows, Member
from ballast.protocols import Model


@dataclass(frozen=True)
class SampledGroups:
    """Groups in the order of the rows asked for, what went wrong, and the seconds it took.

    Attributes:
        groups: one per row.
        cut_off: own answers that had not ended after ``max_new_tokens``.
        errors, timeouts: own answers that score 0 because the verifier failed or overran its time.
        sampling, scoring: seconds of wall clock that the model and the verifier took.
    """

    groups: tuple[Group, ...]
    cut_off: int = 0
    errors: int = 0
    timeouts: int = 0
    sampling: float = 0.0
    scoring: float = 0.0

    @property
    def own(self) -> int:
        """Number of own answers."""
        return sum(member.origin == "own" for group in self.groups for member in group.members)

    @classmethod
    def stored(cls, groups: Sequence[Group]) -> SampledGroups:
        """Return groups that were sampled beforehand; what is kept of an answer says whether it was cut off."""
        own = [member for group in groups for member in group.members if member.origin == "own"]
        return cls(tuple(groups), cut_off=sum(not member.ended for member in own))


def sample_groups(
    model: Model, rows: GroupRows, indices: Sequence[int], *, seed: int, step: int, sampler: Sampler | None = None
) -> SampledGroups:
    """Return the groups of these rows, their own part sampled by the model as it is.

    An answer depends on `seed`, `step`, its row and its place in the group, not on the other rows of the call. One that
    is cut off scores 0, or with `groups.judge_cut_off` what the verifier makes of its text so far.
    """
    options = rows.options
    if not options.own:
        return SampledGroups(tuple(Group(row, rows.fixed(row)) for row in indices))
    generation = GenerationOptions(
        max_new_tokens=options.max_new_tokens,
        samples=options.own,
        temperature=options.temperature,
        top_p=options.top_p,
        seed=seed,
        batch_tokens=options.batch_tokens,
    )
    started = time.monotonic()
    prompts = [rows.rows[row] for row in indices]
    streams = [(step, row) for row in indices]
    sampled = (sampler or generate)(model, rows.tokenizer, prompts, generation, streams=streams)
    ended = time.monotonic()
    answers = [(row, answer) for row, found in zip(indices, sampled, strict=True) for answer in found]
    judged = [(row, answer) for row, answer in answers if answer.ended or options.judge_cut_off]
    scored = rows.judged([(answer.text, rows.rows[row]) for row, answer in judged])
    rewards = iter(scored.scores)
    own: dict[int, list[Member]] = {row: [] for row in indices}
    for row, answer in answers:
        reward = None if rows.verify is None else next(rewards) if answer.ended or options.judge_cut_off else 0.0
        own[row].append(_member(rows.prompt_ids(row), answer, reward))
    return SampledGroups(
        tuple(Group(row, (*rows.fixed(row), *own[row])) for row in indices),
        cut_off=sum(not answer.ended for _, answer in answers),
        errors=scored.errors,
        timeouts=scored.timeouts,
        sampling=ended - started,
        scoring=time.monotonic() - ended,
    )


def scored_groups(model: Model, sampled: SampledGroups, *, batch_tokens: int) -> SampledGroups:
    """Return the groups with the log-probabilities of all their answers under the model as it is, in eval mode."""
    started = time.monotonic()
    members = [member for group in sampled.groups for member in group.members]
    sequences = [ScoredSequence(member.ids, member.start) for member in members]
    found = iter(sequence_statistics(model, sequences, ("logprob",), batch_tokens=batch_tokens))
    groups = tuple(
        Group(
            group.row, tuple(replace(one, ref_logprob=tuple(next(found)["logprob"].tolist())) for one in group.members)
        )
        for group in sampled.groups
    )
    return replace(sampled, groups=groups, sampling=sampled.sampling + time.monotonic() - started)


def _member(prompt: tuple[int, ...], answer: Completion, reward: float | None) -> Member:
    return Member((*prompt, *answer.ids), len(prompt), "own", reward, answer.text, answer.ended)
