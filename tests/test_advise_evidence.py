"""What is on record of the rule of advice: figures follow from runs, verdicts from scores, the page from both."""

import importlib.util
import json
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from ballast.advise import RULE, TESTED, regime
from ballast.advise.support import Support

ROOT = Path(__file__).parent.parent
EVIDENCE = ROOT / "docs" / "evidence" / "advise"
VERDICTS = json.loads((EVIDENCE / "verdicts.json").read_text(encoding="utf-8"))
FLAWS = json.loads((EVIDENCE / "flaws.json").read_text(encoding="utf-8"))
SETTINGS = VERDICTS["settings"]
PAGE = (ROOT / "docs" / "advise.md").read_text(encoding="utf-8")


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


judged = script("advise_judged")
made = script("advise_settings")


def name_of(one):
    return one["name"]


def record(one):
    return json.loads((EVIDENCE / f"{one['name']}.json").read_text(encoding="utf-8"))


def mean(values):
    return sum(values) / len(values)


def test_every_setting_is_judged():
    assert [(one["name"], one["part"]) for one in SETTINGS] == [(one.name, one.part) for one in made.SETTINGS]
    assert VERDICTS["rule"] == asdict(RULE)
    assert {path.stem for path in EVIDENCE.glob("*.json")} == {one["name"] for one in SETTINGS} | {"verdicts", "flaws"}
    # No setting of one part is one of the other under another name.
    told = [json.dumps({**record(one)["setting"], "name": "", "part": "", "seed": 0}) for one in SETTINGS]
    assert len(set(told)) == len(told)


@pytest.mark.parametrize("one", SETTINGS, ids=name_of)
def test_verdicts_follow_from_the_scores(one):
    found = regime(Support(**one["support"]))
    assert (found.name, found.expects) == (one["regime"], one["expects"])


@pytest.mark.parametrize("one", SETTINGS, ids=name_of)
def test_differences_follow_from_the_runs(one):
    kept = record(one)
    assert kept["setting"] == json.loads(json.dumps(asdict(next(s for s in made.SETTINGS if s.name == one["name"]))))
    assert sorted(kept["runs"]) == ["prift-mass-0", "prift-mass-1", "sft-0", "sft-1"]
    assert one["difference"] == kept["difference"]
    assert one["difference"]["seeds"] == 2
    for task in judged.TASKS:
        assert one["start"][task] == pytest.approx(mean(kept["start"][task]))
        levels = {
            name: mean([mean(kept["runs"][f"{name}-{seed}"]["scores"][task]) for seed in (0, 1)])
            for name in ("sft", "prift-mass")
        }
        told = one["difference"][task]
        assert {name: told[name] for name in levels} == pytest.approx(levels)
        assert told["difference"] == pytest.approx(levels["prift-mass"] - levels["sft"])
        if told["low"] is not None:
            assert told["low"] <= told["difference"] <= told["high"]


def test_an_interval_is_that_of_the_problems():
    one = next(one for one in SETTINGS if one["name"] == "noisy-few")
    assert made.difference(record(one)["runs"]) == one["difference"]


@pytest.mark.parametrize("one", SETTINGS, ids=name_of)
def test_outcomes_follow_from_verdict_and_difference(one):
    assert one["truth"] == judged.truth(one["difference"])
    assert one["outcome"] == judged.outcome(one["expects"], one["truth"])


def apart(greedy, sampled, level=0.5):
    tasks = {"greedy": greedy, "sampled": sampled}
    return {task: {"sft": level, "prift-mass": level, "low": low, "high": high} for task, (low, high) in tasks.items()}


@pytest.mark.parametrize(
    ("greedy", "sampled", "expected"),
    [
        ((0.01, 0.2), (-0.1, 0.1), "above"),
        ((-0.1, 0.1), (0.01, 0.2), "above"),
        ((-0.2, -0.01), (-0.1, 0.1), "below"),
        ((-0.1, 0.1), (-0.2, -0.01), "below"),
        ((-0.1, 0.1), (-0.1, 0.1), "equal"),
        ((0.0, 0.1), (-0.1, 0.0), "equal"),
        ((0.01, 0.2), (-0.2, -0.01), "equal"),
        ((None, None), (0.01, 0.2), "above"),
    ],
)
def test_a_side_is_taken_where_an_interval_leaves_out_0(greedy, sampled, expected):
    assert judged.truth(apart(greedy, sampled)) == expected


def test_nothing_is_shown_where_nobody_gets_anywhere():
    found = apart((-0.02, -0.01), (-0.02, -0.01), level=0.029)
    assert judged.truth(found) == "floor"
    found["sampled"]["sft"] = 0.03
    assert judged.truth(found) == "below"


@pytest.mark.parametrize(
    ("expects", "truth", "expected"),
    [
        ("above", "above", "hit"),
        ("equal", "equal", "hit"),
        ("above", "equal", "miss"),
        ("equal", "below", "miss"),
        ("unknown", "equal", "silent"),
        ("unknown", "floor", "floor"),
        ("below", "floor", "floor"),
    ],
)
def test_what_counts_as_a_hit(expects, truth, expected):
    assert judged.outcome(expects, truth) == expected


def test_hit_rates_are_those_of_the_settings():
    assert judged.rates(SETTINGS) == VERDICTS["rates"]
    for part in ("fix", "test"):
        own = [one["outcome"] for one in SETTINGS if one["part"] == part]
        told = VERDICTS["rates"][part]
        assert {name: told[name] for name in set(own)} == {name: own.count(name) for name in set(own)}
        assert told["rate"] == own.count("hit") / (own.count("hit") + own.count("miss"))
        assert told["low"] < told["rate"] <= told["high"]
    tested = VERDICTS["rates"]["test"]
    assert (TESTED.hits, TESTED.misses) == (tested["hit"], tested["miss"])


def test_the_page_says_what_is_on_record():
    for text in (judged.table(SETTINGS), judged.rates_table(VERDICTS["rates"]), judged.flaws_table(FLAWS)):
        assert text in PAGE
    limits = (
        f"supported ≥ {RULE.strong_supported:g} and contradicted ≤ {RULE.strong_contradicted:g}",
        f"supported < {RULE.weak_supported:g} or contradicted > {RULE.weak_contradicted:g}",
        f"at least {RULE.flawed_loss * 100:g} % of `sft`'s loss",
        f"fewer than {RULE.fewest_rows} rows",
    )
    for text in limits:
        assert text in PAGE
    for one in SETTINGS:
        if one["outcome"] == "miss":
            assert f"- `{one['name']}`" in PAGE
