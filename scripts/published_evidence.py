"""What a comparison of twelve published objectives showed: from its records to the tables of its page.

ballast compare recipes/lab/published.yaml
python scripts/published_evidence.py keep runs/lab-published   # summary, differences into docs/evidence
python scripts/published_evidence.py tables                    # tables of docs/evidence/published.md from these
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import evidence
from evidence import BEFORE, ENTROPY, FORGETTING, GREEDY, SAMPLED, Claim

if TYPE_CHECKING:
    from ballast.records.summary import Row, Summary

KEPT = evidence.EVIDENCE / "published"
PAGE = evidence.EVIDENCE / "published.md"
START = "<!-- tables: scripts/published_evidence.py -->"
PAPERS = {
    "dft": "DFT",
    "prift-mass": "PriFT",
    "kl-sft": "ASFT's baseline",
    "asft": "ASFT",
    "gift": "GIFT",
    "profit": "ProFit",
    "p-alpha": "Beyond Log Likelihood",
    "iw-sft": "iw-SFT",
    "deft": "DEFT",
    "talr": "TALR",
    "psft": "PSFT",
}
"""What each objective of the comparison is from."""


def against(says: str, metric: tuple[str, str], higher: str, lower: str) -> Claim:
    """Return a claim about two rows, none of which has seen RL."""
    return Claim(says, metric, (higher, BEFORE), (lower, BEFORE))


CLAIMS = (
    *(against(f"{paper} beats SFT", GREEDY, name, "sft") for name, paper in PAPERS.items()),
    *(against(f"{paper} beats SFT", SAMPLED, name, "sft") for name, paper in PAPERS.items()),
    against("the KL keeps DFT from drifting (ASFT)", ("ready", "base_kl"), "dft", "asft"),
    *(against(f"SFT forgets more ({PAPERS[name]})", FORGETTING, "sft", name) for name in ("asft", "talr", "psft")),
    *(against(f"{PAPERS[name]} keeps entropy", ENTROPY, name, "sft") for name in ("gift", "psft")),
)
COLUMNS = {
    "greedy": GREEDY,
    "pass@1": SAMPLED,
    "pass@8": ("ready", "pass@8"),
    "mixed@8": ("ready", "mixed@8"),
    "entropy": ENTROPY,
    "KL to base": ("ready", "base_kl"),
    "forgetting": FORGETTING,
}


def keep(output: Path) -> Path:
    """Put the comparison's summary and differences into docs/evidence/published."""
    evidence.keep_claims(output, KEPT, CLAIMS, "differences.json")
    return KEPT


def tables() -> str:
    """Return the tables of the page."""
    summary, found = evidence.kept_claims(KEPT, "differences.json")
    parts = (overview(summary), evidence.sweep_table(summary), evidence.claims_table(found), seen(found))
    return "\n\n".join(parts) + "\n"


def overview(summary: Summary) -> str:
    """Return one row for each objective, the best in greedy accuracy first."""

    def greedy(row: Row) -> float:
        result = row.result(BEFORE, *GREEDY)
        return -1.0 if result is None else result.over_seeds.value

    lines = ["| | rate | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 2) + "|"]
    for row in sorted(summary.rows, key=greedy, reverse=True):
        cells = [evidence.cell(row.result(BEFORE, *of)) for of in COLUMNS.values()]
        lines.append(f"| {row.label} | {evidence.rate_cell(row)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def seen(found: Sequence[Mapping[str, Any]]) -> str:
    """Return how large a difference had to be, by metric: in half-widths of intervals, and as the first of Holm's."""
    from scipy.stats import t

    lines = ["| metric | half-width of a 95 % interval, median (least–greatest) | to be found among all claims |"]
    lines.append("|---" * 3 + "|")
    for metric in dict.fromkeys(one["metric"][1] for one in found):
        # Two rows with the same figures for every seed have no interval.
        seeds = [one["over_seeds"] for one in found if one["metric"][1] == metric]
        half = sorted((one["high"] - one["low"]) / 2 for one in seeds if one["low"] is not None)
        free, level = seeds[0]["n"] - 1, evidence.LEVEL / 2
        wider = t.ppf(1 - level / len(found), free) / t.ppf(1 - level, free)
        middle = statistics.median(half)
        lines.append(f"| {metric} | {middle:.4f} ({half[0]:.4f}–{half[-1]:.4f}) | {wider * middle:.4f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    evidence.run(__doc__, keep, tables, PAGE, START)
