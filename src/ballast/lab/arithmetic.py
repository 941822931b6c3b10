"""Chained additions and subtractions: a task small enough for a laptop, with an exact verifier.

A problem reads ``12+7-5=?`` and is worked from left to right; no result on the way is negative. A completion may be
written in three styles and always gives the answer after ``#``:

- ``steps``:  ``12+7=19;19-5=14#14``
- ``words``:  ``start 12. add 7 now 19. take 5 now 14.#14``
- ``answer``: ``#14``

The embedded base has seen all three in equal parts. Demonstrations are written in ``steps``, some with flaws. The
module imports neither torch nor transformers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import accumulate
from random import Random
from typing import Any

from ballast.errors import BallastError, suggest

LARGEST_TERM = 20
NOISE = 0.15
OFF_STYLE = 0.05
_ANSWER = re.compile(r"0|[1-9][0-9]*")

Row = dict[str, Any]


@dataclass(frozen=True)
class Chain:
    """One problem: the signed terms, the first of them positive, e.g. ``(12, 7, -5)``."""

    terms: tuple[int, ...]

    @property
    def prompt(self) -> str:
        """The problem as the model reads it, e.g. ``12+7-5=?``."""
        return str(self.terms[0]) + "".join(f"{term:+d}" for term in self.terms[1:]) + "=?"

    @property
    def totals(self) -> tuple[int, ...]:
        """The running totals; the first is the first term, the last is the answer."""
        return tuple(accumulate(self.terms))

    @property
    def answer(self) -> str:
        """The final total in decimal digits."""
        return str(self.totals[-1])


def draw_chain(rng: Random, length: int) -> Chain:
    """Draw one problem of ``length`` terms from 1 to 20; a subtraction that would go below zero becomes an addition."""
    terms = [rng.randint(1, LARGEST_TERM)]
    while len(terms) < length:
        size = rng.randint(1, LARGEST_TERM)
        take = rng.random() < 0.5 and size <= sum(terms)
        terms.append(-size if take else size)
    return Chain(tuple(terms))


def _write_steps(chain: Chain, written: Sequence[int]) -> str:
    pairs = zip(chain.totals[:-1], chain.terms[1:], written, strict=True)
    return ";".join(f"{before}{term:+d}={after}" for before, term, after in pairs)


def _steps(chain: Chain) -> str:
    return f"{_write_steps(chain, chain.totals[1:])}#{chain.answer}"


def _words(chain: Chain) -> str:
    moves = zip(chain.terms[1:], chain.totals[1:], strict=True)
    steps = "".join(f" {'add' if term > 0 else 'take'} {abs(term)} now {total}." for term, total in moves)
    return f"start {chain.terms[0]}.{steps}#{chain.answer}"


def _answer(chain: Chain) -> str:
    return f"#{chain.answer}"


STYLES: dict[str, Callable[[Chain], str]] = {"steps": _steps, "words": _words, "answer": _answer}


def solve(chain: Chain, style: str = "steps") -> str:
    """Return the correct completion of a problem in one style.

    Raises:
        BallastError: the style is unknown.
    """
    if style not in STYLES:
        raise BallastError(f"lab style {style!r} is unknown{suggest(style, list(STYLES))}")
    return STYLES[style](chain)


def solve_with_slip(chain: Chain, rng: Random) -> str:
    """Return a completion in ``steps`` with one wrong result that the rest of the chain then ignores.

    The slip is in a step before the last (in the only step of a two-term problem), so that the answer after ``#`` stays
    right: no filter on answers finds the row.
    """
    written = list(chain.totals[1:])
    place = rng.randrange(max(1, len(written) - 1))
    slips = [slip for slip in (-10, -2, -1, 1, 2, 10) if written[place] + slip >= 0]
    written[place] += rng.choice(slips)
    return f"{_write_steps(chain, written)}#{chain.answer}"


def verify(completion: str, row: Mapping[str, Any]) -> float:
    """Return 1.0 when the text from the first ``#`` to the end is exactly the row's ``answer``, else 0.0.

    No ``#``, a second ``#``, spaces, signs, leading zeros, or anything after the number make it 0.0.
    """
    _, mark, tail = completion.partition("#")
    return float(bool(mark) and _ANSWER.fullmatch(tail) is not None and tail == str(row["answer"]))


def read(completion: str, row: Mapping[str, Any]) -> str | None:
    """Return the text from the first ``#`` to the end where it is a number, right or wrong, else None."""
    found = _ANSWER.fullmatch(completion.partition("#")[2])
    return None if found is None else found.group()


# Reads answers off completions, as verifiers of ballast's do.
verify.read = read  # type: ignore[attr-defined]


def problems(
    seed: int, size: int, terms: int | Sequence[int] = (3, 4), exclude: Collection[str] | None = None
) -> list[Row]:
    """Draw ``size`` different problems as rows ``{"prompt", "answer", "terms"}``.

    Args:
        seed: the same seed gives the same rows on every machine.
        terms: number of terms, or several of them drawn with equal chance; 2 to 9 each.
        exclude: prompts that must not come up; by default those of every held-out split.

    Raises:
        BallastError: an option is out of range, or there are not that many different problems.
    """
    chains = _chains(Random(f"problems {seed}"), size, _lengths(terms), held_out() if exclude is None else exclude)
    return [{"prompt": chain.prompt, "answer": chain.answer, "terms": len(chain.terms)} for chain in chains]


def demonstrations(
    seed: int,
    size: int,
    terms: int | Sequence[int] = (3, 4),
    noise: float = NOISE,
    off_style: float = OFF_STYLE,
    exclude: Collection[str] | None = None,
) -> list[Row]:
    """Draw ``size`` worked problems as rows ``{"prompt", "completion", "answer"}``, most of them in ``steps``.

    Exactly ``round(noise * size)`` rows have one wrong intermediate result (`solve_with_slip`) and exactly
    ``round(off_style * size)`` others are correct but in another style; which ones is drawn by seed.

    Args:
        seed, terms, exclude: as for `problems`.
        noise: share of rows with a wrong intermediate result.
        off_style: share of rows in ``words`` or ``answer``.

    Raises:
        BallastError: an option is out of range, or there are not that many different problems.
    """
    for name, share in (("noise", noise), ("off_style", off_style)):
        if not 0 <= share <= 1:
            raise BallastError(f"lab {name}={share!r} is not a share of the rows; give a number from 0 to 1")
    if noise + off_style > 1:
        raise BallastError(
            f"lab noise={noise!r} and off_style={off_style!r} exceed all rows; their sum may be at most 1"
        )
    rng = Random(f"demonstrations {seed}")
    chains = _chains(rng, size, _lengths(terms), held_out() if exclude is None else exclude)
    flawed, odd = round(noise * size), round(off_style * size)
    kinds = ["slip"] * flawed + ["odd"] * min(odd, size - flawed)
    kinds += ["clean"] * (size - len(kinds))
    rng.shuffle(kinds)
    writers: dict[str, Callable[[Chain], str]] = {
        "slip": lambda chain: solve_with_slip(chain, rng),
        "odd": lambda chain: solve(chain, rng.choice(("words", "answer"))),
        "clean": solve,
    }
    return [
        {"prompt": chain.prompt, "completion": writers[kind](chain), "answer": chain.answer}
        for chain, kind in zip(chains, kinds, strict=True)
    ]


def draw_text(rng: Random, styles: Sequence[str], weights: Mapping[int, float], exclude: Collection[str]) -> str:
    """Draw one row of the base's pretraining text: prompt and completion, one style and one length drawn by chance."""
    lengths = list(weights)
    while True:
        chain = draw_chain(rng, rng.choices(lengths, [weights[length] for length in lengths])[0])
        if chain.prompt not in exclude:
            return chain.prompt + solve(chain, rng.choice(styles))


def _lengths(terms: int | Sequence[int]) -> tuple[int, ...]:
    lengths = (terms,) if isinstance(terms, int) else tuple(terms)
    if not lengths or any(not isinstance(length, int) or not 2 <= length <= 9 for length in lengths):
        raise BallastError(f"lab terms={terms!r} is not a number of terms; give 2 to 9, or a list of them")
    return lengths


def _chains(rng: Random, size: int, lengths: Sequence[int], exclude: Collection[str]) -> list[Chain]:
    if not isinstance(size, int) or size < 0:
        raise BallastError(f"lab size={size!r} is not a number of rows; give a whole number from 0")
    seen = set(exclude)
    chains: list[Chain] = []
    for chain in _stream(rng, lengths, attempts=20 * size + 1000):
        if len(chains) == size:
            break
        if chain.prompt not in seen:
            seen.add(chain.prompt)
            chains.append(chain)
    if len(chains) < size:
        raise BallastError(
            f"lab size={size}: only {len(chains)} different problems of {'/'.join(map(str, lengths))} terms came up, "
            "rows would repeat; ask for fewer rows or more terms"
        )
    return chains


def _stream(rng: Random, lengths: Sequence[int], attempts: int) -> Iterator[Chain]:
    return (draw_chain(rng, rng.choice(lengths)) for _ in range(attempts + 1))


@dataclass(frozen=True)
class _Held:
    seed: int
    size: int
    terms: tuple[int, ...]


_HELD: dict[str, _Held] = {
    "test": _Held(seed=1, size=300, terms=(4,)),
    "test-hard": _Held(seed=2, size=300, terms=(5,)),
    "validation": _Held(seed=3, size=200, terms=(3, 4)),
    "forgetting": _Held(seed=4, size=300, terms=(3, 4)),
    # Longer than anything that the base has seen.
    "long-validation": _Held(seed=6, size=200, terms=(6,)),
    "long-test": _Held(seed=7, size=300, terms=(6,)),
}
TRAIN_SEED, TRAIN_SIZE, RL_SIZE = 5, 256, 1024


@dataclass(frozen=True)
class _Demonstrations:
    size: int = TRAIN_SIZE
    terms: tuple[int, ...] = (3, 4)
    repaired: bool = False


_DEMONSTRATIONS: dict[str, _Demonstrations] = {
    "train": _Demonstrations(),
    "train-clean": _Demonstrations(repaired=True),
    "train-few": _Demonstrations(size=64),
    "train-many": _Demonstrations(size=2048),
    "long-train": _Demonstrations(terms=(6,)),
    "long-train-clean": _Demonstrations(terms=(6,), repaired=True),
}
_PROMPTS: dict[str, tuple[int, ...]] = {"rl": (4, 5), "long-rl": (6,)}


@lru_cache(maxsize=1)
def _held_chains() -> dict[str, tuple[Chain, ...]]:
    taken: set[str] = set()
    splits: dict[str, tuple[Chain, ...]] = {}
    for name, held in _HELD.items():
        chains = _chains(Random(f"split {held.seed}"), held.size, held.terms, taken)
        taken.update(chain.prompt for chain in chains)
        splits[name] = tuple(chains)
    return splits


@lru_cache(maxsize=1)
def held_out() -> frozenset[str]:
    """Return the prompts of all splits but ``train``: neither the base's pretraining text nor new rows contain them."""
    return frozenset(chain.prompt for chains in _held_chains().values() for chain in chains)


def _demonstration_rows(wanted: _Demonstrations) -> list[Row]:
    rows = demonstrations(TRAIN_SEED, wanted.size, wanted.terms)
    return [_repaired(row) for row in rows] if wanted.repaired else rows


def _repaired(row: Row) -> Row:
    """Return a row whose steps are right, in the style that it has."""
    chain = Chain(tuple(map(int, re.findall(r"[+-]?\d+", row["prompt"]))))
    return {**row, "completion": solve(chain)} if row["completion"][0].isdigit() else row


def _held_rows(name: str) -> list[Row]:
    return [
        {"prompt": chain.prompt, "completion": solve(chain), "answer": chain.answer} for chain in _held_chains()[name]
    ]


def _forgetting() -> list[Row]:
    # Alternating, so that every prefix of the split holds both styles that demonstrations leave behind.
    styles = ("words", "answer")
    return [
        {"text": chain.prompt + solve(chain, styles[i % 2])} for i, chain in enumerate(_held_chains()["forgetting"])
    ]


_SPLITS: dict[str, Callable[[], list[Row]]] = {
    **{name: partial(_demonstration_rows, wanted) for name, wanted in _DEMONSTRATIONS.items()},
    **{name: partial(problems, TRAIN_SEED, RL_SIZE, terms) for name, terms in _PROMPTS.items()},
    **{name: partial(_held_rows, name) for name in _HELD if name != "forgetting"},
    "forgetting": _forgetting,
}
SPLITS = tuple(_SPLITS)


def split(name: str) -> list[Row]:
    """Return one of the fixed splits.

    Demonstrations, ``{"prompt", "completion", "answer"}``: ``train`` is 256 of 3 to 4 terms with the default flaws;
    ``train-clean`` the same rows with the wrong results put right, ``train-few`` 64 and ``train-many`` 2,048 rows;
    ``long-train`` and ``long-train-clean`` have 6 terms. To ask in reinforcement learning, ``{"prompt", "answer",
    "terms"}``: ``rl``, 1,024 problems of 4 to 5 terms, and ``long-rl`` of 6.

    Held out, disjoint by prompt from all others: ``validation`` (200 rows, 3 to 4 terms), ``test`` (300, 4 terms),
    ``test-hard`` (300, 5 terms), ``long-validation`` (200) and ``long-test`` (300, 6 terms), correct and in ``steps``;
    ``forgetting`` (300 rows) is ``{"text"}`` in the base's other two styles.

    Raises:
        BallastError: the name is unknown.
    """
    if name not in _SPLITS:
        raise BallastError(f"lab split {name!r} is unknown{suggest(name, list(_SPLITS))}")
    return _SPLITS[name]()
