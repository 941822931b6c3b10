"""Histograms of the weights that objectives give to the tokens of the demonstrations, where they were recorded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ballast.report.charts.data import Histogram, Section
from ballast.report.text import counted


def weights(tokens: Mapping[str, Any] | None) -> Section | None:
    """Return a histogram for each objective of a record of `ballast inspect`; None where it has none."""
    found = [one for one in (tokens or {}).get("objectives", ()) if one.get("histogram")]
    if tokens is None or not found:
        return None
    charts = tuple(_chart(one["label"], one["histogram"]) for one in found)
    seen = found[0]["histogram"]
    over = f"{counted(seen['rows'], 'row')}, {counted(seen['tokens'], 'token')}"
    return Section("weights", "Weights of the tokens", f"At {tokens['live']}, over {over}.", charts=charts)


def _chart(label: str, found: Mapping[str, Any]) -> Histogram:
    zero, tokens = found["zero"], max(found["tokens"], 1)
    note = f"{zero / tokens:.0%} of the tokens have weight 0"
    return Histogram(label, f"weight; {note}", label, tuple(found["edges"]), tuple(found["counts"]), note)


def labels(tokens: Mapping[str, Any] | None) -> list[str]:
    """Return the labels of the objectives in a record."""
    return [one["label"] for one in (tokens or {}).get("objectives", ())]
