"""Groups that were sampled beforehand, from folders; or made by the user, from files with one answer a row."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ballast.data.load import load_rows
from ballast.data.messages import last_text, messages_problem
from ballast.data.render import TEMPLATE_OPTIONS, prompt_columns
from ballast.errors import BallastError
from ballast.files import expanded
from ballast.groups.members import Group, Member
from ballast.groups.revised import read_revised
from ballast.groups.store import WHAT_DIFFERS, GroupFolder, is_sampled, read_settings
from ballast.groups.tokenised import tokenise
from ballast.limits import check_length
from ballast.parts import Revisions, has
from ballast.stats import ORIGINS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ballast.protocols import Tokenizer

COLUMNS, REWARD = ("prompt", "origin", "response"), "reward"


@dataclass(frozen=True)
class Wanted:
    """What a run reads of its groups.

    Attributes:
        origins: every group has an answer of each.
        judged: every answer has a reward.
        scored: every answer has the log-probabilities of the model that sampled.
    """

    origins: tuple[str, ...] = ()
    judged: bool = True
    scored: bool = False


def read_groups(
    files: str | Path | Sequence[str | Path],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int | None = None,
    context: int | None = None,
    wanted: Wanted = Wanted(),
) -> list[Group]:
    """Return groups by prompt, of folders that `ballast sample` or `ballast revise` filled and of the user's files.

    Args:
        files: a folder with a manifest; or a Parquet or JSONL file (or a folder of them) with one answer a row and the
            columns ``prompt``, ``origin``, ``response`` and ``reward``; or several, whose groups follow each other with
            numbers that go on, so that a prompt that two of them have makes two groups.
        tokenizer: of the model that trains on them, with the end-of-text token and chat template that training uses.
        max_length: longer sequences are refused; None takes any.
        context: the same of the model's positions.
        wanted: what every group must have.

    Raises:
        BallastError: naming what is missing, damaged or of another tokenizer, with file and row.
    """
    listed = [files] if isinstance(files, (str, Path)) else files
    found: list[Group] = []
    for path in (Path(expanded(str(one))) for one in listed):
        before = len(found)
        groups = _read(path, tokenizer, wanted)
        _check(groups, tokenizer, max_length, context, path)
        _check_wanted(groups, wanted, path)
        found += [replace(group, row=before + place) for place, group in enumerate(groups)]
    return found


def _read(path: Path, tokenizer: PreTrainedTokenizerBase, wanted: Wanted) -> list[Group]:
    from ballast.reference.fingerprint import tokenizer_fingerprint

    if not path.exists():
        raise BallastError(f"{path}: no such file or folder; `ballast sample` fills one")
    if has(path, Revisions.holds):
        return read_revised(path, tokenizer, better="expert" if "expert" in wanted.origins else "teacher")
    if not is_sampled(path):
        return read_file(path, tokenizer, judged=wanted.judged)
    settings = read_settings(path)
    if settings.tokenizer != tokenizer_fingerprint(tokenizer):
        raise BallastError(
            f"{path}: {WHAT_DIFFERS['tokenizer']}, so its token ids would mean other words; sample again"
        )
    return [group for part in GroupFolder(path, settings).read() for group in part.groups]


def _check(
    groups: Sequence[Group], tokenizer: Tokenizer, max_length: int | None, context: int | None, path: Path
) -> None:
    largest = max(tokenizer.get_vocab().values(), default=-1)
    for group in groups:
        for member in group.members:
            if problem := _problem(member, largest, max_length):
                raise BallastError(f"{path}: prompt {group.row + 1}: {problem}")
            check_length(f"{path}: prompt {group.row + 1}", len(member.ids), context)


def _problem(member: Member, largest: int, max_length: int | None) -> str | None:
    if member.origin not in ORIGINS:
        return f"origin {member.origin!r} is none of {', '.join(ORIGINS)}"
    if member.reward is not None and not math.isfinite(member.reward):
        return f"the reward of the {member.origin}'s answer is {member.reward}; rewards are finite numbers"
    if not 0 < member.start < len(member.ids):
        return f"the {member.origin}'s answer has no token to train on"
    if min(member.ids) < 0 or max(member.ids) > largest:
        return f"token id {max(member.ids)} is not in the tokenizer, whose ids end at {largest}: it is another model's"
    if max_length is not None and len(member.ids) > max_length:
        return (
            f"prompt and answer have {len(member.ids)} tokens, training.max_length is {max_length}: cut after they "
            "were judged, they would not deserve their reward; raise it, or leave the answer out"
        )
    scored = member.ref_logprob
    if scored is not None and not (len(scored) == len(member.ids) - member.start and all(map(math.isfinite, scored))):
        return f"the {member.origin}'s answer has not one finite log-probability for each of its tokens; sample again"
    return None


def _check_wanted(groups: Sequence[Group], wanted: Wanted, path: Path) -> None:
    """Refuse groups that lack what the run reads.

    Raises:
        BallastError: naming file and prompt.
    """
    for group in groups:
        place, origins = f"{path}: prompt {group.row + 1}", {member.origin for member in group.members}
        if missing := [origin for origin in wanted.origins if origin not in origins]:
            raise BallastError(
                f"{place}: has no {missing[0]} answer, so there is nothing to compare; add one, or leave the prompt out"
            )
        if wanted.judged and any(member.reward is None for member in group.members):
            raise BallastError(
                f"{place}: nobody has judged its answers, and the objective reads rewards; name a verifier where they "
                "are made"
            )
        if wanted.scored and any(member.ref_logprob is None for member in group.members):
            raise BallastError(
                f"{place}: has no log-probabilities of the model that sampled it, which `reference: round` reads; take "
                "a folder that this version's `ballast sample` filled, or reference: model"
            )


def read_file(path: str | Path, tokenizer: PreTrainedTokenizerBase, *, judged: bool = True) -> list[Group]:
    """Return the groups of a Parquet or JSONL file, or of a folder of them, in the order of their first rows.

    Rows with the same prompt are one group. Prompt and response are both text, or both messages, and are tokenised as a
    demonstration is: a response ends with the end-of-text token. Rewards may be missing unless the answers must be
    `judged`.

    Raises:
        BallastError: naming the file and the column or row that cannot be used.
    """
    rows = load_rows(str(path)).with_format(None)
    needed = (*COLUMNS, REWARD) if judged else COLUMNS
    if lacking := [name for name in needed if name not in rows.column_names]:
        raise BallastError(
            f"{path}: no column {lacking[0]!r} (columns: {', '.join(rows.column_names)}); a file of groups has "
            f"{', '.join(needed)}"
        )
    columns = [name for name in (*COLUMNS, REWARD, *TEMPLATE_OPTIONS) if name in rows.column_names]
    plain = list(rows.select_columns(columns))
    for index, row in enumerate(plain):
        if problem := _row_problem(row, judged):
            raise BallastError(f"{path}: row {index + 1}: {problem}")
    found: dict[str, list[Member]] = {}
    for row, (ids, start) in zip(plain, tokenise(plain, tokenizer, path), strict=True):
        reward = row.get(REWARD)
        member = Member(
            ids, start, row["origin"], None if reward is None else float(reward), last_text(row["response"])
        )
        found.setdefault(json.dumps(prompt_columns(row), sort_keys=True), []).append(member)
    return [Group(number, tuple(members)) for number, members in enumerate(found.values())]


def _row_problem(row: Mapping[str, Any], judged: bool) -> str | None:
    prompt, response, reward = row["prompt"], row["response"], row.get(REWARD)
    if not isinstance(prompt, (str, list)) or not prompt:
        return "the prompt is empty, or neither text nor messages"
    if type(response) is not type(prompt) or not response:
        return f"the response is empty, or not {'text' if isinstance(prompt, str) else 'messages'} like the prompt"
    if isinstance(response, list) and (problem := messages_problem(response, "response")):
        return problem
    if row["origin"] not in ORIGINS:
        return f"origin {row['origin']!r} is none of {', '.join(ORIGINS)}"
    if reward is None and not judged:
        return None
    if isinstance(reward, bool) or not isinstance(reward, (int, float)) or not math.isfinite(reward):
        return f"reward {reward!r} is no finite number"
    return None
