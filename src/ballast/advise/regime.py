"""Which regime the demonstrations are: whether the base model knows what they teach."""

from __future__ import annotations

from dataclasses import dataclass

from ballast.advise.support import Support

STRONG, WEAK, UNKNOWN = "strong", "weak", "unknown"


@dataclass(frozen=True)
class Rule:
    """Limits on the median row and on the loss.

    The median row, since flaws sit in some rows and what is new to the base model sits in all of them: the share of its
    tokens that is supported, and the share that is contradicted. ``flawed_loss`` is the share of sft's loss on
    contradicted tokens from which a gate has something to spare the model.
    """

    strong_supported: float
    strong_contradicted: float
    weak_supported: float
    weak_contradicted: float
    flawed_loss: float
    fewest_rows: int

    def __str__(self) -> str:
        return (
            f"strong if in the median row at least {self.strong_supported:.0%} of the tokens have u at or above the "
            f"threshold and at most {self.strong_contradicted:.1%} are contradicted; weak if less than "
            f"{self.weak_supported:.0%} or more than {self.weak_contradicted:.1%}; unknown between them and with fewer "
            f"than {self.fewest_rows} rows; a strong prior is of use where at least {self.flawed_loss:.0%} of sft's "
            "loss lies on contradicted tokens"
        )


RULE = Rule(
    strong_supported=0.85,
    strong_contradicted=0.005,
    weak_supported=0.6,
    weak_contradicted=0.015,
    flawed_loss=0.2,
    fewest_rows=20,
)


@dataclass(frozen=True)
class Tested:
    """How the rule did on settings of the lab that it was not chosen on: docs/evidence/advise/verdicts.json.

    Settings where training showed nothing count as neither.
    """

    hits: int
    misses: int

    def __str__(self) -> str:
        return (
            f"right on {self.hits} of {self.hits + self.misses} settings of the lab that it was not chosen on, all of "
            "one small model and 2 seeds each: weak evidence"
        )


TESTED = Tested(hits=5, misses=2)


@dataclass(frozen=True)
class Regime:
    """What the rule says.

    Attributes:
        name: ``strong``, ``weak`` or ``unknown``.
        expects: where to expect prift-mass against sft: ``above``, ``equal``, ``below`` or ``unknown``.
        reasons: the figures that decided.
        meaning: the expectation in a sentence.
    """

    name: str
    expects: str
    reasons: tuple[str, ...]
    meaning: str


ABOVE, EQUAL, BELOW = "above", "equal", "below"
MEANING = {
    ABOVE: "the base model supports the typical row and contradicts others, so objectives that drop or discount what "
    "it does not support are spared flaws and lose little: expect prift-mass above sft",
    EQUAL: "the base model supports the typical row and hardly contradicts any, so there is little to be spared: "
    "expect no difference between prift-mass and sft",
    BELOW: "the typical row holds tokens that the base model does not support, so these are what training is for, and "
    "objectives that drop or discount them would not learn them: expect prift-mass below sft",
    UNKNOWN: "the scores do not say whether prift-mass or sft is better here: compare both",
}


def regime(found: Support, rule: Rule = RULE) -> Regime:
    """Return the regime by the rule, with the figures that decided."""
    supported, against = found.typical_row["supported"], found.typical_row["contradicted"]
    figures = (
        f"{supported:.1%} of the median row's tokens have u at or above {found.threshold:g}",
        f"{against:.1%} of them are contradicted",
        f"{found.contradicted_loss:.1%} of sft's loss lies on contradicted tokens",
    )
    if found.rows < rule.fewest_rows:
        few = f"there are {found.rows} rows, of which none can be called typical; the rule needs {rule.fewest_rows}"
        return Regime(UNKNOWN, UNKNOWN, (few,), MEANING[UNKNOWN])
    name, expects = UNKNOWN, UNKNOWN
    if supported >= rule.strong_supported and against <= rule.strong_contradicted:
        name, expects = STRONG, ABOVE if found.contradicted_loss >= rule.flawed_loss else EQUAL
    elif supported < rule.weak_supported or against > rule.weak_contradicted:
        name, expects = WEAK, BELOW
    return Regime(name, expects, figures, MEANING[expects])
