"""What comparisons on SmolLM2-135M showed, and EKSFT on few rows: tables of docs/evidence/smollm2.md from records.

PYTHONPATH=. ballast compare recipes/smollm2/facts.yaml           # facts-rl, words; recipes/lab/eksft-few.yaml
python scripts/smollm2_evidence.py keep runs/smollm2-facts   # its summary and claims into docs/evidence/smollm2
python scripts/smollm2_evidence.py tables                    # the tables of the page from these
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import evidence
from evidence import AFTER, BEFORE, Claim
from published_evidence import seen

if TYPE_CHECKING:
    from ballast.records.summary import Summary

KEPT = evidence.EVIDENCE / "smollm2"
PAGE = evidence.EVIDENCE / "smollm2.md"
START = "<!-- tables: scripts/smollm2_evidence.py -->"
FACTS = ("facts", "accuracy")
ASKED = {"facts": FACTS, "facts-rl": FACTS, "words": ("svamp", "accuracy"), "eksft-few": evidence.GREEDY}
"""What a comparison asks first, by the name of its recipe."""
SAMPLED = dict.fromkeys(("facts", "facts-rl", "eksft-few"), evidence.SAMPLED)
STAGES = {"facts": (BEFORE,), "facts-rl": (AFTER,), "words": (BEFORE,), "eksft-few": (BEFORE, AFTER)}
"""When it asks."""
ENTROPY = dict.fromkeys(("facts", "facts-rl", "eksft-few"), evidence.ENTROPY) | {"words": ("gsm8k", "entropy")}
TEXT = {"facts": evidence.FORGETTING, "words": ("text", "nll")}
LEARNED = ("gsm8k", "nll")
PAPERS = {"prift-mass": "PriFT", "prift-mass-end": "PriFT", "dft": "DFT", "gft": "GFT", "ift": "IFT", "hft": "HFT"}
EKSFT = ("eksft", "eksft-normalised", "eksft-released")


def made(name: str) -> tuple[Claim, ...]:
    """Return what is claimed of a comparison: the papers' claims in its measures. Those of absent rows fall away."""
    asked = [of[name] for of in (ASKED, SAMPLED) if name in of]
    found = [
        Claim(f"{paper} beats SFT", metric, (label, stage), ("sft", stage))
        for stage in STAGES[name]
        for metric in asked
        for label, paper in PAPERS.items()
    ]
    if name in TEXT:
        found += [
            Claim("the prior's weight beats the live one (PriFT)", one, _at("prift-prob"), _at("dft")) for one in asked
        ]
        found += [Claim("SFT forgets more (HFT)", TEXT[name], _at("sft"), _at("hft"))]
        found += [Claim("SFT forgets more (PriFT)", TEXT[name], _at("sft"), _at("prift-mass"))]
    if name == "words":
        held = ("dft", "prift-prob", "prift-mass", "prift-mass-end")
        found += [
            Claim("rows that were not seen cost more than after SFT", LEARNED, _at(one), _at("sft")) for one in held
        ]
    for label in EKSFT:
        found.append(Claim("EKSFT keeps entropy", ENTROPY[name], _at(label), _at("sft")))
        if AFTER in STAGES[name]:
            found += [Claim("EKSFT is ahead of SFT", one, (label, AFTER), ("sft", AFTER)) for one in asked]
    return tuple(found)


def _at(label: str) -> tuple[str, str]:
    return label, BEFORE


def keep(output: Path) -> Path:
    """Put a comparison's summary and claims into docs/evidence/smollm2, under its recipe's name."""
    name = output.name.removeprefix("smollm2-").removeprefix("lab-")
    evidence.keep_claims(output, KEPT / name, made(name))
    return KEPT / name


def tables() -> str:
    """Return the tables of every comparison that is kept."""
    parts = []
    for name in (name for name in ASKED if (KEPT / name).is_dir()):
        summary, found = evidence.kept_claims(KEPT / name)
        parts += [f"### {name}\n", overview(summary), ""]
        parts += [evidence.sweep_table(summary), ""] if summary.choose_by else []
        parts += [evidence.claims_table(found), "", seen(found), ""]
    return "\n".join(parts)


def overview(summary: Summary) -> str:
    """Return one row for each row and stage, with every figure that the page has room for."""
    asked = [(task.name, metric) for task in summary.tasks for metric in task.metrics if metric in SHOWN]
    lines = ["| | rate | " + " | ".join(f"{task} {SHOWN[metric]}".strip() for task, metric in asked) + " |"]
    lines.append("|---" * (len(asked) + 2) + "|")
    for row in summary.rows:
        for stage in row.stages:
            cells = [evidence.cell(row.result(stage, *of)) for of in asked]
            first = f"| {row.label}{evidence.STAGES[stage]} | {evidence.rate_cell(row)} | "
            lines.append(first + " | ".join(cells) + " |")
    return "\n".join(lines)


SHOWN = {
    "accuracy": "",
    "pass@1": "pass@1",
    "pass@8": "pass@8",
    "entropy": "entropy",
    "base_kl": "KL to base",
    "forgetting": "forgetting",
    "nll": "nll",
}
"""Metrics of the tables, and what they are called there."""


if __name__ == "__main__":
    evidence.run(__doc__, keep, tables, PAGE, START)
