"""Draft, feedback, revision, again: the loop of both methods. What writes and what judges are given to it.

Source: Self-Refine, arXiv:2303.17651, algorithm 1; SEFT, arXiv:2406.10813 (one round with a reviser). No answer of a
row depends on another row: a row's texts are asked for by its place and by a step, 0 being the draft's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from ballast.revise.labels import read_reply
from ballast.revise.options import Label, LoopOptions
from ballast.revise.templates import Templates, asking, question

Row = Mapping[str, Any]


class Written(Protocol):
    """What a model wrote, as `ballast.evaluation.Completion`."""

    @property
    def text(self) -> str: ...

    @property
    def tokens(self) -> int: ...

    @property
    def ended(self) -> bool: ...

    @property
    def ids(self) -> tuple[int, ...]: ...


@dataclass(frozen=True)
class Version:
    """One answer to a prompt.

    Attributes:
        text: the answer.
        ended: whether it ended by itself; a given answer has.
        reward: the verifier's score, 0 … 1, None where nothing was judged.
        feedback: what was then said of it, None where nothing was asked.
        tokens: of the text that it was read from, a reviser's label included; 0 of a given answer.
        ids: of an answer that was sampled as it stands; empty of others.
    """

    text: str
    ended: bool = True
    reward: float | None = None
    feedback: str | None = None
    tokens: int = 0
    ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Revised:
    """What became of one row.

    Attributes:
        versions: the draft, then its revisions.
        label: what a reviser said of the draft; None of others, and where it was not asked.
        spent: tokens that were sampled, the draft's too.
        no_room: whether a text did not fit the model's context, so that the last version was kept.
    """

    versions: tuple[Version, ...]
    label: Label | None = None
    spent: int = 0
    no_room: bool = False

    @property
    def draft(self) -> Version:
        """Return the first version."""
        return self.versions[0]

    @property
    def last(self) -> Version:
        """Return the last version, which need not be the best."""
        return self.versions[-1]

    @property
    def best(self) -> int:
        """Return the place of the version that scored best, of the earliest of equals."""
        return max(range(len(self.versions)), key=lambda place: self.versions[place].reward or 0.0)


Asked = Sequence[tuple[int, Row]]
Write = Callable[[Asked, int], "Sequence[Written | None]"]
"""Answers rows, each with its place, at a step; None for a row whose prompt leaves no room for an answer."""
Judge = Callable[[Sequence[Version], Sequence[Row]], Sequence["float | None"]]
"""Scores versions of rows, None where there is no verifier."""


@dataclass
class _State:
    row: Row
    place: int
    done: Revised
    open: bool = True

    def keep(self, *, no_room: bool = False) -> None:
        self.done, self.open = replace(self.done, no_room=no_room), False

    def say(self, feedback: str, tokens: int = 0) -> None:
        *before, last = self.done.versions
        versions = (*before, replace(last, feedback=feedback))
        self.done = replace(self.done, versions=versions, spent=self.done.spent + tokens)


def sampled(found: Written) -> Version:
    """Return what was sampled as a version of its own."""
    return Version(found.text, found.ended, tokens=found.tokens, ids=tuple(found.ids))


def revise(
    rows: Sequence[Row],
    drafts: Sequence[Version],
    options: LoopOptions,
    templates: Templates,
    *,
    write: Write,
    judge: Judge,
    places: Sequence[int] | None = None,
) -> list[Revised]:
    """Return what becomes of each row's draft.

    Args:
        rows: with ``prompt``, and ``completion`` where texts show it.
        drafts: one for each row.
        write: the model's, or a reviser's, texts; asked at steps 2t + 1 for feedback and 2t + 2 for revision t.
        judge: scores versions; asked once for each.
        places: of the rows, by which they are asked for; 0, 1, … where absent.
    """
    judged = _judged(drafts, rows, judge)
    states = [
        _State(row, place, Revised((draft,), spent=draft.tokens))
        for place, row, draft in zip(places or range(len(rows)), rows, judged, strict=True)
    ]
    turn = _with_reviser if options.how == "reviser" else _self_refine
    for number in range(options.rounds):
        if opened := [one for one in states if one.open]:
            turn(opened, number, options, templates, write, judge)
    return [one.done for one in states]


def _self_refine(
    states: list[_State], number: int, options: LoopOptions, templates: Templates, write: Write, judge: Judge
) -> None:
    """Take one turn: stop what is right, say what is wrong, write anew."""
    for one in states:
        if options.stop == "verifier" and _is_right(one.done.last):
            one.keep()
    if options.feedback == "model":
        _critique(states, number, options, templates, write)
    elif options.feedback == "verifier":
        for one in _open(states):
            one.say(templates.texts["right" if _is_right(one.done.last) else "wrong"])
    found = _ask(states, 2 * number + 2, "refine", templates, write)
    _add(found, [sampled(written) for _, written in found], judge)


def _critique(states: list[_State], number: int, options: LoopOptions, templates: Templates, write: Write) -> None:
    for one, written in _ask(states, 2 * number + 1, "feedback", templates, write):
        one.say(written.text, written.tokens)
        if options.stop == "words" and any(word in written.text for word in options.stop_words):
            one.keep()


def _with_reviser(
    states: list[_State], number: int, options: LoopOptions, templates: Templates, write: Write, judge: Judge
) -> None:
    """Let the reviser say how much is to be done, and do it."""
    revised: list[tuple[_State, Written]] = []
    versions = []
    for one, written in _ask(states, 2 * number + 2, "reviser", templates, write):
        label, text = read_reply(written.text, templates.labels)
        one.done = replace(one.done, label=one.done.label or label)
        if label in ("no", "unparsed"):
            one.done = replace(one.done, spent=one.done.spent + written.tokens)
            one.keep()
        else:
            revised.append((one, written))
            versions.append(Version(text, written.ended, tokens=written.tokens))
    _add(revised, versions, judge)


def _ask(states: list[_State], step: int, key: str, templates: Templates, write: Write) -> list[tuple[_State, Written]]:
    """Return what is written of the rows that are still open; one that does not fit the context keeps what it has."""
    asked = _open(states)
    rows = [(one.place, asking(one.row, templates.fill(key, **_values(one, key, templates)))) for one in asked]
    found = []
    for one, written in zip(asked, write(rows, step) if rows else (), strict=True):
        if written is None:
            one.keep(no_room=True)
        else:
            found.append((one, written))
    return found


def _values(state: _State, key: str, templates: Templates) -> dict[str, str]:
    names, versions = templates.names(key), state.done.versions
    # A critique is of the last version, so what was said before it is all of the history.
    past = versions[:-1] if key == "feedback" else versions
    values: dict[str, Callable[[], str]] = {
        "prompt": lambda: question(state.row),
        "draft": lambda: versions[-1].text,
        "feedback": lambda: versions[-1].feedback or "",
        "history": lambda: "".join(templates.fill("turn", draft=one.text, feedback=one.feedback or "") for one in past),
        "completion": lambda: question({"prompt": state.row["completion"]}),
    }
    return {name: values[name]() for name in names}


def _add(found: Sequence[tuple[_State, Written]], versions: Sequence[Version], judge: Judge) -> None:
    judged = _judged(versions, [one.row for one, _ in found], judge)
    for (one, written), version in zip(found, judged, strict=True):
        versions_now = (*one.done.versions, version)
        one.done = replace(one.done, versions=versions_now, spent=one.done.spent + written.tokens)


def _judged(versions: Sequence[Version], rows: Sequence[Row], judge: Judge) -> list[Version]:
    if not versions:
        return []
    return [replace(one, reward=reward) for one, reward in zip(versions, judge(versions, rows), strict=True)]


def _is_right(version: Version) -> bool:
    return version.reward is not None and version.reward >= 1


def _open(states: Iterable[_State]) -> list[_State]:
    return [one for one in states if one.open]
