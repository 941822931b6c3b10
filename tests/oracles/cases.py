"""Every objective of the package with every combination of its discrete options."""

from __future__ import annotations

from itertools import product
from typing import Any

RULE_OPTIONS: dict[str, list[dict[str, Any]]] = {
    "probability": [{}],
    "power": [{"alpha": 0.5}, {"alpha": 2}],
    "threshold": [{"threshold": 0.2}],
    "mass": [{}, {"threshold": 0.6, "ties": "inclusive"}],
    "entropy": [{"max_entropy": 1.1}],
}

CASES: list[tuple[str, dict[str, Any]]] = [
    ("sft", {}),
    ("dft", {}),
    ("prift-prob", {}),
    ("prift-mass", {}),
    ("prift-mass", {"threshold": 0.5, "ties": "strict"}),
    ("prift-mass", {"threshold": 0.7, "ties": "inclusive"}),
    *(
        ("reweight", {"rule": rule, "signal": signal, **options})
        for rule, settings in RULE_OPTIONS.items()
        for signal, options in product(("live", "reference"), settings)
    ),
    ("prift-mass", {"threshold": 0.7, "keep_end": True}),
    *(
        ("reweight", {"rule": rule, "signal": signal, **RULE_OPTIONS[rule][-1], "keep_end": True})
        for rule, signal in (("threshold", "live"), ("mass", "reference"), ("entropy", "reference"))
    ),
    ("gft", {}),
    *(("gft", {"tau": tau, "aggregation": how}) for tau, how in ((0, "token"), (0.25, "sequence"), (1.5, "token"))),
    ("self-train", {}),
    ("ift", {}),
    ("ift", {"gamma": 0}),
    ("ift", {"gamma": 1, "average": "token"}),
    *(
        ("ift", {"variant": variant, "average": average, **gamma})
        for variant, gamma in (("normalised", {"gamma": 0.6}), ("algorithm1", {"gamma": 0.6}), ("equation21", {}))
        for average in ("sequence", "token")
    ),
    ("ift", {"lam": 0.5, "schedule": "linear", "lam_start": 0.1}),
    ("ift", {"lam": 1, "schedule": "noisy", "embeddings": "attached"}),
    ("irft", {}),
    *(("irft", {"beta": beta, "link": link}) for beta in (0.3, 2) for link in ("sigmoid", "hinge", "none")),
    ("eksft", {}),
    *(
        ("eksft", {"rho": 0.4, "lambda_h": 0.3, "lambda_kl": 0.7, "select": select, "scope": scope, "extreme": extreme})
        for select, scope, extreme in product(("union", "intersection"), ("sequence", "batch"), ("largest", "smallest"))
    ),
    *(
        ("eksft", {"rho": 0.4, "lambda_h": 0.3, "lambda_kl": 0.7, "entropy": entropy, "penalty": penalty})
        for entropy, penalty in product(("nats", "normalised"), ("kl", "released"))
    ),
    *(
        ("eksft", {"rho": 0.4, "lambda_kl": 0.7, "extreme": one, "extreme_kl": other})
        for one, other in (("largest", "smallest"), ("smallest", "largest"))
    ),
    ("eksft", {"rho": 0.4, "lambda_h": 0.3, "lambda_kl": 0.7, "keep_end": True}),
    ("weighted-sft", {}),
    ("psft", {}),
    ("psft", {"clip": 0.7, "refresh": 1}),
    ("deft", {}),
    ("deft", {"exponent": "cayley"}),
    ("deft", {"exponent": "fixed", "alpha": 0.3}),
    ("eaft", {"k": 2}),
    ("eaft", {"k": 3, "alpha": 2, "scale": 1.5}),
    *(("gem", options) for options in ({}, {"beta": 2}, {"h": "logsigmoid"}, {"h": "logsigmoid", "beta": 2})),
    ("idft", {}),
    ("idft", {"beta": 0.4, "low": 0.3, "high": 5}),
    ("idft", {"warmup": 0.2, "transition": 0.4}),
    ("idft", {"warmup": 0.5, "gradient": "attached"}),
    ("idft", {"gradient": "attached"}),
    *(("pear", {"by": by}) for by in ("token", "block", "sequence")),
    ("pear", {"by": "block", "block": 3, "gamma": 0.9}),
    ("pear", {"low": -2, "high": 2, "gamma": 1}),
    ("pear", {"behaviour": "column"}),
    ("sed-sft", {}),
    ("sed-sft", {"k": 1, "threshold": 0.5, "strength": 3}),
    *(("tail-sft", options) for options in ({}, {"fraction": 0.5}, {"fraction": 1})),
    *(("tail-sft", {"fraction": fraction, "schedule": "ramp"}) for fraction in (0.25, 0.9)),
    ("talr", {}),
    ("talr", {"floor": 0.4, "normalise": False}),
    *(
        (name, options)
        for name in ("asft", "kl-sft")
        for options in ({}, {"lambda_kl": 0.7}, {"lambda_kl": 0.3, "direction": "reverse"}, {"lambda_kl": 0})
    ),
    ("chord-phi", {}),
    *(("gift", options) for options in ({}, {"beta": 1.5}, {"beta": 0}, {"beta": 800})),
    *(("hpt", options) for options in ({}, {"gate": 1, "imitation": 0.5}, {"gate": -1}, {"gate": 9})),
    *(("iw-sft", options) for options in ({}, {"temperature": 2.5, "cap": 1.1}, {"per": "token", "clip": 0.3})),
    *(("luffy", options) for options in ({}, {"gamma": 3})),
    *(("p-alpha", options) for options in ({}, {"alpha": 0}, {"alpha": 2.5})),
    *(("p-alpha", {"alpha": alpha, "keep": keep, "threshold": 0.2}) for alpha in (0, 1) for keep in ("top", "bottom")),
    ("product", {}),
    ("product", {"of": ["chord-phi", {"name": "prift-mass", "threshold": 0.3, "keep_end": True}]}),
    ("product", {"of": ["sft", {"name": "asft", "lambda_kl": 0.4}, "prift-prob", "kl-sft"]}),
    ("product", {"of": [{"name": "eksft", "scope": "batch", "lambda_h": 0, "lambda_kl": 0}, "iw-sft"]}),
    ("product", {"of": [{"name": "gft", "aggregation": "sequence"}, "luffy"]}),
    ("product", {"of": ["weighted-sft", "dft", {"name": "kl-sft", "lambda_kl": 0.3}]}),
    ("product", {"of": ["talr", "prift-prob"]}),
    ("product", {"of": ["tail-sft", "dft"]}),
    *(("profit", options) for options in ({}, {"keep": "lower", "threshold": 0.3})),
    ("profit", {"keep": "middle", "threshold": 0.1, "upper": 0.5}),
    *(("rift", options) for options in ({}, {"wrong": 0}, {"right": 0.8, "wrong": -0.5})),
    ("srft", {}),
]

IDS = ["-".join([name, *(str(value) for value in options.values())]) for name, options in CASES]
