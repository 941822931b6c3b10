"""Which metric decides, and which interval is shown of a figure."""

import pytest

import report_records
from ballast.compare.figures import Metric, clipped, deciding
from ballast.compare.numbers import half_or_bounds
from ballast.errors import BallastError
from ballast.records.schema import Estimate
from ballast.records.summary import MetricSummary, Result
from ballast.report.source import load


@pytest.fixture(scope="module")
def summary(tmp_path_factory):
    folder = tmp_path_factory.mktemp("figures") / "lab"
    return load([report_records.comparison(folder, seeds=1, then=None)]).summary


@pytest.mark.parametrize(
    ("name", "share"),
    [
        ("accuracy", True),
        ("accuracy_x", True),
        ("chance", True),
        ("pass@8", True),
        ("mean@4", True),
        ("mixed@8", True),
        ("distinct@8", False),
        ("entropy", False),
        ("nll", False),
        ("surpass@8", False),
    ],
)
def test_shares_are_known_by_their_names(name, share):
    assert Metric("task", name, 1).share == share
    wide = Estimate(value=0.5, n=3, low=-0.2, high=1.3, level=0.95, method="t-seeds")
    value = clipped(Result(values=(), over_seeds=wide, over_items=None, over_both=None), Metric("task", name, 1))
    assert (value.low, value.high) == (0.0, 1.0 if share else 1.3)


@pytest.mark.parametrize(
    ("wanted", "metric"),
    [
        (None, Metric("greedy", "accuracy", 1)),
        ("pass@4", Metric("sampled", "pass@4", 1)),
        ("forgetting/nll", Metric("forgetting", "nll", -1)),
    ],
)
def test_the_metric_asked_for_decides_else_the_one_that_chose_the_rates(summary, wanted, metric):
    assert deciding(summary, wanted) == metric


@pytest.mark.parametrize("wanted", ["greedy/acuracy", "nonsense"])
def test_an_unknown_metric_is_refused_with_a_suggestion(summary, wanted):
    with pytest.raises(BallastError, match=r"was not measured in these runs; (did you mean|known)"):
        deciding(summary, wanted)


def test_a_metric_without_better_and_worse_cannot_decide(summary):
    [task, *_] = summary.tasks
    entropy = task.model_copy(update={"metrics": {"entropy": MetricSummary(better=None)}})
    with pytest.raises(BallastError, match="no better and worse"):
        deciding(summary.model_copy(update={"tasks": (entropy,)}), "entropy")


@pytest.mark.parametrize(
    ("value", "low", "high", "text"),
    [
        (0.5, 0.488, 0.512, "±.012"),
        (0.5, 0.4880004, 0.5119996, "±.012"),
        (0.35, 0.31, 0.362, ".310–.362"),  # Wilson's and the bootstrap's lie to one side
        (0.0, 0.0, 0.037, ".000–.037"),
        (1.0, 0.963, 1.0, ".963–1.000"),
        (-0.02, -0.05, 0.03, "-.050–.030"),
        (0.1, 0.0984, 0.1014, ".098–.101"),
    ],
)
def test_an_interval_is_written_with_plus_minus_only_where_both_sides_are_equal(value, low, high, text):
    assert half_or_bounds(value, low, high) == text
