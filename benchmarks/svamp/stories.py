"""One-step story problems from templates: text with numbers, and the expression that answers it.

In a template of ``templates.txt`` ``[x|y]`` is a choice, ``{a}`` ``{b}`` are the numbers of the expression, ``{c}``
``{d}`` numbers that the question does not ask for, ``{N}`` ``{M}`` ``{Q}`` names, ``{he}`` ``{his}`` ``{him}`` pronouns
of the first, ``{t}`` ``{u}`` two sorts of things, ``{k}`` ``{l}`` kinds of one thing, ``{box}`` ``{box1}`` containers,
``{place}`` a place, ``{w}`` ``{w2}`` people or animals.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

HERE = Path(__file__).parent
TEMPLATES, WORDS = HERE / "templates.txt", HERE / "words.txt"
SHARES = {"-": 0.46, "+": 0.24, "/": 0.17, "*": 0.13}
SINGULAR = {"shelves": "shelf", "boxes": "box"}


def read_templates() -> dict[str, list[str]]:
    """Return the templates of each operator."""
    found: dict[str, list[str]] = {}
    for line in TEMPLATES.read_text(encoding="utf-8").splitlines():
        if line.startswith("# "):
            operator = line[2:]
        else:
            found.setdefault(operator, []).append(line)
    return found


def read_words() -> dict[str, list[str]]:
    """Return the words of each sort."""
    lines = (line.split(": ") for line in WORDS.read_text(encoding="utf-8").splitlines())
    return {name: listed.split() for name, listed in lines}


def problems(count: int, seed: int) -> Iterator[dict[str, str | int]]:
    """Yield ``count`` distinct problems with text, expression and answer."""
    source, templates, words = random.Random(f"stories {seed}"), read_templates(), read_words()
    seen: set[str] = set()
    while len(seen) < count:
        operator = source.choices(list(SHARES), list(SHARES.values()))[0]
        a, b = _numbers(operator, source)
        template = source.choice(templates[operator])
        text = _fill(template, a, b, words, source)
        if text in seen:
            continue
        seen.add(text)
        as_told = operator in "-/" or template.index("{a}") < template.index("{b}")
        left, right = (a, b) if as_told else (b, a)
        value = {"+": a + b, "-": a - b, "*": a * b, "/": a // b}[operator]
        yield {"prompt": text, "completion": f"{left}{operator}{right}", "answer": value}


def _numbers(operator: str, source: random.Random) -> tuple[int, int]:
    if operator in "+-":
        top = source.choice((10, 20, 100, 100, 500, 1000))
        small, large = sorted(source.sample(range(2, top + 5), 2))
        return (large, small) if operator == "-" or source.random() < 0.5 else (small, large)
    b = source.choice((source.randint(2, 12), source.randint(2, 99)))
    factor = source.choice((source.randint(2, 12), source.randint(2, 60)))
    return (b * factor, b) if operator == "/" else (b, factor)


def _fill(template: str, a: int, b: int, words: Mapping[str, Sequence[str]], source: random.Random) -> str:
    text = re.sub(r"\[([^\[\]]*)\]", lambda match: source.choice(match[1].split("|")), template)
    is_he = source.random() < 0.5
    first = source.choice(words["he"] if is_he else words["she"])
    others = source.sample([name for name in words["he"] + words["she"] if name != first], 2)
    things, kinds = source.sample(words["things"], 2), source.sample(words["kinds"], 2)
    box = source.choice(words["boxes"])
    values = {
        "a": a, "b": b, "c": _other(a, source), "d": _other(b, source),
        "N": first, "M": others[0], "Q": others[1],
        "he": "he" if is_he else "she", "his": "his" if is_he else "her", "him": "him" if is_he else "her",
        "t": things[0], "u": things[1], "k": kinds[0], "l": kinds[1],
        "box": box, "box1": SINGULAR.get(box, box.removesuffix("s")), "place": source.choice(words["places"]),
        "w": source.choice(words["animals"]), "w2": source.choice(words["animals"][:6]),
    }  # fmt: skip
    text = text.format(**values)
    return re.sub(r"(^|[.?!] )([a-z])", lambda match: match[1] + match[2].upper(), text)


def _other(near: int, source: random.Random) -> int:
    return max(2, round(near * source.uniform(0.3, 2.0)))
