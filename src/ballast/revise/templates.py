"""The texts that are asked of a model to revise: pieces of text and placeholders, from ballast or a YAML file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Any

from ballast.data.messages import last_text
from ballast.errors import BallastError, suggest
from ballast.options import shown
from ballast.revise.options import LoopOptions

Row = Mapping[str, Any]

PLACEHOLDERS = ("prompt", "draft", "feedback", "history", "completion")
DEFAULTS = {
    "draft": "{prompt}",
    "feedback": (
        "{prompt}\n\nAn answer:\n{draft}\n\nCheck this answer step by step. If every step is right, write [correct]. "
        "Otherwise say which step is wrong and what to do about it."
    ),
    "refine": ("{prompt}\n\nAn earlier answer:\n{draft}\n\nWhat was said of it:\n{feedback}\n\nWrite a better answer."),
    "hinted": (
        "{prompt}\n\nAn earlier answer:\n{draft}\n\nWhat was said of it:\n{feedback}\n\nA right answer:\n{completion}"
        "\n\nSolve the problem again in your own words."
    ),
    "blind": "{prompt}\n\nAn earlier answer:\n{draft}\n\nWrite a better answer.",
    "turn": "{draft}\n\n{feedback}\n\n",
    "right": "The answer is right.",
    "wrong": "The answer is wrong.",
    "reviser": (
        "<task>\n{prompt}\n</task>\n<answer>\n{draft}\n</answer>\nSay [Major Revise], [Minor Revise] or [No Revise], "
        "then the answer.\n"
    ),
    "major": "[Major Revise]\n",
    "minor": "[Minor Revise]\n",
    "no": "[No Revise]",
}
"""`refine` is `hinted` with a hint and `blind` without feedback, unless the file has one."""
PLAIN = ("right", "wrong", "major", "minor", "no")
ALLOWED = {
    "draft": ("prompt",),
    "feedback": ("prompt", "draft", "history", "completion"),
    "turn": ("draft", "feedback"),
    "reviser": ("prompt", "draft"),
    **dict.fromkeys(PLAIN, ()),
}
"""Placeholders of each text; of `refine` all."""
NEEDED = {"draft": ("prompt",), "feedback": ("prompt", "draft"), "refine": ("prompt",), "reviser": ("prompt", "draft")}


@dataclass(frozen=True)
class Template:
    """A text with placeholders: pairs of what stands before a placeholder and its name, None at the end."""

    pieces: tuple[tuple[str, str | None], ...]

    @property
    def names(self) -> frozenset[str]:
        """Return the placeholders in it."""
        return frozenset(name for _, name in self.pieces if name is not None)

    def fill(self, **values: str) -> str:
        """Return the text with values in place of placeholders; braces within a value stand for themselves."""
        return "".join(text + (values[name] if name is not None else "") for text, name in self.pieces)


@dataclass(frozen=True)
class Templates:
    """The texts of one way to revise, see `DEFAULTS`.

    Attributes:
        texts: as they are written, by key: what revisions depend on.
    """

    texts: Mapping[str, str]

    def fill(self, key: str, **values: str) -> str:
        """Return one text with these values in place of its placeholders."""
        return parse(self.texts[key]).fill(**values)

    def names(self, key: str) -> frozenset[str]:
        """Return the placeholders in one text."""
        return parse(self.texts[key]).names

    @property
    def labels(self) -> dict[str, str]:
        """Return what a reviser says, by label."""
        return {label: self.texts[label] for label in ("major", "minor", "no")}


def parse(text: str) -> Template:
    """Return a text as a template; ``{{`` and ``}}`` stand for braces.

    Raises:
        ValueError: for a brace that is left open, or a placeholder with a format.
    """
    pieces = []
    for before, name, format_spec, conversion in Formatter().parse(text):
        if format_spec or conversion:
            raise ValueError(f"{{{name}}} has a format, which texts have no use for")
        pieces.append((before, name))
    return Template(tuple(pieces))


def load_templates(options: LoopOptions, *, hinted: bool = False) -> Templates:
    """Return ballast's texts with those of the options' file over them.

    Args:
        hinted: whether texts may, and `refine` must, show the row's completion.

    Raises:
        BallastError: naming the file, the text and the placeholder that cannot be used.
    """
    given = {} if options.templates is None else _read(Path(options.templates))
    default = "hinted" if hinted else "blind" if _is_blind(options) else "refine"
    texts = {key: text for key, text in DEFAULTS.items() if key not in ("hinted", "blind")}
    texts |= {"refine": DEFAULTS[default], **given}
    for key in used(options):
        if problem := _problem(key, texts[key], options, hinted):
            raise BallastError(f"{options.templates or 'templates'}: {key}: {problem}")
    labels = [texts[label].strip() for label in ("major", "minor", "no")]
    if options.how == "reviser" and len({*labels}) < len(labels):
        raise BallastError(f"{options.templates}: major, minor and no: two labels are the same text; change one")
    return Templates({key: texts[key] for key in used(options)})


def used(options: LoopOptions) -> tuple[str, ...]:
    """Return the keys of the texts that a way to revise reads."""
    if options.how == "reviser":
        return ("draft", "reviser", "major", "minor", "no")
    return {
        "model": ("draft", "feedback", "refine", "turn"),
        "verifier": ("draft", "refine", "turn", "right", "wrong"),
        "none": ("draft", "refine", "turn"),
    }[options.feedback]


def question(row: Row) -> str:
    """Return what `{prompt}` stands for: the prompt, of a chat its last message."""
    return last_text(row["prompt"])


def asking(row: Row, text: str) -> Row:
    """Return a row that asks `text` instead of its prompt's last message, or of its whole text."""
    prompt = row["prompt"]
    return {**row, "prompt": text if isinstance(prompt, str) else [*prompt[:-1], {**prompt[-1], "content": text}]}


def _is_blind(options: LoopOptions) -> bool:
    return options.how == "self-refine" and options.feedback == "none"


def _read(path: Path) -> Mapping[str, str]:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    known = tuple(key for key in DEFAULTS if key not in ("hinted", "blind"))
    try:
        found = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise BallastError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    except YAMLError as error:
        raise BallastError(f"{path}: no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict) or not found:
        raise BallastError(f"{path}: must hold texts by name ({', '.join(known)}); got {shown(found)}")
    for key, text in found.items():
        if key not in known:
            raise BallastError(f"{path}: {shown(key)}: unknown text{suggest(str(key), known)}")
        if not isinstance(text, str) or not text.strip():
            raise BallastError(f"{path}: {key}: must be text that is not blank; got {shown(text)}")
    return found


def _problem(key: str, text: str, options: LoopOptions, hinted: bool) -> str | None:
    try:
        names = parse(text).names
    except ValueError as error:
        return f"{' '.join(str(error).split())}; write {{{{ and }}}} for braces"
    allowed = ALLOWED.get(key, PLACEHOLDERS)
    if not hinted and "completion" in names & set(allowed):
        return "{completion} shows the right answer; set revise.hint: completion, or take it out"
    if unknown := sorted(names - set(allowed)):
        return f"unknown placeholder {{{unknown[0]}}}; known: {_listed(allowed) or 'none'}"
    if lacking := [name for name in NEEDED.get(key, ()) if name not in names]:
        return f"has no {{{lacking[0]}}}, so the model would not see it; put it in"
    if key == "refine" and _is_blind(options) and "feedback" in names:
        return "has {feedback}, which feedback: none leaves empty; take it out, or choose a feedback"
    if key == "refine" and not _is_blind(options) and not names & {"feedback", "history"}:
        return "has neither {feedback} nor {history}, so the feedback would go unread; put one in, or feedback: none"
    if key == "refine" and hinted and "completion" not in names:
        return "has no {completion}, so the hint would go unread; put it in, or hint: none"
    return None


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"{{{name}}}" for name in names)
