"""Names, options and what is said when they are wrong."""

from dataclasses import dataclass
from pathlib import Path

import pytest

import ballast.objectives
from ballast import BallastError, Objective, list_objectives, objective


@dataclass(frozen=True)
class PerRow(Objective):
    """Is averaged per sequence first."""

    name = "per-row"
    source = "a test"
    reduction = "sequences"


@dataclass(frozen=True)
class Reads(Objective):
    """Changes what the model reads."""

    name = "reads"
    source = "a test"

    def prepare_inputs(self, embeddings, arg_max, labels, *, progress=0.0, noise=0.0):
        return embeddings


NAMES = [
    "asft", "chord-phi", "deft", "dft", "eaft", "eksft", "gem", "gft", "gift", "hpt", "idft", "ift", "irft", "iw-sft",
    "kl-sft", "luffy", "p-alpha", "pear", "prift-mass", "prift-prob", "product", "profit", "psft", "reweight", "rift",
    "sed-sft", "self-train", "sft", "srft", "tail-sft", "talr", "weighted-sft",
]  # fmt: skip

WRONG = {
    "name": (lambda: objective("sfft"), "unknown name 'sfft'; did you mean 'sft'"),
    "underscore": (lambda: objective("prift_mass"), "did you mean 'prift-mass'"),
    "case": (lambda: objective("EKSFT"), "unknown name 'EKSFT'; .*eksft"),
    "nothing like it": (lambda: objective("zzz"), f"known: {', '.join(NAMES)}"),
    "private module": (lambda: objective("_rules"), "unknown name"),
    "empty": (lambda: objective(""), "unknown name"),
    "none": (lambda: objective(None), "got NoneType"),
    "mapping without name": (lambda: objective({"rho": 0.1}), "key 'name'"),
    "option": (lambda: objective("eksft", rhoo=0.1), "unknown option 'rhoo'; did you mean 'rho'"),
    "option in a mapping": (lambda: objective({"name": "prift-mass", "treshold": 1}), "did you mean 'threshold'"),
    "option of another": (lambda: objective("sft", rho=0.1), "unknown option 'rho'; it has no options"),
    "option on a built one": (lambda: objective(objective("eksft"), rho=0.1), "cannot be added"),
    "rho above 1": (lambda: objective("eksft", rho=1.5), r"rho must lie in \[0, 1\].*1.5"),
    "rho below 0": (lambda: objective("eksft", rho=-0.1), r"rho must lie in \[0, 1\]"),
    "rho nan": (lambda: objective("eksft", rho=float("nan")), "finite number"),
    "lambda negative": (lambda: objective("eksft", lambda_h=-1), r"lambda_h must lie in \[0, ∞\]"),
    "lambda infinite": (lambda: objective("eksft", lambda_kl=float("inf")), "finite number"),
    "a string": (lambda: objective("eksft", rho="0.2"), "finite number .*'0.2'"),
    "a boolean": (lambda: objective("eksft", rho=True), "finite number .*True"),
    "none for a number": (lambda: objective("eksft", rho=None), "finite number .*None"),
    "select": (lambda: objective("eksft", select="both"), "must be one of union, intersection; got 'both'"),
    "scope": (lambda: objective("eksft", scope="token"), "must be one of sequence, batch"),
    "extreme of KL": (lambda: objective("eksft", extreme_kl="both"), "must be one of largest, smallest"),
    "entropy": (lambda: objective("eksft", entropy="bits"), "must be one of nats, normalised"),
    "penalty": (lambda: objective("eksft", penalty=1), "must be one of kl, released"),
    "extreme": (lambda: objective("eksft", extreme=1), "must be one of largest, smallest"),
    "threshold": (lambda: objective("prift-mass", threshold=1.01), r"threshold must lie in \[0, 1\]"),
    "ties": (lambda: objective("prift-mass", ties="none"), "must be one of strict, inclusive"),
    "rule": (lambda: objective("reweight", rule="prob"), "must be one of probability, power"),
    "rule as list": (lambda: objective("reweight", rule=["mass"]), "must be one of"),
    "keep_end as a number": (lambda: objective("prift-mass", keep_end=1), "keep_end must be true or false .*got 1"),
    "keep_end as text": (lambda: objective("eksft", keep_end="yes"), "keep_end must be true or false .*got 'yes'"),
    "keep_end of no gate": (lambda: objective("reweight", keep_end=True), "'probability' has no 'keep_end'"),
    "signal": (lambda: objective("reweight", signal="ref"), "must be one of live, reference"),
    "power without alpha": (lambda: objective("reweight", rule="power"), "'power' needs the option 'alpha'"),
    "threshold without cut": (lambda: objective("reweight", rule="threshold"), "needs the option 'threshold'"),
    "entropy without gate": (lambda: objective("reweight", rule="entropy"), "needs the option 'max_entropy'"),
    "alpha of another rule": (lambda: objective("reweight", alpha=2), "has no 'alpha', it would be ignored"),
    "ties of another rule": (lambda: objective("reweight", ties="strict"), "has no 'ties'"),
    "threshold of another rule": (lambda: objective("reweight", threshold=0.5), "has no 'threshold'"),
    "tau negative": (lambda: objective("gft", tau=-0.1), r"tau must lie in \[0, ∞\]"),
    "tau as text": (lambda: objective("gft", tau="0.7"), "finite number .*'0.7'"),
    "aggregation": (lambda: objective("gft", aggregation="mean"), "must be one of token, sequence"),
    "lam": (lambda: objective("ift", lam=1.1), r"lam must lie in \[0, 1\]"),
    "gamma": (lambda: objective("ift", gamma=-0.1), r"gamma must lie in \[0, 1\]"),
    "variant": (lambda: objective("ift", variant="normalized"), "must be one of normalised, algorithm1, equation21"),
    "schedule": (lambda: objective("ift", schedule="cosine"), "must be one of constant, linear, noisy"),
    "average": (lambda: objective("ift", average="batch"), "must be one of sequence, token"),
    "embeddings": (lambda: objective("ift", embeddings=True), "must be one of detached, attached"),
    "gamma of another variant": (lambda: objective("ift", variant="equation21", gamma=0.5), "has no 'gamma', it would"),
    "start of another schedule": (
        lambda: objective("ift", lam_start=0.1),
        "'lam_start' is ignored by all schedules but",
    ),
    "start of a noisy schedule": (lambda: objective("ift", schedule="noisy", lam_start=0.1), "'lam_start' is ignored"),
    "start above 1": (lambda: objective("ift", schedule="linear", lam_start=2), r"lam_start must lie in \[0, 1\]"),
    "column": (lambda: objective("weighted-sft", column=" "), "column must be text .*' '"),
    "column as a number": (lambda: objective("weighted-sft", column=3), "column must be text .*got 3"),
    "clip": (lambda: objective("psft", clip=-0.1), r"clip must lie in \[0, ∞\]"),
    "no refresh": (lambda: objective("psft", refresh=0), r"refresh must lie in \[1, ∞\]"),
    "half a step": (lambda: objective("psft", refresh=1.5), "refresh must be a whole number .*got 1.5"),
    "steps as a float": (lambda: objective("psft", refresh=8.0), "refresh must be a whole number .*got 8.0"),
    "low above high": (lambda: objective("idft", low=3.0), "low 3 is above high 2, so every exponent would be high"),
    "exponent": (lambda: objective("deft", exponent="entropy"), "must be one of renyi, cayley, fixed"),
    "fixed without exponent": (
        lambda: objective("deft", exponent="fixed"),
        "exponent 'fixed' needs the option 'alpha'",
    ),
    "exponent that is ignored": (lambda: objective("deft", alpha=0.5), "exponent 'renyi' has no 'alpha'"),
    "one likely token": (lambda: objective("eaft", k=1), r"k must lie in \[2, ∞\]"),
    "half a token": (lambda: objective("sed-sft", k=2.5), "k must be a whole number"),
    "temperature 0": (lambda: objective("gem", beta=0), r"beta must lie in \[0.01, 100\]"),
    "block of tokens": (lambda: objective("pear", block=8), "by 'token' has no 'block', it would be ignored"),
    "gamma of a sequence": (lambda: objective("pear", by="sequence", gamma=0.9), "by 'sequence' has no 'gamma'"),
    "column of no column": (lambda: objective("pear", column="b"), "behaviour 'reference' has no 'column'"),
    "floor": (lambda: objective("talr", floor=2), r"floor must lie in \[0, 1\]"),
    "normalise": (lambda: objective("talr", normalise=1), "normalise must be true or false"),
    "beta of irft": (lambda: objective("irft", beta=0), "beta must lie in"),
    "link": (lambda: objective("irft", link="logistic"), "must be one of sigmoid, hinge, none; got 'logistic'"),
    "a value of wrong answers above 0": (lambda: objective("rift", wrong=0.1), r"wrong must lie in \[-∞, 0\]"),
    "gate below -1": (lambda: objective("hpt", gate=-2), r"gate must lie in \[-1, ∞\]"),
    "direction": (lambda: objective("asft", direction="backward"), "must be one of forward, reverse"),
    "beta": (lambda: objective("gift", beta=-1), r"beta must lie in \[0, ∞\]"),
    "gamma of luffy": (lambda: objective("luffy", gamma=0), r"gamma must lie in \[1e-06, ∞\]"),
    "cap of a token": (
        lambda: objective("iw-sft", per="token", cap=3),
        "per 'token' has no 'cap', it would",
    ),
    "clip of a sequence": (lambda: objective("iw-sft", clip=0.3), "per 'sequence' has no 'clip', it would be ignored"),
    "threshold without a side": (lambda: objective("p-alpha", threshold=0.3), "keep 'all' has no 'threshold'"),
    "a side without threshold": (lambda: objective("p-alpha", keep="top"), "keep 'top' needs the option 'threshold'"),
    "middle without upper": (lambda: objective("profit", keep="middle"), "keep 'middle' needs the option 'upper'"),
    "upper without middle": (lambda: objective("profit", upper=0.3), "keep 'higher' has no 'upper'"),
    "upper below": (
        lambda: objective("profit", keep="middle", threshold=0.5, upper=0.3),
        "upper 0.3 is below threshold 0.5, so no token would be kept",
    ),
    "a product of nothing": (lambda: objective("product", of=[]), "of must be a list of objectives"),
    "a product of one name": (lambda: objective("product", of="sft"), "of must be a list of objectives .*'sft'"),
    "a factor misspelt": (
        lambda: objective("product", of=["sft", "prift-mas"]),
        "entry 2: unknown name .*did you mean 'prift-mass'",
    ),
    "a factor's option": (lambda: objective("product", of=[{"name": "dft", "x": 1}]), "entry 1: unknown option 'x'"),
    "a number as a factor": (lambda: objective("product", of=[0.5]), "entry 1: expected a name .* got float"),
    "no factor": (lambda: objective("product", of=["sft", "ift"]), "product: ift is no factor: its loss is more than"),
    "inputs are no factor": (lambda: objective("product", of=["sft", Reads()]), "product: reads is no factor"),
    "pairs are no factor": (lambda: objective("product", of=["irft"]), "product: irft is no factor"),
    "a wide further term beside a step": (
        lambda: objective("product", of=["talr", "eksft"]),
        "product: eksft has a further term that looks beyond a token",
    ),
    "two divisors": (
        lambda: objective("product", of=[objective("gft", aggregation="sequence"), PerRow()]),
        "product: the factors divide by groups and by sequences",
    ),
    "a column beside groups": (
        lambda: objective("product", of=["luffy", "weighted-sft"]),
        "product: reads 'weight' from a column of the data, which groups of answers do not bring",
    ),
    "two columns of one name": (
        lambda: objective("product", of=["weighted-sft", {"name": "weighted-sft", "column": "other"}]),
        "product: the factors read 'weight' from different columns of the data",
    ),
    "module": (lambda: objective("no_such_module:Class"), "cannot import 'no_such_module:Class'"),
    "class": (lambda: objective("third_party:Fokal"), "cannot import 'third_party:Fokal'"),
    "not an objective": (lambda: objective("third_party:NotAnObjective"), "not a subclass"),
    "no module": (lambda: objective(":Focal"), "cannot import"),
    "third-party option": (lambda: objective("third_party:Focal", gama=1), "focal: unknown option 'gama'.*'gamma'"),
    "third-party value": (lambda: objective("third_party:Focal", gamma=-1), r"gamma must lie in \[0, ∞\]"),
}


@pytest.mark.parametrize(("build", "message"), list(WRONG.values()), ids=list(WRONG))
def test_refused_in_one_line(build, message):
    with pytest.raises(BallastError, match=message) as caught:
        build()
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("objective")


def test_the_registry_holds_these_sorted():
    names = [info.name for info in list_objectives()]
    assert names == NAMES


@pytest.mark.parametrize("info", list_objectives(), ids=lambda info: info.name)
def test_every_objective_describes_itself(info):
    assert info.description.endswith(".")
    assert len(info.description) < 125
    assert info.source
    assert "logprob" in info.needs
    assert info.scope in ("token", "sequence", "group", "batch", "step")
    assert info.reduction in ("tokens", "sequences", "groups")
    for _, _, documentation in info.options:
        assert documentation
    built = objective(info.name)
    assert isinstance(built, Objective)
    assert (built.name, built.needs, built.scope, built.reduction) == (
        info.name,
        info.needs,
        info.scope,
        info.reduction,
    )
    assert built.to_dict() == {"name": info.name, **{name: default for name, default, _ in info.options}}


NEEDS = {
    "asft": ("asft", {}, {"logprob", "kl_forward"}),
    "asft reverse": ("asft", {"direction": "reverse"}, {"logprob", "kl"}),
    "iw-sft": ("iw-sft", {}, {"logprob", "ref_logprob"}),
    "hpt": ("hpt", {}, {"logprob", "origin", "group", "reward"}),
    "rift": ("rift", {}, {"logprob", "reward"}),
    "product": ("product", {"of": ["asft", "prift-mass", "gft"]}, {"logprob", "kl_forward", "ref_mass", "advantage"}),
    "dft": ("dft", {}, {"logprob"}),
    "prift-prob": ("prift-prob", {}, {"logprob", "ref_logprob"}),
    "prift-mass": ("prift-mass", {}, {"logprob", "ref_mass"}),
    "prift-mass inclusive": ("prift-mass", {"ties": "inclusive"}, {"logprob", "ref_mass", "ref_tied"}),
    "live mass": ("reweight", {"rule": "mass", "signal": "live"}, {"logprob", "mass"}),
    "reference entropy": ("reweight", {"rule": "entropy", "max_entropy": 1}, {"logprob", "ref_entropy"}),
    "eksft": ("eksft", {}, {"logprob", "entropy", "kl"}),
    "eksft normalised": ("eksft", {"entropy": "normalised"}, {"logprob", "entropy", "kl", "vocabulary"}),
    "eksft released": ("eksft", {"penalty": "released"}, {"logprob", "entropy", "kl", "collision"}),
    "gft": ("gft", {}, {"logprob", "advantage"}),
    "weighted": ("weighted-sft", {}, {"logprob", "weight"}),
    "psft": ("psft", {}, {"logprob", "old_logprob"}),
    "deft": ("deft", {}, {"logprob", "collision"}),
    "eaft": ("eaft", {"k": 7}, {"logprob", "top_entropy@7"}),
    "gem": ("gem", {"beta": 0.3}, {"logprob", "tempered_ce@0.3"}),
    "gem logsigmoid": ("gem", {"h": "logsigmoid"}, {"logprob", "tempered_gap@0.7"}),
    "idft": ("idft", {}, {"logprob", "entropy"}),
    "idft warming up": ("idft", {"warmup": 0.1}, {"logprob", "entropy", "progress"}),
    "pear": ("pear", {}, {"logprob", "ref_logprob"}),
    "pear of a column": ("pear", {"behaviour": "column"}, {"logprob", "behaviour_logprob"}),
    "sed-sft": ("sed-sft", {}, {"logprob", "top_mass@2"}),
    "deft by Cayley": ("deft", {"exponent": "cayley"}, {"logprob"}),
    "tail-sft": ("tail-sft", {}, {"logprob", "ref_logprob"}),
    "tail-sft, ramped": ("tail-sft", {"schedule": "ramp"}, {"logprob", "ref_logprob", "progress"}),
    "talr": ("talr", {}, {"logprob"}),
    "irft": ("irft", {}, {"logprob", "ref_logprob", "origin", "group"}),
    "self-train": ("self-train", {}, {"logprob", "origin", "reward", "share"}),
}


@pytest.mark.parametrize(("name", "options", "needs"), list(NEEDS.values()), ids=list(NEEDS))
def test_options_decide_the_needs(name, options, needs):
    built = objective(name, **options)
    assert set(built.needs) == needs
    assert len(built.needs) == len(needs)


def test_the_scope_option_of_eksft_is_its_scope():
    assert objective("eksft").scope == "sequence"
    assert objective("eksft", scope="batch").scope == "batch"


def test_ends_that_are_kept_widen_the_scope():
    for name, options in (("prift-mass", {}), ("reweight", {"rule": "mass"})):
        assert objective(name, **options).scope == "token"
        assert objective(name, **options, keep_end=True).scope == "sequence"
    assert objective("eksft", scope="batch", keep_end=True).scope == "batch"


def test_a_product_has_the_widest_scope_and_the_divisor_that_a_factor_asks_for():
    assert objective("product", of=["dft", "sft"]).scope == "token"
    assert objective("product", of=["iw-sft", "dft"]).scope == "sequence"
    assert objective("product", of=["srft", {"name": "eksft", "scope": "batch"}]).scope == "batch"
    assert objective("product", of=["hpt", "iw-sft"]).scope == "group"
    assert objective("product", of=["dft", "sft"]).reduction == "tokens"
    assert objective("product", of=["dft", "hpt"]).origins == objective("hpt").origins == ("expert", "own")
    assert objective("product", of=["dft", {"name": "gft", "aggregation": "sequence"}]).reduction == "groups"


def test_a_product_reads_the_columns_of_its_factors():
    built = objective("product", of=["prift-mass", {"name": "weighted-sft", "column": "trust"}])
    assert built.columns == {"weight": "trust"}
    assert set(built.needs) == {"logprob", "ref_mass", "weight"}
    assert objective("product", of=["talr", "kl-sft"]).scope == "step"


def test_a_factor_may_be_given_in_any_way():
    built = objective("product", of=["dft", objective("gift", beta=3), {"name": "prift-mass", "threshold": 0.4}])
    assert objective(built.to_dict()) == built
    assert objective({"name": "product", "of": [built, "sft"]}).of[0] == built
    assert built.to_dict()["of"][1] == {"name": "gift", "beta": 3}


def test_the_scope_of_iw_sft_is_what_has_one_weight():
    assert objective("iw-sft").scope == "sequence"
    assert objective("iw-sft", per="token").scope == "token"


def test_objective_modules_are_small():
    for path in Path(ballast.objectives.__file__).parent.glob("*.py"):
        if path.name not in ("__init__.py", "base.py"):
            assert len(path.read_text().splitlines()) <= 70, path.name
