"""Which regime the demonstrations are: does the start know what they teach, or do they teach what it does not know?"""

from __future__ import annotations

from dataclasses import dataclass

from ballast.advise.support import Support

STRONG, WEAK, UNKNOWN = "strong", "weak", "unknown"


@dataclass(frozen=True)
class Rule:
    """Limits on the median row: the share of its tokens that is supported, and the share that is contradicted.

    The median row, since flaws sit in some rows and what is new to the start sits in all of them.
    """

    strong_supported: float
    strong_contradicted: float
    weak_supported: float
    weak_contradicted: float
    fewest_rows: int

    def __str__(self) -> str:
        return (
            f"strong: in the median row at least {self.strong_supported:.0%} of the tokens have u at or above the "
            f"threshold and at most {self.strong_contradicted:.1%} are contradicted; weak: below "
            f"{self.weak_supported:.0%} or above {self.weak_contradicted:.1%}; between them, or with fewer than "
            f"{self.fewest_rows} rows: unknown"
        )


RULE = Rule(
    strong_supported=0.85,
    strong_contradicted=0.01,
    weak_supported=0.75,
    weak_contradicted=0.03,
    fewest_rows=20,
)


@dataclass(frozen=True)
class Regime:
    """``strong``, ``weak`` or ``unknown``, why, and what it means for the choice of an objective."""

    name: str
    reasons: tuple[str, ...]
    meaning: str


MEANING = {
    STRONG: "the start supports the typical row, so objectives that drop or discount what it does not support lose "
    "little and are spared flaws: expect prift-mass above sft",
    WEAK: "the typical row holds tokens that the start does not support, so this is what training is for, and "
    "objectives that drop or discount them would not learn it: expect prift-mass below sft",
    UNKNOWN: "the scores do not say whether prift-mass or sft is better here: compare both on a few hundred rows",
}


def regime(found: Support, rule: Rule = RULE) -> Regime:
    """Return the regime by the rule, with the figures that decided."""
    supported, against = found.typical_row["supported"], found.typical_row["contradicted"]
    figures = (
        f"{supported:.1%} of the median row's tokens have u at or above {found.threshold:g}",
        f"{against:.1%} are contradicted",
    )
    if found.rows < rule.fewest_rows:
        few = f"{found.rows} rows, of which no row can be called typical; the rule needs {rule.fewest_rows}"
        return Regime(UNKNOWN, (few,), MEANING[UNKNOWN])
    name = UNKNOWN
    if supported >= rule.strong_supported and against <= rule.strong_contradicted:
        name = STRONG
    elif supported < rule.weak_supported or against > rule.weak_contradicted:
        name = WEAK
    return Regime(name, figures, MEANING[name])
