"""Three tokens with different statistics, and what every objective makes of them, worked by hand.

    token                 0        1        2
    p                    1/2      1/4     1/10
    −log p             log 2    log 4   log 10   = 0.6931471806, 1.3862943611, 2.3025850930
    H                    0.2      1.5      0.9
    KL(p‖q)              0.3      0.1      0
    KL(q‖p)              0.4      0.2      0.1
    Σ p²                 0.4      0.2      0.3
    mass, tied       0.9, 0  0.3, 0.5   0.7, 0
    q                   0.81     0.36     0.04
    H of q               1.4      0.6      1.0
    mass, tied of q     1, 0 0.4, 0.2  0.45, 0
    advantage              2       −1        3
    weight               1/2        0        2
    p of the old model   0.3     0.25      0.2
    p of the writer      0.4      0.3     0.09
    H of the top 20      0.6      2.4      0.9
    mass of the top 2    0.5      0.9     0.65
    tempered CE, gap 0.5, −0.2 1.0, 0.1 0.7, 0.4
    origin            expert      own  teacher
    reward                 0      1/2        0
    share                3/2      3/4      3/5

A gradient is by the log-probability, the entropy, both KLs, Σ p² and the tempered two; one that is left out is zero. V
is 8.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ballast import TokenStats, objective

LOG2, LOG4, LOG10 = 0.6931471806, 1.3862943611, 2.3025850930

PAIRED = {"sequence": (0, 1, 2), "origin": (0, 2, 2), "group": (0, 0, 0)}
"""Each token is an answer: an expert's and two own ones."""

OUTCOMES = {**PAIRED, "reward": (1, 1, 0)}
"""Of the own ones the first is right."""

Three = tuple[float, float, float]
NONE: Three = (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Golden:
    name: str
    options: dict[str, Any]
    losses: Three
    by_logprob: Three
    by_entropy: Three = NONE
    by_kl: Three = NONE
    by_kl_forward: Three = NONE
    by_collision: Three = NONE
    by_further: dict[str, Three] = field(default_factory=dict)
    layout: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """What the row knows of its tokens beyond the table."""

    @property
    def label(self) -> str:
        return "-".join([self.name, *(str(value) for value in self.options.values())])


def _reweight(losses: Three, by_logprob: Three, **options: Any) -> Golden:
    return Golden("reweight", options, losses, by_logprob)


GOLDEN = [
    Golden("sft", {}, (LOG2, LOG4, LOG10), (-1, -1, -1)),
    # log 2 / 2, log 4 / 4, log 10 / 10; the weight p is a constant, so the slope is −p, not −p·(1 + log p)
    Golden("dft", {}, (0.3465735903, 0.3465735903, 0.2302585093), (-0.5, -0.25, -0.1)),
    # 0.81·log 2, 0.36·log 4, 0.04·log 10
    Golden("prift-prob", {}, (0.5614492163, 0.4990659700, 0.0921034037), (-0.81, -0.36, -0.04)),
    # u = 1, 0.4, 0.45 against 0.5: the first alone
    Golden("prift-mass", {}, (LOG2, 0, 0), (-1, 0, 0)),
    Golden("prift-mass", {"threshold": 0.42}, (LOG2, 0, LOG10), (-1, 0, -1)),
    # the last of three ends the turn
    Golden("prift-mass", {"keep_end": True}, (LOG2, 0, LOG10), (-1, 0, -1)),
    # u = 1, 0.4 + 0.2, 0.45: the first two
    Golden("prift-mass", {"ties": "inclusive"}, (LOG2, LOG4, 0), (-1, -1, 0)),
    _reweight((0.3465735903, 0.3465735903, 0.2302585093), (-0.5, -0.25, -0.1), rule="probability", signal="live"),
    _reweight((0.5614492163, 0.4990659700, 0.0921034037), (-0.81, -0.36, -0.04)),
    # p² = 1/4, 1/16, 1/100
    _reweight(
        (0.1732867951, 0.0866433976, 0.0230258509), (-0.25, -0.0625, -0.01), rule="power", signal="live", alpha=2
    ),
    # √q = 0.9, 0.6, 0.2
    _reweight((0.6238324625, 0.8317766167, 0.4605170186), (-0.9, -0.6, -0.2), rule="power", alpha=0.5),
    # p = 0.5, 0.25, 0.1 and q = 0.81, 0.36, 0.04 against 0.3
    _reweight((LOG2, 0, 0), (-1, 0, 0), rule="threshold", signal="live", threshold=0.3),
    _reweight((LOG2, LOG4, 0), (-1, -1, 0), rule="threshold", threshold=0.3),
    # 0.9, 0.3, 0.7 against 0.5; with ties 0.9, 0.8, 0.7 against 0.75
    _reweight((LOG2, 0, LOG10), (-1, 0, -1), rule="mass", signal="live"),
    _reweight((LOG2, LOG4, 0), (-1, -1, 0), rule="mass", signal="live", threshold=0.75, ties="inclusive"),
    # of the reference 1, 0.4, 0.45 against 0.5
    _reweight((LOG2, 0, 0), (-1, 0, 0), rule="mass"),
    # H = 0.2, 1.5, 0.9 and 1.4, 0.6, 1.0 against 1.2
    _reweight((LOG2, 0, LOG10), (-1, 0, -1), rule="entropy", signal="live", max_entropy=1.2),
    _reweight((0, LOG4, LOG10), (0, -1, -1), rule="entropy", max_entropy=1.2),
    # A·p: 2/2, −1/4, 3/10; all below 0.7
    Golden("gft", {}, (LOG2, -0.3465735903, 0.6907755279), (-1, 0.25, -0.3)),
    # 1/2 ≥ 0.3 is not rectified: 2·log 2
    Golden("gft", {"tau": 0.3}, (1.3862943611, -0.3465735903, 0.6907755279), (-2, 0.25, -0.3)),
    # nor is a probability of tau itself
    Golden("gft", {"tau": 0.5}, (1.3862943611, -0.3465735903, 0.6907755279), (-2, 0.25, -0.3)),
    # the advantage alone: 2·log 2, −log 4, 3·log 10
    Golden("gft", {"tau": 0, "aggregation": "sequence"}, (1.3862943611, -LOG4, 6.9077552790), (-2, 1, -3)),
    # 3/2·log 2, nothing for the own answer that is not right, 3/5·log 10
    Golden("self-train", {}, (1.0397207708, 0, 1.3815510558), (-1.5, 0, -0.6)),
    # gamma = 0 leaves every weight at 1: the mean over the sequence of three
    Golden(
        "ift", {"gamma": 0}, (0.2310490602, 0.4620981204, 0.7675283643),
        (-0.3333333333, -0.3333333333, -0.3333333333),
    ),
    # nll = a, 2a, b with a = log 2, b = log 10: c = 2a + b/4, 2a + b/2, b = 1.9619406344, 2.5375869076, 2.3025850930,
    # S = Σc = 6.8021126350; nll·c/S. Slope: (c_j + b_j)/S − Q·r_j/S² with b = a, 5a/2, 5a/4 + b the sums backwards,
    # r = 1, 3/2, 7/4 and Q = Σ nll·c = 10.1796541494
    Golden(
        "ift", {"gamma": 0.5}, (0.1999251839, 0.5171690928, 0.7794487382),
        (-0.1703213196, -0.2977957651, -0.4193776314),
    ),
    # three times these
    Golden(
        "ift", {"gamma": 0.5, "average": "token"}, (0.5997755516, 1.5515072785, 2.3383462146),
        (-0.5109639588, -0.8933872954, -1.2581328943),
    ),
    # nll·c/3, slope (c_j + b_j)/3
    Golden(
        "ift", {"gamma": 0.5, "variant": "algorithm1"}, (0.4533045397, 1.1726141403, 1.7672993702),
        (-0.8850292716, -1.4234849530, -1.8238680539),
    ),
    # 1·log 2/3, 2·log 4/3, 3·log 10/3
    Golden(
        "ift", {"variant": "equation21"}, (0.2310490602, 0.9241962407, 2.3025850930),
        (-0.3333333333, -0.6666666667, -1),
    ),
    # log p − log q = −0.4824261492, −0.3646431136, 0.9162907319; the expert's against two own ones:
    # m = −0.1177830357, −1.3987168811; −m on average 0.7582499584, a third of it on each token
    Golden(
        "irft", {"beta": 1, "link": "none"}, (0.2527499861, 0.2527499861, 0.2527499861),
        (-1, 0.5, 0.5), layout=PAIRED,
    ),
    # 1 − m = 1.1177830357 and 2.3987168811, both above 0
    Golden(
        "irft", {"beta": 1, "link": "hinge"}, (0.5860833195, 0.5860833195, 0.5860833195),
        (-1, 0.5, 0.5), layout=PAIRED,
    ),
    # half of it: m = −0.0588915178, −0.6993584405, log(1 + e^−m) = 0.7230264032, 1.1027574123;
    # σ(−m) = 0.5147186258, 0.6680455148, each times a half, for beta, and shared by two pairs
    Golden(
        "irft", {"beta": 0.5}, (0.3042973026, 0.3042973026, 0.3042973026),
        (-0.2956910351, 0.1286796564, 0.1670113787), layout=PAIRED,
    ),
    # k = ⌊0.4·3⌋ = 1: M_H = {1}, M_KL = {0}, kept {2} with weight 3/1.
    # 0.05·3·0.3 = 0.045; −0.05·3·1.5 = −0.225; 3·log 10
    Golden(
        "eksft", {"rho": 0.4}, (0.045, -0.225, 6.9077552790),
        (0, 0, -3), by_entropy=(0, -0.15, 0), by_kl=(0.15, 0, 0),
    ),
    # the same selections share no token: nothing is spared, every token has weight 3/3
    Golden(
        "eksft", {"rho": 0.4, "select": "intersection"}, (0.7381471806, 1.1612943611, LOG10),
        (-1, -1, -1), by_entropy=(0, -0.15, 0), by_kl=(0.15, 0, 0),
    ),
    # k = ⌊0.7·3⌋ = 2: M_H = {1, 2}, M_KL = {0, 1}, spared {1}, the others with weight 3/2.
    # 1.5·log 2 + 0.05·1.5·0.3; 0.05·1.5·0.1 − 0.05·1.5·1.5; 1.5·log 10 − 0.05·1.5·0.9
    Golden(
        "eksft", {"rho": 0.7, "select": "intersection"}, (1.0622207708, -0.105, 3.3863776395),
        (-1.5, 0, -1.5), by_entropy=(0, -0.075, -0.075), by_kl=(0.075, 0.075, 0),
    ),
    # smallest: M_H = {0}; token 2 has not moved, so M_KL = {1}. −0.1·3·0.2 = −0.06; 0.2·3·0.1 = 0.06
    Golden(
        "eksft", {"rho": 0.4, "extreme": "smallest", "lambda_h": 0.1, "lambda_kl": 0.2}, (-0.06, 0.06, 6.9077552790),
        (0, 0, -3), by_entropy=(-0.3, 0, 0), by_kl=(0, 0.6, 0),
    ),
    # k = 3 and all selected, but for the last token, which is imitated as well: 3·log 10 more than below
    Golden(
        "eksft", {"rho": 1, "keep_end": True}, (0.0125, -0.0675, 6.8627552790),
        (0, 0, -3), by_entropy=(-0.05, -0.05, -0.05), by_kl=(0.075, 0.075, 0),
    ),
    # largest entropy, smallest KL: M_H = {1}; token 2 has not moved, so M_KL = {1} too, and {0, 2} are kept.
    # 3/2·log 2; 0.05·3·0.1 − 0.05·3·1.5; 3/2·log 10
    Golden(
        "eksft", {"rho": 0.4, "extreme_kl": "smallest"}, (1.0397207708, -0.21, 3.4538776395),
        (-1.5, 0, -1.5), by_entropy=(0, -0.15, 0), by_kl=(0, 0.15, 0),
    ),
    # M_H = {1}, M_KL = {0} as above: −0.05·3·1.5/(3·log 2); 0.05·3·(0.3 + 0.2 + 0.4)
    Golden(
        "eksft", {"rho": 0.4, "entropy": "normalised", "penalty": "released"}, (0.135, -0.1082021280, 6.9077552790),
        (0, 0, -3), by_entropy=(0.15, -0.0721347520, 0), by_kl=(0.15, 0, 0), by_collision=(0.15, 0, 0),
    ),
    # 0.6/3, 2.4/3, 0.9/3 of log 2, log 4, log 10; then their squares
    Golden("eaft", {}, (0.1386294361, 1.1090354889, 0.6907755279), (-0.2, -0.8, -0.3)),
    Golden("eaft", {"alpha": 2}, (0.0277258872, 0.8872283911, 0.2072326584), (-0.04, -0.64, -0.09)),
    # 0.9 is not below 0.7: log 2 + 0, log 4, log 10 + 0.4²; slopes −1 + 0, −1, −1 − 2·0.4·0.1
    Golden("sed-sft", {}, (LOG2, LOG4, 2.4625850930), (-1, -1, -1.08)),
    # log 2 − 0.5, log 4 − 1, log 10 − 0.7; the gap as it is
    Golden(
        "gem", {}, (0.1931471806, 0.3862943611, 1.6025850930), (-1, -1, -1),
        by_further={"tempered_ce@0.7": (-1, -1, -1)},
    ),
    Golden("gem", {"h": "logsigmoid"}, (-0.2, 0.1, 0.4), NONE, by_further={"tempered_gap@0.7": (1, 1, 1)}),
    # log p + H = −0.4931471806, 0.1137056389, −1.4025850930: g = 1.6374615062, 0.8925206406, 4.06 cut to 2
    Golden("idft", {}, (0.2227924303, 0.4022578125, 0.0230258509), (-0.3214215343, -0.2901676756, -0.01)),
    # a quarter of the way from 1: g = 1.1593653765, 0.9731301601, 1.25
    Golden(
        "idft", {"warmup": 0.2, "transition": 0.4}, (0.3103285318, 0.3597267392, 0.1294838753),
        (-0.4477094339, -0.2594879913, -0.0562341325),
    ),
    # the same losses with the slope −p^g·(1 + g·log p)
    Golden(
        "idft", {"gradient": "attached"}, (0.2227924303, 0.4022578125, 0.0230258509),
        (0.0433924941, 0.0688557249, 0.0360517019),
    ),
    # log p − log q = −0.48, −0.36, 0.92: δ = −0.08, −0.08, 0.3; G = 0.999²·e^0.22, 0.999·e^0.3, 1
    Golden("pear", {}, (0.8619880071, 1.8694303516, LOG10), (-1.2435858232, -1.3485089488, -1)),
    # e^0.14 for all three
    Golden("pear", {"by": "sequence"}, (0.7973090405, 1.5946180811, 2.6486033021), (-1.1502737989,) * 3),
    # the last is a block of its own, what follows the first two is 0.3
    Golden(
        "pear", {"by": "block", "block": 2}, (0.9347151758, 1.8694303516, LOG10), (-1.3485089488, -1.3485089488, -1)
    ),
    # of the writer δ = 0.2231, −0.08, 0.1053605157: G = 0.999²·e^0.0253605157, 0.999·e^0.1053605157, 1
    Golden("pear", {"behaviour": "column"}, (0.7095293574, 1.5387867408, LOG10), (-1.0236344853, -1.11, -1)),
    # log 2 / 2, 0, 2·log 10
    Golden("weighted-sft", {}, (0.3465735903, 0, 4.6051701860), (-0.5, 0, -2)),
    # r = 0.5/0.3, 1, 0.1/0.2: the first is cut to 1.28, which has no slope
    Golden("psft", {}, (-1.28, -1, -0.5), (0, -1, -0.5)),
    # below the bound the ratio is its own slope
    Golden("psft", {"clip": 0.7}, (-1.6666666667, -1, -0.5), (-1.6666666667, -1, -0.5)),
    # 0.5^0.4, 0.25^0.2, 0.1^0.3 = 0.7578582833, 0.7578582833, 0.5011872336
    Golden(
        "deft", {}, (0.5253073323, 1.0506146646, 1.1540262529), (-0.7578582833, -0.7578582833, -0.5011872336)
    ),
    # m = 0.85/3; a = m/2 + (1 − m/2)·(1/3, 1/7, 1/19) = 0.4277777778, 0.2642857143, 0.1868421053
    Golden(
        "deft", {"exponent": "cayley"}, (0.5152897675, 0.9610358792, 1.4975232832),
        (-0.7434059922, -0.6932408485, -0.6503660984),
    ),
    # the square roots of p
    Golden(
        "deft", {"exponent": "fixed", "alpha": 0.5}, (0.4901290717, 0.6931471806, 0.7281413400),
        (-0.7071067812, -0.5, -0.3162277660),
    ),
    # One sequence, which is kept
    Golden("tail-sft", {}, (LOG2, LOG4, LOG10), (-1, -1, -1)),
    # τ = (log 2 + log 4 + log 10)/3 = 1.4606755449: e^(−nll/τ) = 0.6221719529, 0.3870979390, 0.2067213182, over their
    # mean 0.4053304034
    Golden("talr", {}, (1.0639634515, 1.3239364369, 1.1743343746), (-1.5349747952, -0.9550182660, -0.5100069388)),
    # 0.6221719529, and twice the floor
    Golden(
        "talr", {"floor": 0.4, "normalise": False}, (0.4312567350, 0.5545177444, 0.9210340372),
        (-0.6221719529, -0.4, -0.4),
    ),
    # k = 3: all spared, nothing imitated; token 2 has not moved, so |M_KL| = 2.
    # −0.05·0.2 + 0.05·1.5·0.3; −0.05·1.5 + 0.05·1.5·0.1; −0.05·0.9
    Golden(
        "eksft", {"rho": 1}, (0.0125, -0.0675, -0.045),
        (0, 0, 0), by_entropy=(-0.05, -0.05, -0.05), by_kl=(0.075, 0.075, 0),
    ),
    # log 2 / 2 + 0.1·0.4, log 4 / 4 + 0.1·0.2, log 10 / 10 + 0.1·0.1
    Golden(
        "asft", {}, (0.3865735903, 0.3665735903, 0.2402585093),
        (-0.5, -0.25, -0.1), by_kl_forward=(0.1, 0.1, 0.1),
    ),
    # the other KL: + 0.5·0.3, + 0.5·0.1, + 0
    Golden(
        "asft", {"lambda_kl": 0.5, "direction": "reverse"}, (0.4965735903, 0.3965735903, 0.2302585093),
        (-0.5, -0.25, -0.1), by_kl=(0.5, 0.5, 0.5),
    ),
    # log 2 / 4, 3·log 4 / 16, 9·log 10 / 100
    Golden("chord-phi", {}, (0.1732867951, 0.2599301927, 0.2072326584), (-0.25, -0.1875, -0.09)),
    # e^beta − 1 = 1, so r = q: (0.81·log 2 + 0.4 + 1.4)/1.81, (0.36·log 4 + 0.2 + 0.6)/1.36,
    # (0.04·log 10 + 0.1 + 1)/1.04; slopes −r/(1 + r) and 1/(1 + r)
    Golden(
        "gift", {"beta": math.log(2)}, (1.3046680753, 0.9551955662, 1.1462532728),
        (-0.4475138122, -0.2647058824, -0.0384615385), by_kl_forward=(0.5524861878, 0.7352941176, 0.9615384615),
    ),
    # one right own answer of two, so the expert's is left out: (1 − 1/2)/(√½ + 1e-6) = 0.7071057812
    Golden("hpt", {}, (0, 0.9802567572, -1.6281712309), (0, -0.7071057812, 0.7071057812), layout=OUTCOMES),
    # up to one is too few: the expert's alone
    Golden("hpt", {"gate": 1, "imitation": 0.5}, (0.3465735903, 0, 0), (-0.5, 0, 0), layout=OUTCOMES),
    # the ratios p/q are 50/81, 25/36 and 5/2: the cube root of their product 3125/2916 is 1.0233420830
    Golden("iw-sft", {}, (0.7093266795, 1.4186533591, 2.3563322252), (-1.0233420830, -1.0233420830, -1.0233420830)),
    # 50/81·log 2, 25/36·log 4, 1.8·log 10
    Golden(
        "iw-sft", {"per": "token"}, (0.4278686300, 0.9627044174, 4.1446531674),
        (-0.6172839506, -0.6944444444, -1.8),
    ),
    # log 2 + 0.1·0.4, log 4 + 0.1·0.2, log 10 + 0.1·0.1
    Golden(
        "kl-sft", {}, (0.7331471806, 1.4062943611, 2.3125850930),
        (-1, -1, -1), by_kl_forward=(0.1, 0.1, 0.1),
    ),
    # A·gamma·p/(p + gamma)²: 2·0.05/0.36 = 5/18, the model's own −1, 3·0.01/0.04 = 3/4
    Golden("luffy", {}, (0.1925408835, -LOG4, 1.7269388197), (-0.2777777778, 1, -0.75)),
    # 1 − p
    Golden("p-alpha", {}, (0.5, 0.75, 0.9), (-0.5, -0.25, -0.1)),
    # (1 − 1/4)/2, (1 − 1/16)/2, (1 − 1/100)/2; slopes −p²
    Golden("p-alpha", {"alpha": 2}, (0.375, 0.46875, 0.495), (-0.25, -0.0625, -0.01)),
    Golden("p-alpha", {"keep": "top", "threshold": 0.2}, (0.5, 0.75, 0), (-0.5, -0.25, 0)),
    Golden("p-alpha", {"alpha": 0, "keep": "bottom", "threshold": 0.3}, (0, LOG4, LOG10), (0, -1, -1)),
    # p where u ≥ 0.5, the first token
    Golden("product", {}, (0.3465735903, 0, 0), (-0.5, 0, 0)),
    # p·q = 0.405, 0.09, 0.004, and both penalties: 0.5·0.4 + 1·0.3, 0.5·0.2 + 1·0.1, 0.5·0.1
    Golden(
        "product",
        {"of": [
            {"name": "asft", "lambda_kl": 0.5},
            "prift-prob",
            {"name": "kl-sft", "lambda_kl": 1, "direction": "reverse"},
        ]},
        (0.7807246081, 0.3247664925, 0.0592103404),
        (-0.405, -0.09, -0.004), by_kl=(1, 1, 1), by_kl_forward=(0.5, 0.5, 0.5),
    ),
    # p = 1/2, 1/4, 1/10 against 0.2, then 0.3, then both
    Golden("profit", {"threshold": 0.2}, (LOG2, LOG4, 0), (-1, -1, 0)),
    Golden("profit", {"keep": "lower", "threshold": 0.3}, (0, LOG4, LOG10), (0, -1, -1)),
    Golden("profit", {"keep": "middle", "threshold": 0.2, "upper": 0.3}, (0, LOG4, 0), (0, -1, 0)),
    # values −1/5, 2/5, −1/5 by the rewards 0, 1/2, 0; the wrong ones times p
    Golden("rift", {}, (-0.0693147181, 0.5545177444, -0.0460517019), (0.1, -0.4, 0.02)),
    # mean entropy 2.6/3: e^(−2.6/3)/2 = 0.2101751923
    Golden("srft", {}, (0.1456823419, 0.2913646839, 0.4839462646), (-0.2101751923, -0.2101751923, -0.2101751923)),
]  # fmt: skip


@dataclass(frozen=True)
class ThreeTokens:
    """The statistics of the table, those that carry gradient as leaves."""

    logprob: Tensor = field(default_factory=lambda: _leaf(0.5, 0.25, 0.1, log=True))
    entropy: Tensor = field(default_factory=lambda: _leaf(0.2, 1.5, 0.9))
    kl: Tensor = field(default_factory=lambda: _leaf(0.3, 0.1, 0.0))
    kl_forward: Tensor = field(default_factory=lambda: _leaf(0.4, 0.2, 0.1))
    collision: Tensor = field(default_factory=lambda: _leaf(0.4, 0.2, 0.3))
    further: dict[str, Tensor] = field(
        default_factory=lambda: {"tempered_ce@0.7": _leaf(0.5, 1.0, 0.7), "tempered_gap@0.7": _leaf(-0.2, 0.1, 0.4)}
    )

    def stats(self, layout: dict[str, tuple[float, ...]]) -> TokenStats:
        def fixed(*values: float) -> Tensor:
            return torch.tensor(values, dtype=torch.float64)

        known = TokenStats(
            logprob=self.logprob,
            entropy=self.entropy,
            kl=self.kl,
            kl_forward=self.kl_forward,
            collision=self.collision,
            mass=fixed(0.9, 0.3, 0.7),
            tied=fixed(0.0, 0.5, 0.0),
            ref_logprob=fixed(0.81, 0.36, 0.04).log(),
            ref_entropy=fixed(1.4, 0.6, 1.0),
            ref_mass=fixed(1.0, 0.4, 0.45),
            ref_tied=fixed(0.0, 0.2, 0.0),
            advantage=fixed(2.0, -1.0, 3.0),
            old_logprob=fixed(0.3, 0.25, 0.2).log(),
            origin=fixed(0.0, 2.0, 1.0),
            reward=fixed(0.0, 0.5, 0.0),
            share=fixed(1.5, 0.75, 0.6),
            position=torch.tensor([0, 1, 2]),
            vocabulary=8,
            progress=fixed(0.3, 0.3, 0.3),
            further={
                **self.further,
                "weight": fixed(0.5, 0.0, 2.0),
                "behaviour_logprob": fixed(0.4, 0.3, 0.09).log(),
                "top_entropy@20": fixed(0.6, 2.4, 0.9),
                "top_mass@2": fixed(0.5, 0.9, 0.65),
                "tempered_ce@2": fixed(0.6, 1.2, 0.8),
            },
        )
        return replace(known, **{name: fixed(*values) for name, values in layout.items()})


def _leaf(*values: float, log: bool = False) -> Tensor:
    tensor = torch.tensor(values, dtype=torch.float64)
    return (tensor.log() if log else tensor).requires_grad_()


def check_against_golden(row: Golden, per_token_loss: Callable[[TokenStats], Tensor] | None = None) -> None:
    """Assert that the per-token loss has the row's values and gradients."""
    tokens = ThreeTokens()
    losses = (per_token_loss or objective(row.name, **row.options).per_token_loss)(tokens.stats(row.layout))
    _assert_close(losses, row.losses)
    own = (tokens.logprob, tokens.entropy, tokens.kl, tokens.kl_forward, tokens.collision)
    leaves = (*own, *tokens.further.values())
    gradients = torch.autograd.grad(losses.sum(), leaves, allow_unused=True, materialize_grads=True)
    by_further = (row.by_further.get(name, NONE) for name in tokens.further)
    by_hand = (row.by_logprob, row.by_entropy, row.by_kl, row.by_kl_forward, row.by_collision, *by_further)
    for gradient, expected in zip(gradients, by_hand, strict=True):
        _assert_close(gradient, expected)


def _assert_close(value: Tensor, expected: Three) -> None:
    torch.testing.assert_close(value.detach(), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-9)
