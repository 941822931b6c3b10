"""What comparisons on the lab showed of the papers' claims: from their records to the tables in docs/evidence.

    ballast compare recipes/lab/strong-prior-noisy.yaml           # an hour or two on two cores, resumable
    python scripts/evidence.py keep runs/lab-strong-prior-noisy   # its summary, report and claims into docs/evidence
    python scripts/evidence.py tables                             # the tables of docs/evidence/README.md from these

`CLAIMS` are the papers', in the measures that the lab has.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ballast.records.schema import Estimate, ItemRecord
    from ballast.records.summary import Result, Row, Summary

EVIDENCE = Path(__file__).parent.parent / "docs" / "evidence"
PAGE = EVIDENCE / "README.md"
START, END = "<!-- tables: scripts/evidence.py -->", "<!-- end of tables -->"
BEFORE, AFTER = "before_rl", "after_rl"
STAGES = {BEFORE: "", AFTER: ", after RL"}
GREEDY, SAMPLED = ("greedy", "accuracy"), ("ready", "pass@1")
ENTROPY, FORGETTING = ("ready", "entropy"), ("ready", "forgetting")
LEVEL = 0.05
STYLES = ("steps", "words", "answer")
OPENINGS = {"s": "words", "#": "answer"}
"""The lab's styles of an answer, and what two of them begin with; the third begins with a number."""


@dataclass(frozen=True)
class Claim:
    """That one row's metric is higher than another's; a row is a label of the comparison at a stage."""

    says: str
    metric: tuple[str, str]
    higher: tuple[str, str]
    lower: tuple[str, str]


CLAIMS = (
    Claim("the prior's weight beats the live one (PriFT)", GREEDY, ("prift-prob", BEFORE), ("dft", BEFORE)),
    Claim("the prior's weight beats the live one (PriFT)", SAMPLED, ("prift-prob", BEFORE), ("dft", BEFORE)),
    Claim("the prior's weight beats the live one (PriFT)", GREEDY, ("prift-prob", AFTER), ("dft", AFTER)),
    Claim("PriFT-mass beats SFT (PriFT)", GREEDY, ("prift-mass", BEFORE), ("sft", BEFORE)),
    Claim("PriFT-mass beats SFT (PriFT)", SAMPLED, ("prift-mass", BEFORE), ("sft", BEFORE)),
    Claim("PriFT-mass beats SFT (PriFT)", GREEDY, ("prift-mass", AFTER), ("sft", AFTER)),
    Claim("EKSFT keeps entropy (EKSFT)", ENTROPY, ("eksft", BEFORE), ("sft", BEFORE)),
    Claim("EKSFT is ahead of SFT after RL (EKSFT)", GREEDY, ("eksft", AFTER), ("sft", AFTER)),
    Claim("EKSFT is ahead of SFT after RL (EKSFT)", SAMPLED, ("eksft", AFTER), ("sft", AFTER)),
    Claim("GFT beats SFT (GFT)", GREEDY, ("gft", BEFORE), ("sft", BEFORE)),
    Claim("GFT beats SFT (GFT)", SAMPLED, ("gft", BEFORE), ("sft", BEFORE)),
    Claim("GFT beats GRPO from the base (GFT)", GREEDY, ("gft", BEFORE), ("base", AFTER)),
    Claim("GFT beats GRPO from the base (GFT)", SAMPLED, ("gft", BEFORE), ("base", AFTER)),
    Claim("IFT beats SFT (IFT)", GREEDY, ("ift", BEFORE), ("sft", BEFORE)),
    Claim("IFT beats SFT (IFT)", SAMPLED, ("ift", BEFORE), ("sft", BEFORE)),
    Claim("half fine-tuning beats full (HFT)", GREEDY, ("sft-half", BEFORE), ("sft", BEFORE)),
    Claim("half fine-tuning beats full (HFT)", SAMPLED, ("sft-half", BEFORE), ("sft", BEFORE)),
    Claim("half fine-tuning beats full (HFT)", GREEDY, ("dft-half", BEFORE), ("dft", BEFORE)),
    Claim("half fine-tuning beats full (HFT)", SAMPLED, ("dft-half", BEFORE), ("dft", BEFORE)),
    Claim("full fine-tuning forgets more (HFT)", FORGETTING, ("sft", BEFORE), ("sft-half", BEFORE)),
    Claim("full fine-tuning forgets more (HFT)", FORGETTING, ("dft", BEFORE), ("dft-half", BEFORE)),
)


def judge(difference: Mapping[str, Any]) -> str:
    """Return what a difference says of its claim: a test over seeds first, then whether other items could undo it."""
    seeds, both, p = difference["over_seeds"], difference["over_both"], difference["p_holm"]
    if p is None or p >= LEVEL:
        return "not shown"
    word = "held" if seeds["value"] > 0 else "the reverse"
    wide = both if both is not None and both["low"] is not None else seeds
    sure = wide["low"] > 0 or wide["high"] < 0
    return word if sure else f"{word}, on these items"


def claims(output: Path, summary: Summary, made: Sequence[Claim] = CLAIMS) -> list[dict[str, Any]]:
    """Return the claims with their paired differences; p is adjusted by Holm over all claims of a comparison."""
    from ballast.compare.results import difference
    from ballast.compare.statistics import holm
    from ballast.records.folder import Store
    from ballast.records.runs import read_comparison

    runs = {run.path: run for run in read_comparison(Store(output))}
    stages = {(row.label, stage): there for row in summary.rows for stage, there in row.stages.items()}
    found = []
    for claim in made:
        if claim.higher in stages and claim.lower in stages:
            higher, lower = ([runs[path] for path in stages[side].runs] for side in (claim.higher, claim.lower))
            apart = difference(higher, lower, *claim.metric)
            assert apart is not None
            found.append({**asdict(claim), **apart.model_dump(exclude={"over_items", "p_holm"})})
    for one, adjusted in zip(found, holm([one["p"] for one in found]), strict=True):
        one["p_holm"] = adjusted
        one["verdict"] = judge(one)
    return found


def styles(output: Path, summary: Summary) -> list[dict[str, Any]]:
    """Return how each row answers: of every style its share of the answers, and how many of these are right."""
    from ballast.records.read import read_lines
    from ballast.records.schema import ItemRecord

    found = []
    for row in summary.rows:
        for stage, one in row.stages.items():
            for task in ("greedy", "ready"):
                paths = [path for run in one.runs for path in (output / run / "evals").glob(f"*/{task}.jsonl")]
                answers = [_answers(item) for path in paths for item in read_lines(path, ItemRecord)]
                scores: dict[str, list[float]] = {style: [] for style in STYLES}
                for style, score in (answer for item in answers for answer in item):
                    scores[style].append(score)
                total = sum(map(len, scores.values()))
                shares = {style: {"share": len(of) / total, "right": _mean(of)} for style, of in scores.items()}
                found.append({"label": row.label, "stage": stage, "task": task, "styles": shares})
    return found


def _answers(item: ItemRecord) -> list[tuple[str, float]]:
    texts = [completion.text for completion in item.completions]
    return [(OPENINGS.get(text[:1], STYLES[0]), score) for text, score in zip(texts, item.scores or (), strict=True)]


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def styles_table(found: Sequence[Mapping[str, Any]]) -> str:
    """Return one row for each label: how it answers greedily and sampled, before and after RL."""
    heads = ("greedy", "sampled", "greedy after RL", "sampled after RL")
    lines = ["| | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    cells = {(one["label"], one["stage"], one["task"]): one["styles"] for one in found}
    for label in dict.fromkeys(one["label"] for one in found):
        places = [(label, stage, task) for stage in (BEFORE, AFTER) for task in ("greedy", "ready")]
        lines.append(f"| {label} | " + " | ".join(_shares(cells.get(place)) for place in places) + " |")
    return "\n".join(lines)


def _shares(of: Mapping[str, Mapping[str, float | None]] | None) -> str:
    if of is None:
        return "–"
    parts = [(style, one["share"], one["right"]) for style, one in of.items()]
    return ", ".join(f"{style} {share:.2f} ({right:.2f})" for style, share, right in parts if right is not None)


def keep(output: Path) -> Path:
    """Put a comparison's summary, report and claims into docs/evidence, under its recipe's name."""
    from ballast.compare import load_plan, write_summary
    from ballast.records.folder import Store
    from ballast.records.write import write_json
    from ballast.report import HTML, MARKDOWN, write_report

    summary = write_summary(Store(output), load_plan(output))
    folder = EVIDENCE / output.name.removeprefix("lab-")
    folder.mkdir(parents=True, exist_ok=True)
    for page in write_report([output]):
        assert page.name in (HTML, MARKDOWN)
        shutil.copy(page, folder / page.name)
    (folder / "summary.json").write_text(json.dumps(rounded(summary.plain()), separators=(",", ":")) + "\n")
    write_json(folder / "claims.json", claims(output, summary))
    write_json(folder / "styles.json", rounded(styles(output, summary)))
    return folder


def keep_claims(output: Path, folder: Path, made: Sequence[Claim], name: str = "claims.json") -> None:
    """Put a comparison's summary and claims into a folder."""
    from ballast.compare import load_plan, write_summary
    from ballast.records.folder import Store
    from ballast.records.write import write_json

    summary = write_summary(Store(output), load_plan(output))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").write_text(json.dumps(rounded(summary.plain()), separators=(",", ":")) + "\n")
    write_json(folder / name, rounded(claims(output, summary, made)))


def kept_claims(folder: Path, name: str = "claims.json") -> tuple[Summary, list[dict[str, Any]]]:
    """Return the summary and the claims of a folder."""
    from ballast.records.read import read
    from ballast.records.summary import Summary

    return read(folder / "summary.json", Summary), json.loads((folder / name).read_text())


def rounded(value: Any) -> Any:
    """Return a record with numbers of eight digits: what is beyond them differs between machines."""
    if isinstance(value, float):
        return float(f"{value:.8g}")
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    return [rounded(one) for one in value] if isinstance(value, list) else value


def tables() -> str:
    """Return the tables of every comparison that is kept."""
    from ballast.records.read import read
    from ballast.records.summary import Summary

    parts = []
    for folder in sorted(path.parent for path in EVIDENCE.glob("*/claims.json")):
        summary = read(folder / "summary.json", Summary)
        found = json.loads((folder / "claims.json").read_text())
        chosen, by = len(summary.seeds.tuning), summary.choose_by
        assert by is not None
        parts += [
            f"### {folder.name}\n",
            f"{len(summary.seeds.report)} seeds, rates chosen on {chosen} others; ± is half of the 95 % interval "
            f"over seeds (of the base: over items). [Report]({folder.name}/report.md), "
            f"[page]({folder.name}/report.html).\n",
            overview(summary),
            "",
            f"The sweep: {by.task} {by.metric}, mean of {chosen} seeds, the chosen rate in bold.\n",
            sweep_table(summary),
            "",
            claims_table(found),
            "",
            "How they answer: each style's share of the answers, and in brackets how many of these are right.\n",
            styles_table(json.loads((folder / "styles.json").read_text())),
            "",
        ]
    return "\n".join(parts)


COLUMNS: tuple[tuple[str, str, str, str], ...] = (
    ("greedy", BEFORE, *GREEDY),
    ("pass@1", BEFORE, *SAMPLED),
    ("pass@8", BEFORE, "ready", "pass@8"),
    ("entropy", BEFORE, *ENTROPY),
    ("KL to base", BEFORE, "ready", "base_kl"),
    ("forgetting", BEFORE, "ready", "forgetting"),
    ("mixed@8", BEFORE, "ready", "mixed@8"),
    ("greedy after RL", AFTER, *GREEDY),
    ("pass@1 after RL", AFTER, *SAMPLED),
    ("pass@8 after RL", AFTER, "ready", "pass@8"),
)


def overview(summary: Summary) -> str:
    """Return one row for each objective: its rate and what was measured before and after RL."""
    lines = ["| | rate | " + " | ".join(name for name, *_ in COLUMNS) + " |", "|---" * (len(COLUMNS) + 2) + "|"]
    for row in summary.rows:
        cells = [cell(row.result(stage, task, metric)) for _, stage, task, metric in COLUMNS]
        lines.append(f"| {row.label} | {rate_cell(row)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def rate_cell(row: Row) -> str:
    """Return the rate of a row, and whether it is an end of the sweep."""
    return "–" if row.rate is None else f"{row.rate:g}" + ("" if row.edge is None else f" ({row.edge})")


def cell(result: Result | None) -> str:
    if result is None:
        return "–"
    one: Estimate = result.over_seeds if len(result.values) > 1 else result.over_items or result.over_seeds
    half = "" if one.low is None or one.high is None else f" ±{(one.high - one.low) / 2:.3f}"
    return f"{one.value:.3f}{half}"


def sweep_table(summary: Summary) -> str:
    """Return what chose the rates: one row for each objective, one column for each rate."""
    rows = [row for row in summary.rows if row.tuning]
    rates = sorted({one.rate for row in rows for one in row.tuning})
    lines = ["| | " + " | ".join(f"{rate:g}" for rate in rates) + " |", "|---" * (len(rates) + 1) + "|"]
    for row in rows:
        scores = {one.rate: one.score.value for one in row.tuning}
        cells = ["–" if rate not in scores else f"{scores[rate]:.3f}" for rate in rates]
        bold = [f"**{cell}**" if rate == row.rate else cell for rate, cell in zip(rates, cells, strict=True)]
        lines.append(f"| {row.label} | " + " | ".join(bold) + " |")
    return "\n".join(lines)


def claims_table(found: Sequence[Mapping[str, Any]]) -> str:
    """Return one row for each claim: the paired difference, its intervals, Holm's p and the verdict."""
    lines = [
        "| claim | measured by | difference | other seeds and items | p (Holm) | verdict |",
        "|---|---|---|---|---|---|",
    ]
    for one in found:
        sides = " − ".join(f"{label}{STAGES[stage]}" for label, stage in (one["higher"], one["lower"]))
        p = "–" if one["p_holm"] is None else f"{one['p_holm']:.3f}"
        lines.append(
            f"| {one['says']} | {one['metric'][1]}, {sides} | {_interval(one['over_seeds'])} | "
            f"{_interval(one['over_both'])} | {p} | {one['verdict']} |"
        )
    return "\n".join(lines)


def _interval(one: Mapping[str, Any] | None) -> str:
    if one is None:
        return "–"
    bounds = "" if one["low"] is None else f" [{one['low']:+.3f}, {one['high']:+.3f}]"
    return f"{one['value']:+.3f}{bounds}"


def page_with(made: str, page: str, start: str = START) -> str:
    """Return a page with its tables replaced, which stand between `start` and `END`."""
    head, _, rest = page.partition(start)
    return f"{head}{start}\n\n{made}\n{END}{rest.partition(END)[2]}"


def put(page: Path, made: str, start: str) -> None:
    """Write tables into their place on a page."""
    page.write_text(page_with(made, page.read_text(encoding="utf-8"), start), encoding="utf-8")


def run(
    about: str | None, keep: Callable[[Path], Path], tables: Callable[[], str], page: Path, start: str = START
) -> None:
    """Do what the command line names: ``keep RUNS`` first takes records over, ``tables`` only writes the page."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, dest="command")
    commands.add_parser("keep").add_argument("output", type=Path)
    commands.add_parser("tables")
    args = parser.parse_args()
    if args.command == "keep":
        print(keep(args.output))
    put(page, tables(), start)


if __name__ == "__main__":
    run(__doc__, keep, tables, PAGE)
