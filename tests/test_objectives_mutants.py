"""The golden rows and the oracle can fail: each objective with one thing wrong is caught."""

import pytest

from ballast import list_objectives, objective
from oracles.check import check_against_oracle
from oracles.golden import GOLDEN, check_against_golden
from oracles.mutants import MUTANTS as HOUSE
from oracles.published_mutants import PUBLISHED
from oracles.shaped_mutants import SHAPED

MUTANTS = [*HOUSE, *PUBLISHED, *SHAPED]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{mutant.name}: {mutant.label}")
def test_the_oracle_catches(mutant):
    built = objective(mutant.name, **mutant.options)
    wrong = None if mutant.wrong is None else lambda stats: mutant.wrong(built, stats)
    check_against_oracle(mutant.name, mutant.options, rows=mutant.rows)
    with pytest.raises(AssertionError):
        check_against_oracle(mutant.name, mutant.options, wrong, rows=mutant.rows, spoil=mutant.spoil)


GOLDEN_PAIRS = [
    (mutant, next(row for row in GOLDEN if row.name == mutant.name and row.options == mutant.options))
    for mutant in MUTANTS
    if mutant.wrong is not None
    and not mutant.between
    and any(row.options == mutant.options for row in GOLDEN if row.name == mutant.name)
]


@pytest.mark.parametrize(
    ("mutant", "row"), GOLDEN_PAIRS, ids=[f"{mutant.name}: {mutant.label}" for mutant, _ in GOLDEN_PAIRS]
)
def test_the_golden_row_catches(mutant, row):
    built = objective(mutant.name, **mutant.options)
    with pytest.raises(AssertionError):
        check_against_golden(row, lambda stats: mutant.wrong(built, stats))


def test_every_objective_has_mutants():
    for info in list_objectives():
        assert len({mutant.label for mutant in MUTANTS if mutant.name == info.name}) >= 8
