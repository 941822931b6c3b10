"""Three hand-worked tokens per objective: value and gradient."""

import pytest

from ballast import list_objectives
from oracles.cases import RULE_OPTIONS
from oracles.golden import GOLDEN, check_against_golden


@pytest.mark.parametrize("row", GOLDEN, ids=lambda row: row.label)
def test_golden_row(row):
    check_against_golden(row)


def test_every_objective_and_every_rule_has_a_row():
    assert {row.name for row in GOLDEN} == {info.name for info in list_objectives()}
    rules = {
        (row.options.get("rule", "probability"), row.options.get("signal", "reference"))
        for row in GOLDEN
        if row.name == "reweight"
    }
    assert rules == {(rule, signal) for rule in RULE_OPTIONS for signal in ("live", "reference")}
