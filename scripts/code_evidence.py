"""What the comparisons on the code tasks showed: from their records to the tables in docs/evidence/code.md.

ballast compare recipes/lab/code-data.yaml
python scripts/code_evidence.py keep runs/lab-code-data       # its summary and claims into docs/evidence/code
python scripts/code_evidence.py tables                        # the tables of the page from these
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import evidence
from evidence import AFTER, BEFORE, Claim

if TYPE_CHECKING:
    from ballast.records.summary import Summary

KEPT = evidence.EVIDENCE / "code"
PAGE = evidence.EVIDENCE / "code.md"
START = "<!-- tables: scripts/code_evidence.py -->"
A, B, DEEP, SEEN = (("a-test", "accuracy"), ("b-test", "accuracy"), ("deep", "accuracy"), ("seen", "accuracy"))
SAMPLED, FORGETTING = ("ready", "pass@8"), ("ready", "forgetting")


WHERE = {A: "on A", B: "on B", DEEP: "on three steps", SAMPLED: "sampled, on B"}


def before(says: str, metric: tuple[str, str], higher: str, lower: str) -> Claim:
    """Return a claim about two rows before RL."""
    return Claim(f"{says}, {WHERE[metric]}", metric, (higher, BEFORE), (lower, BEFORE))


CLAIMS: dict[str, tuple[Claim, ...]] = {
    "code-data": (
        before("composites are needed beside single steps", A, "both", "atoms"),
        before("composites are needed beside single steps", B, "both", "atoms"),
        before("single steps are needed beside composites", B, "both", "composites"),
        before("8 composites help", B, "few-8", "atoms"),
        before("32 composites help", B, "few-32", "atoms"),
        before("all composites are better than 32", B, "both", "few-32"),
        before("composites of two teach chains", DEEP, "both", "atoms"),
    ),
    "code-rl": tuple(
        Claim(
            "RL on the prompts of fine-tuning improves what they never showed", one, ("both", AFTER), ("both", BEFORE)
        )
        for one in (A, B, SAMPLED)
    ),
    "code-scratch": (
        Claim("RL from the base is ahead of fine-tuning, on B", B, ("base", AFTER), ("composites", BEFORE)),
        Claim("… and of RL after fine-tuning, on B", B, ("base", AFTER), ("composites", AFTER)),
        Claim("fine-tuning is ahead of RL from the base, on A", A, ("composites", BEFORE), ("base", AFTER)),
        Claim("fine-tuning forgets more", FORGETTING, ("composites", BEFORE), ("base", AFTER)),
    ),
}
COLUMNS = {
    "seen": SEEN,
    "A": A,
    "B": B,
    "deep": DEEP,
    "B pass@1": ("ready", "pass@1"),
    "B pass@8": SAMPLED,
    "entropy": ("ready", "entropy"),
    "forgetting": FORGETTING,
}


def keep(output: Path) -> Path:
    """Put a comparison's summary and claims into docs/evidence/code, under its recipe's name."""
    name = output.name.removeprefix("lab-")
    evidence.keep_claims(output, KEPT / name, CLAIMS[name])
    return KEPT / name


def tables() -> str:
    """Return the tables of every comparison that is kept."""
    parts = []
    for name in (name for name in CLAIMS if (KEPT / name).is_dir()):
        summary, found = evidence.kept_claims(KEPT / name)
        parts += [f"### {name}\n", overview(summary), "", evidence.claims_table(found), ""]
    return "\n".join(parts)


def overview(summary: Summary) -> str:
    """Return one row for each row and stage: what was measured, with half of the 95 % interval."""
    known = {(task.name, metric) for task in summary.tasks for metric in task.metrics}
    columns = {name: of for name, of in COLUMNS.items() if of in known}
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for row in summary.rows:
        for stage in row.stages:
            cells = [evidence.cell(row.result(stage, *of)) for of in columns.values()]
            lines.append(f"| {row.label}{evidence.STAGES[stage]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    evidence.run(__doc__, keep, tables, PAGE, START)
