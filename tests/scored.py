"""Scored tokens made up for tests of advice."""

import math

import numpy as np

from ballast.advise import ScoredTokens


def scored(rows, *, q=0.9, entropy=0.2, mass=1.0, tied=0.0, **changes):
    """Rows of so many tokens, alike but for ``changes``: field -> {(row, token): value}."""
    lengths = np.asarray(rows)
    owners = np.repeat(np.arange(len(lengths)), lengths)
    place = np.concatenate([np.arange(n) for n in lengths])
    values = {"logprob": math.log(q), "entropy": entropy, "mass": mass, "tied": tied}
    columns = {name: np.full(len(owners), value) for name, value in values.items()}
    for name, cells in changes.items():
        field, value_of = ("logprob", math.log) if name == "q_at" else (name.removesuffix("_at"), float)
        for (row, token), value in cells.items():
            columns[field][(owners == row) & (place == token)] = value_of(value)
    ids = tuple(np.arange(n + 1) for n in lengths)
    return ScoredTokens(**columns, row=owners, place=place + 1, ids=ids)


def random_tokens(seed=0, rows=40):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, 12, rows)
    made = scored(lengths)
    n = len(made.row)
    q = np.exp(-rng.exponential(2.0, n))
    values = {"logprob": np.log(q), "entropy": rng.random(n) * 2, "mass": rng.random(n), "tied": rng.random(n) * 0.1}
    return ScoredTokens(**values, row=made.row, place=made.place, ids=made.ids)


def rows_with(count, places, *, rows=40, length=20):
    """``count`` of the rows with contradicted tokens at these places."""
    return scored([length] * rows, q_at={(row, place): 1e-4 for row in range(count) for place in places})
