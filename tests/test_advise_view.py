"""Advice as it is printed and as JSON: everything said, nothing torn apart, text of the data harmless."""

import io
import json

import pytest
from rich.console import Console

from ballast.advise import RULE, TESTED, advise
from ballast.objectives import list_objectives, objective
from ballast.pipeline.advise import CONTEXT, SHOWN, Advised, view
from scored import rows_with, scored

OBJECTIVES = [objective(one.name) for one in list_objectives() if one.name != "reweight"]


def advised(tokens, *, before="12+3=", own="7", notes=()):
    advice = advise(tokens, OBJECTIVES)
    shown = [*advice.suspects, *(token for row in advice.outliers for token in row.worst)]
    return Advised(advice, ("rows.jsonl",), "models/start", {(t.row, t.place): (before, own) for t in shown}, notes)


def printed(one, width=120):
    file = io.StringIO()
    console = Console(file=file, width=width, soft_wrap=False)
    for part in view(one):
        console.print(part)
    return file.getvalue()


def flat(text):
    return " ".join(text.split())


def flawed(count, *, rows=60):
    """Rows of unlike support, of which so many have a contradicted token and lie below the others."""
    wiggle = {(row, 0): 0.9 - 0.001 * row for row in range(rows)}
    return scored([20] * rows, q_at=wiggle | {(row, 18): 1e-4 for row in range(count)})


@pytest.mark.parametrize("width", [72, 80, 120])
def test_nothing_is_torn_apart(width):
    lines = printed(advised(flawed(12), before="x" * 40), width).splitlines()
    assert max(map(len, lines)) <= width
    table = [line.split() for line in lines if line.split()[:1] and line.split()[0] in {o.name for o in OBJECTIVES}]
    assert len(table) == len(OBJECTIVES)
    for name, *_, known in table:
        # The words of the last column stand whole in the line of their objective.
        assert known in {"always", "first", "step", "step,", "gold", "inputs", "unknown"}, name
    assert not any(len(line.split()) == 1 and len(line.strip()) == 1 for line in lines)


def test_the_verdict_is_first_then_what_it_rests_on():
    one = advised(flawed(12))
    text = flat(printed(one))
    parts = [
        "Prior: strong. The base model supports",
        "Because ",
        "The rule: strong if",
        "Contradicted: the base model is sure",
    ]
    parts += ["60 rows, 1,200 trained tokens", "tokens at or below", "What each objective would keep"]
    parts += ["rows lie far below", "Contradicted tokens in 20.0% of the rows", "What the scores do not tell"]
    places = [text.index(part) for part in parts]
    assert places == sorted(places)
    assert places[0] == 0
    assert "expect prift-mass above sft." in text
    assert f"The rule: {RULE}. It was {TESTED}." in text
    for reason in one.advice.regime.reasons:
        assert reason in text
    for line in one.advice.not_known:
        assert f"- {line}" in text


def test_figures_are_those_of_the_advice():
    one = advised(flawed(12))
    found, text = one.advice.support, flat(printed(one))
    assert f"mean q {found.mean_probability:.3f}, nll {found.nll:.3f}, entropy {found.entropy:.3f} nats" in text
    assert f"{found.below_mass:.1%} have u < 0.5, 1.0% q < 0.1, 1.0% q < 0.01; 1.0% are contradicted." in text
    assert "tokens at or below 1% 5% 10% 25% 50% 75% 90%" in text
    assert " ".join(["q(y)", *(f"{value:.2g}" for value in found.probability.values())]) in text
    assert " ".join(["u", *(f"{value:.2g}" for value in found.mass.values())]) in text
    for kept in one.advice.kept:
        if kept.weight_mean is not None:
            shares = f"{kept.weight_mean:.3f} {kept.zero_share:.1%} {kept.end_weight:.3f} {kept.effective_tokens:,.0f}"
            assert f"{kept.name} {shares} {kept.contradicted_share:.1%} {kept.known}" in text
    assert "gft – – – – – unknown" in text


def test_objectives_that_hardly_teach_to_stop_are_warned_of():
    dropped = scored([20] * 30, mass_at={(row, 19): 0.2 for row in range(30)})
    text = flat(printed(advised(dropped)))
    assert "prift-mass: the tokens that end a turn have a mean weight of 0, all tokens of 0.95" in text
    assert "hardly learn to stop" not in flat(printed(advised(scored([20] * 30))))


def test_ties_are_told_where_they_decide():
    assert "by how ties count" not in printed(advised(scored([10] * 30)))
    tied = {(0, place): 0.4 for place in range(3)}
    text = flat(printed(advised(scored([10] * 30, mass_at=tied, tied_at=tied))))
    assert "1.0% are kept or dropped by how ties count." in text


@pytest.mark.parametrize(("count", "said"), [(SHOWN, False), (SHOWN + 1, True)])
def test_the_first_rows_are_listed(count, said):
    one = advised(flawed(count))
    text = printed(one)
    assert len(one.advice.outliers) == len(one.advice.suspects) == count
    assert flat(text).count(f"; the first {SHOWN} ") == (2 if said else 0)
    tables = text.split("worst tokens (q)")[1].split("entropy \n")
    for table in tables[:2]:
        listed = [line.split()[0] for line in table.splitlines() if line.split() and line.split()[0].isdigit()]
        assert len(listed) == SHOWN
    assert len(one.to_dict()["outliers"]) == len(one.to_dict()["suspects"]) == count


def test_rows_and_tokens_as_they_are_listed():
    one = advised(flawed(1))
    (row,), (token,) = one.advice.outliers, one.advice.suspects
    text = flat(printed(one))
    # Among rows from 1; place 19 of the row's ids, so that more came before than is shown.
    assert f"1 20 {row.mean_probability:.3f} {row.deviation:.1f} '7' 0.0001 '7' 0.9 '7' 0.9" in text
    assert token.place > CONTEXT
    assert "1 …12+3= '7' 0.0001 1 0.20" in text
    assert "likely label noise" in text
    near = flat(printed(advised(rows_with(1, [CONTEXT - 1]))))
    assert "1 12+3= '7' 0.0001 1 0.20" in near


def test_what_is_not_there_is_said():
    text = flat(printed(advised(scored([10] * 30), notes=("rows were split",))))
    assert "No row lies far below the others." in text
    assert "No token is contradicted." in text
    assert text.endswith("- rows were split")


def test_noise_is_not_claimed_where_the_prior_is_weak():
    text = flat(printed(advised(rows_with(40, [3]))))
    assert "Prior: weak. The typical row holds tokens" in text
    assert "Contradicted tokens in 100.0% of the rows: noise or what is new to the base model" in text
    assert "likely label noise" not in text


def test_text_of_the_data_is_shown_and_does_nothing():
    text = printed(advised(flawed(1), before="[bold]\x1b[31m", own="\n"))
    assert "[bold]⟨U+001B⟩[31m" in text
    assert "'⏎'" in text
    assert "\x1b" not in text


def test_the_json_is_whole():
    one = advised(flawed(3), before="ab", own="c", notes=("rows were split",))
    told = json.loads(json.dumps(one.to_dict(), allow_nan=False))
    assert (told["start"], told["source"], told["notes"]) == ("models/start", ["rows.jsonl"], ["rows were split"])
    assert set(told) >= {"support", "regime", "kept", "outliers", "suspects", "suspect_rows", "separable", "not_known"}
    assert told["rule"]["strong_supported"] == RULE.strong_supported
    assert told["rule"]["text"] == str(RULE)
    assert told["rule"]["tested"] == {"hits": TESTED.hits, "misses": TESTED.misses}
    assert (
        sorted(row["row"] for row in told["outliers"])
        == sorted(token["row"] for token in told["suspects"])
        == [1, 2, 3]
    )
    for token in (*told["suspects"], *(token for row in told["outliers"] for token in row["worst"])):
        assert (token["before"], token["text"]) == ("ab", "c")
        assert set(token) >= {"row", "place", "probability", "mass", "entropy"}
    for row in told["outliers"]:
        assert {token["row"] for token in row["worst"]} == {row["row"]}
