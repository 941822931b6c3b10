"""Advice from scores: figures against naive loops, objectives against formulas, and the rule."""

import json
import math
from dataclasses import dataclass, replace

import numpy as np
import pytest

from ballast import advise
from ballast.advise import contradicted, gather, kept, outliers, regime, support, suspects
from ballast.errors import BallastError
from ballast.objectives import Objective, objective, option
from ballast.stats import TokenStats
from scored import random_tokens, rows_with, scored


def test_gather_reads_rows_in_order():
    rows = [
        {"input_ids": [5, 6, 7, 8], "labels": [-100, -100, 7, 8], "digest": "a"},
        {"input_ids": [5, 6, 7], "labels": [5, -100, 7], "digest": "b"},
    ]
    cache = {"a": 2, "b": 1, "none": 0}

    def lookup(digest):
        size, first = cache[digest], {"a": 0.0, "b": 10.0, "none": 0.0}[digest]
        names = ("ref_logprob", "ref_entropy", "ref_mass", "ref_tied")
        return {name: np.arange(size, dtype=np.float32) + first + 100 * i for i, name in enumerate(names)}

    tokens = gather(rows, lookup)
    # The first label is not trained: nothing predicts it.
    assert tokens.row.tolist() == [0, 0, 1]
    assert tokens.place.tolist() == [2, 3, 2]
    assert tokens.logprob.tolist() == [0.0, 1.0, 10.0]
    assert tokens.entropy.tolist() == [100.0, 101.0, 110.0]
    assert tokens.mass.tolist() == [200.0, 201.0, 210.0]
    assert tokens.tied.tolist() == [300.0, 301.0, 310.0]
    assert tokens.lengths.tolist() == [2, 1]
    assert gather(rows, lookup, ends={8, 9}).end.tolist() == [False, True, False]
    cache["a"] = 3
    with pytest.raises(BallastError, match="row 1: 2 trained tokens"):
        gather(rows, lookup)
    with pytest.raises(BallastError, match="nothing to advise on"):
        gather([], lookup)
    with pytest.raises(BallastError, match="nothing to advise on"):
        gather([{"input_ids": [5, 6], "labels": [5, -100], "digest": "none"}], lookup)


def test_a_row_without_trained_tokens_has_no_mean():
    tokens = replace(scored([2, 3]), ids=(np.arange(3), np.arange(4), np.arange(2)))
    assert tokens.lengths.tolist() == [2, 3, 0]
    assert tokens.row_means(np.ones(5)).tolist() == [1, 1, 0]


def test_support_against_loops():
    tokens = random_tokens()
    found = support(tokens, threshold=0.4)
    by_row = {row: [i for i in range(len(tokens.row)) if tokens.row[i] == row] for row in range(tokens.rows)}
    q = [math.exp(value) for value in tokens.logprob]
    against = [-tokens.logprob[i] - tokens.entropy[i] >= 3 and tokens.entropy[i] <= 1 for i in range(len(q))]
    assert sum(against) > 3
    assert contradicted(tokens).tolist() == against
    assert found.tokens == len(q)
    assert found.mean_probability == pytest.approx(sum(q) / len(q))
    assert found.below_mass == pytest.approx(sum(value < 0.4 for value in tokens.mass) / len(q))
    assert found.below_probability[0.1] == pytest.approx(sum(value < 0.1 for value in q) / len(q))
    assert found.below_probability[0.01] == pytest.approx(sum(value < 0.01 for value in q) / len(q))
    assert found.contradicted == pytest.approx(sum(against) / len(q))
    lost = sum(-tokens.logprob[i] for i in range(len(q)) if against[i])
    assert found.contradicted_loss == pytest.approx(lost / -sum(tokens.logprob))
    shares = [sum(tokens.mass[i] >= 0.4 for i in some) / len(some) for some in by_row.values()]
    assert found.typical_row["supported"] == pytest.approx(np.median(shares))
    assert found.typical_row["probability"] == pytest.approx(
        np.median([np.mean([q[i] for i in s]) for s in by_row.values()])
    )
    assert found.probability[0.5] == pytest.approx(np.median(q))
    assert found.mass[0.9] == pytest.approx(np.quantile(tokens.mass, 0.9))
    assert found.nll == pytest.approx(-tokens.logprob.mean())
    assert found.entropy == pytest.approx(tokens.entropy.mean())


def test_ties_decide_what_is_below():
    tokens = scored([4], mass=0.4, tied=0.2)
    strict, inclusive = support(tokens), support(tokens, ties="inclusive")
    assert (strict.below_mass, inclusive.below_mass) == (1.0, 0.0)
    assert strict.tied == inclusive.tied == 1.0
    assert support(tokens, threshold=0.3).tied == 0.0


def test_what_reaches_the_threshold_is_supported():
    found = support(scored([4], mass=0.5, tied=0.25), threshold=0.5)
    assert (found.typical_row["supported"], found.below_mass) == (1.0, 0.0)
    found = support(scored([4], mass=0.25, tied=0.25), threshold=0.5)
    assert (found.below_mass, found.tied) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("q", "entropy", "expected"),
    [
        (0.001, 0.5, True),
        (0.001, 1.2, False),
        (0.001, 1.0, True),
        (0.1, 0.1, False),
        (math.exp(-3.5), 0.5, True),
        (math.exp(-3.4), 0.5, False),
    ],
)
def test_contradicted_is_unlikely_and_confident(q, entropy, expected):
    tokens = scored([3], q_at={(0, 1): q}, entropy_at={(0, 1): entropy})
    assert contradicted(tokens).tolist() == [False, expected, False]


def test_suspects_are_the_first_of_each_row_the_most_surprising_first():
    tokens = scored([5, 5, 5], q_at={(0, 3): 1e-3, (0, 1): 0.01, (2, 2): 1e-4, (2, 4): 1e-9})
    assert [(one.row, one.place) for one in suspects(tokens)] == [(2, 3), (0, 2)]
    tokens = replace(tokens, mass=tokens.mass - 0.3, tied=tokens.tied + 0.1)
    first = suspects(tokens)[0]
    assert (first.mass, first.entropy) == (0.7, 0.2)
    assert first.probability == pytest.approx(1e-4)
    assert first.excess == pytest.approx(-math.log(1e-4) - 0.2)
    assert suspects(scored([5])) == []
    # A less likely token where the base model is less sure surprises less.
    tokens = scored([5, 5], q_at={(0, 3): 5e-4, (1, 3): 1e-3}, entropy_at={(0, 3): 1.0, (1, 3): 0.1})
    assert [one.row for one in suspects(tokens)] == [1, 0]


def test_outliers_by_robust_deviation():
    low = {(7, token): 0.1 for token in range(6)} | {(3, 0): 0.5}
    wiggle = {(row, 0): 0.9 - 0.002 * row for row in range(30) if row not in (3, 7)}
    tokens = scored([6] * 30, q_at=low | wiggle)
    means = np.array([tokens.probability[tokens.row == row].mean() for row in range(30)])
    deviation = 0.6745 * (means - np.median(means)) / np.median(np.abs(means - np.median(means)))
    found = outliers(tokens)
    assert [one.row for one in found] == [7, 3]
    assert found[0].deviation == pytest.approx(deviation[7])
    assert found[0].mean_probability == pytest.approx(0.1)
    assert found[1].worst[0].place == 1
    assert found[0].tokens == 6
    assert outliers(scored([6] * 30)) == []


@pytest.mark.parametrize(("rows", "found"), [(19, []), (20, [19])])
def test_outliers_need_rows_to_lie_outside_of(rows, found):
    q = {(row, 0): 0.9 - 0.002 * row for row in range(rows - 1)} | {(rows - 1, 0): 0.01}
    assert [one.row + 20 - rows for one in outliers(scored([6] * rows, q_at=q))] == found


def test_an_outlier_lies_more_than_three_and_a_half_deviations_below():
    # Median 0.8, median deviation 0.01.
    q = [0.79] * 10 + [0.8] + [0.81] * 12 + [0.8 - 0.01 * times / 0.6745 for times in (3.4, 3.6)]
    found = outliers(scored([1] * 25, q_at={(row, 0): value for row, value in enumerate(q)}))
    assert [one.row for one in found] == [24]
    assert found[0].deviation == pytest.approx(-3.6)


def by_name(tokens, *specs):
    return {one.name: one for one in kept(tokens, [objective(spec) for spec in specs])}


def test_what_each_objective_keeps_against_formulas():
    tokens = random_tokens(3)
    q, against = tokens.probability, contradicted(tokens)
    weights = {
        "sft": np.ones(len(q)),
        "dft": q,
        "prift-prob": q,
        "prift-mass": (tokens.mass >= 0.5).astype(float),
    }
    found = by_name(tokens, *weights)
    for name, weight in weights.items():
        one, loss = found[name], -weight * tokens.logprob
        assert one.weight_mean == pytest.approx(weight.mean())
        assert one.zero_share == pytest.approx((weight == 0).mean())
        assert one.effective_tokens == pytest.approx(weight.sum() ** 2 / (weight**2).sum())
        assert one.contradicted_share == pytest.approx(loss[against].sum() / loss.sum())
    assert {name: one.known for name, one in found.items()} == {
        "sft": "always",
        "dft": "first step",
        "prift-prob": "always",
        "prift-mass": "always",
    }


def test_eksft_at_the_first_step_selects_by_entropy_alone():
    tokens = scored([10, 10], entropy_at={(0, 2): 1.5, (0, 7): 2.0, (1, 0): 3.0, (1, 9): 2.5})
    found = by_name(tokens, {"name": "eksft", "rho": 0.2})["eksft"]
    assert found.known == "first step"
    assert found.zero_share == pytest.approx(0.2)
    # What is left of a sequence keeps its weight.
    assert found.weight_mean == pytest.approx(1.0)
    assert found.effective_tokens == pytest.approx(16)
    assert "KL" in found.note
    # Within each sequence: all of the first's tokens are less certain than any of the second's.
    first = {(0, place): 2.0 + place for place in range(10)}
    tokens = scored([10, 10], entropy_at=first | {(1, 4): 0.5, (1, 5): 0.4}, q_at={(1, 4): 1e-4, (1, 5): 1e-4})
    assert by_name(tokens, "eksft", "sft")["eksft"].contradicted_share == 0
    assert by_name(tokens, "eksft", "sft")["sft"].contradicted_share > 0.5
    batch = by_name(tokens, {"name": "eksft", "scope": "batch"})["eksft"]
    assert (batch.known, batch.weight_mean) == ("unknown", None)
    assert "micro-batches" in batch.note


def test_ift_weighs_gold_inputs_and_says_so():
    tokens = scored([3], q_at={(0, 0): math.exp(-1), (0, 1): math.exp(-2), (0, 2): math.exp(-3)})
    found = by_name(tokens, {"name": "ift", "gamma": 0.5})["ift"]
    reach = np.array([1 + 0.5 * 2 + 0.25 * 3, 2 + 0.5 * 3, 3.0])
    weight = 3 * reach / reach.sum()
    assert found.known == "first step, gold inputs"
    assert found.effective_tokens == pytest.approx(weight.sum() ** 2 / (weight**2).sum())
    assert "greedy tokens" in found.note


def test_the_end_of_a_turn_is_weighed_and_its_loss_is_warned_of():
    """As with a chat template: an implausible token ends the turn, and a certain line break follows it."""
    tokens = scored([6] * 10, q=0.9, mass=1.0, mass_at={(row, 4): 0.2 for row in range(10)})
    tokens = replace(tokens, end=tokens.place == 5)
    found = by_name(tokens, "sft", "prift-mass", "prift-prob")
    assert [found[name].end_weight for name in found] == [1.0, 0.0, pytest.approx(0.9)]
    assert found["sft"].warning == found["prift-prob"].warning == ""
    warned = found["prift-mass"].warning
    assert warned.startswith("prift-mass: the tokens that end a turn have a mean weight of 0, all tokens of 0.83")
    assert "keep_end" in warned
    assert "\n" not in warned
    saved = by_name(tokens, {"name": "prift-mass", "keep_end": True})["prift-mass"]
    assert (saved.end_weight, saved.warning) == (1.0, "")
    # Without knowing where generation stops the line break is the end, and all is well.
    assert by_name(replace(tokens, end=None), "prift-mass")["prift-mass"].end_weight == 1.0


def test_probabilities_as_weights_are_warned_of_too():
    tokens = scored([6] * 10, q=0.9, q_at={(row, 5): 0.001 for row in range(10)})
    found = by_name(tokens, "prift-prob", "ift")
    assert "mean weight of 0.001" in found["prift-prob"].warning
    assert "begin with sft" in found["prift-prob"].warning
    # The weights of ift carry gradient: they are not what pulls.
    assert found["ift"].warning == ""


def test_gft_cannot_be_known():
    found = by_name(scored([3]), "gft")["gft"]
    assert (found.known, found.weight_mean, found.zero_share, found.effective_tokens) == ("unknown", None, None, None)
    assert "rewards" in found.note


@dataclass(frozen=True)
class Surprise(Objective):
    """Somebody's own objective, whose weight reads the model in training."""

    name = "surprise"
    source = "test"
    power: float = option(1.0, "exponent")

    @property
    def needs(self):
        return ("logprob", "mass")

    def weight(self, stats: TokenStats):
        return stats.require("mass") ** self.power


def test_objectives_of_others_are_asked_too():
    one = kept(scored([4], mass=0.5), [Surprise(2.0)])[0]
    assert (one.known, one.weight_mean) == ("first step", 0.25)
    assert kept(scored([4], mass=0.5), [Surprise(0.0)])[0].known == "always"


@pytest.mark.parametrize(("entropy", "limit"), [(0.2, 0.5), (1.3, 1.0)])
def test_a_gate_on_the_model_in_training_moves_with_it(entropy, limit):
    # The first token is let through and may be stopped later, the second the other way round.
    by_live_entropy = objective("reweight", rule="entropy", signal="live", max_entropy=limit)
    assert kept(scored([4], entropy=entropy), [by_live_entropy])[0].known == "first step"


def test_a_gate_on_live_ties_moves_with_them():
    by_live_ties = objective("reweight", rule="mass", signal="live", ties="inclusive", threshold=0.5)
    # The moved mass stays above with the ties that were, in one way it falls below with those that move with it.
    assert kept(scored([4], mass=0.1, tied=0.45), [by_live_ties])[0].known == "first step"


@dataclass(frozen=True)
class Signed(Objective):
    """Somebody's objective that pushes the second token away."""

    name = "signed"
    source = "test"

    def weight(self, stats: TokenStats):
        return 1.0 - 2.0 * (stats.require("position") == 2).to(stats.require("logprob").dtype)


def test_weights_below_0_count_by_their_size():
    found = kept(scored([4]), [Signed()])[0]
    assert (found.weight_mean, found.effective_tokens) == (0.5, 4.0)


def test_of_no_loss_no_share_is_contradicted():
    found = by_name(scored([4], q=1.0), "sft")["sft"]
    assert (found.effective_tokens, found.contradicted_share) == (4.0, None)
    assert support(scored([4], q=1.0)).contradicted_loss == 0.0


def test_a_gate_that_drops_all_keeps_nothing():
    found = by_name(scored([4], mass=0.1), "prift-mass")["prift-mass"]
    assert (found.weight_mean, found.zero_share, found.effective_tokens) == (0.0, 1.0, 0.0)
    assert found.contradicted_share is None


@pytest.mark.parametrize(
    ("tokens", "name", "expects"),
    [
        (rows_with(6, [3]), "strong", "above"),
        (rows_with(0, []), "strong", "equal"),
        (rows_with(40, [3]), "weak", "below"),
        # Flaws in fewer than half of the rows leave the median row as it is; in most of them they are the task.
        (rows_with(19, [3, 5, 9]), "strong", "above"),
        (rows_with(21, [3, 5, 9]), "weak", "below"),
        (rows_with(40, [3], length=100), "unknown", "unknown"),
        (scored([20] * 40, mass=0.1), "weak", "below"),
        (scored([20] * 40, mass_at={(r, p): 0.1 for r in range(40) for p in range(6)}), "unknown", "unknown"),
        (rows_with(1, [3], rows=19), "unknown", "unknown"),
        (rows_with(2, [3], rows=20), "strong", "above"),
    ],
)
def test_the_rule(tokens, name, expects):
    found = regime(support(tokens))
    assert (found.name, found.expects) == (name, expects)
    assert found.reasons
    assert expects == "unknown" or expects in found.meaning or "no difference" in found.meaning


@pytest.mark.parametrize(
    ("supported", "against", "loss", "name", "expects"),
    [
        (0.85, 0.005, 0.2, "strong", "above"),
        (0.85, 0.005, 0.199, "strong", "equal"),
        (0.849, 0.0, 0.9, "unknown", "unknown"),
        (1.0, 0.0051, 0.9, "unknown", "unknown"),
        (0.6, 0.015, 0.9, "unknown", "unknown"),
        (0.599, 0.0, 0.0, "weak", "below"),
        (1.0, 0.0151, 0.0, "weak", "below"),
    ],
)
def test_the_rules_limits(supported, against, loss, name, expects):
    row = {"supported": supported, "contradicted": against, "probability": 0.5}
    found = regime(replace(support(scored([4] * 20)), typical_row=row, contradicted_loss=loss))
    assert (found.name, found.expects) == (name, expects)
    assert found.reasons[0].startswith(f"{supported:.1%} of the median row's tokens")
    assert found.reasons[1:] == (
        f"{against:.1%} of them are contradicted",
        f"{loss:.1%} of sft's loss lies on contradicted tokens",
    )
    assert regime(replace(support(scored([4] * 19)), typical_row=row)).reasons == (
        "there are 19 rows, of which none can be called typical; the rule needs 20",
    )


def test_flaws_stand_out_where_the_prior_is_strong_alone():
    objectives = [objective("sft")]
    cases = {"strong": rows_with(6, [3]), "weak": rows_with(40, [3]), "unknown": rows_with(40, [3], length=100)}
    for name, tokens in cases.items():
        found = advise.advise(tokens, objectives)
        assert found.regime.name == name
        assert found.separable == (name == "strong")
        assert any("label noise" in line for line in found.not_known) != found.separable
        assert found.suspect_rows == (6 / 40 if name == "strong" else 1.0)
        json.dumps(found.to_dict(), allow_nan=False)


def test_what_is_not_known_is_said():
    found = advise.advise(rows_with(6, [3]), [objective("sft"), objective("dft"), objective("gft")])
    dft, gft, *rest = found.not_known
    assert (dft, gft) == tuple(f"{one.name}: {one.note}" for one in found.kept[1:])
    assert [line.split(",")[0] for line in rest] == [
        "who is wrong where the base model contradicts the data",
        "whether answers are right that the base model finds likely",
        "how much of the gain is left after RL",
    ]


def test_the_gate_of_the_advice_is_that_of_prift_mass():
    tokens = scored([4] * 30, mass=0.4, tied=0.2)
    assert advise.advise(tokens, []).regime.expects == "below"
    assert advise.advise(tokens, [], threshold=0.3).regime.expects == "equal"
    assert advise.advise(tokens, [], ties="inclusive").regime.expects == "equal"
