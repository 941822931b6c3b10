"""SVAMP rows split by story, and generated one-step story problems, as JSONL for `ballast`.

    python prepare.py SVAMP.json OUT

SVAMP's 1000 bodies are variations on far fewer stories. Numbers are blanked, bodies that share at least half of their
words are linked, and whole clusters go to train, validation or test, so no story is on two sides. Generated problems
that come that near to a story of validation or test are left out.
"""

from __future__ import annotations

import argparse
import ast
import json
import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from stories import problems

OVERLAP = 0.5
SIZES = {"test": 400, "validation": 100}
Row = dict[str, Any]


def words(text: str) -> frozenset[str]:
    """Return the words of a text in lower case, every number as one and the same word."""
    return frozenset(re.findall(r"[a-z']+|#", blanked(text)))


def blanked(text: str) -> str:
    """Return a text in lower case with ``#`` for every number."""
    return re.sub(r"\d[\d,]*(\.\d+)?", "#", text.lower())


def overlap(one: frozenset[str], other: frozenset[str]) -> float:
    """Return the share of common words among all words of two texts."""
    return len(one & other) / max(1, len(one | other))


def expression(equation: str) -> str:
    """Return an equation without spaces, ``.0`` and needless parentheses: ``( ( 8.0 + 8.0 ) - 3.0 )`` → ``8+8-3``."""
    whole = re.sub(r"(\d+)\.0\b", r"\1", equation).strip()
    return ast.unparse(ast.parse(whole, mode="eval")).replace(" ", "")


def question(body: str, asked: str) -> str:
    """Return the story and its question as one line; bodies cut in mid-sentence get their comma back."""
    body, asked = body.strip(), asked.strip()
    if body.endswith((".", "?", "!")):
        return f"{body} {asked}"
    return f"{body}, {asked[0].lower()}{asked[1:]}"


def number(value: float) -> int | float:
    """Return whole numbers as int."""
    return int(value) if value == int(value) else value


def clusters(bodies: Sequence[str], least: float = OVERLAP) -> list[int]:
    """Return a cluster number per body: single linkage of word overlaps of at least ``least``."""
    bags = [words(body) for body in bodies]
    parent = list(range(len(bags)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for i in range(len(bags)):
        for j in range(i):
            if root(i) != root(j) and overlap(bags[i], bags[j]) >= least:
                parent[root(i)] = root(j)
    return [root(i) for i in range(len(bags))]


def split(stories: Sequence[int], seed: int) -> list[str]:
    """Return train, validation or test per row; clusters are drawn at random until the sizes are reached."""
    sizes = Counter(stories)
    order = sorted(sizes)
    random.Random(f"svamp {seed}").shuffle(order)
    sides: dict[int, str] = {}
    filled: Counter[str] = Counter()
    for story in order:
        side = next((name for name, size in SIZES.items() if filled[name] < size), "train")
        sides[story] = side
        filled[side] += sizes[story]
    return [sides[story] for story in stories]


def svamp_rows(source: Sequence[Row], seed: int) -> dict[str, list[Row]]:
    """Return the rows of each split, with the story that a row is a variation of."""
    stories = clusters([row["Body"] for row in source])
    sides: dict[str, list[Row]] = {"train": [], "validation": [], "test": []}
    for row, story, side in zip(source, stories, split(stories, seed), strict=True):
        sides[side].append(
            {
                "prompt": question(row["Body"], row["Question"]) + "\n",
                "completion": expression(row["Equation"]),
                "answer": number(row["Answer"]),
                "story": story,
                "id": row["ID"],
                "body": row["Body"],
            }
        )
    return sides


def generated_rows(count: int, seed: int, held_out: Iterable[str]) -> tuple[list[Row], int]:
    """Return generated problems and how many were left out for their likeness to a held-out story."""
    bags = sorted({words(body) for body in held_out}, key=sorted)
    near: dict[frozenset[str], bool] = {}
    kept: list[Row] = []
    left_out = 0
    for row in problems(count, seed):
        story = words(str(row["prompt"]).rsplit(". ", 1)[0])
        if story not in near:
            near[story] = any(overlap(story, bag) >= OVERLAP for bag in bags)
        left_out += near[story]
        if not near[story]:
            kept.append({**row, "prompt": f"{row['prompt']}\n"})
    return kept, left_out


def report(sides: dict[str, list[Row]], generated: Sequence[Row], left_out: int) -> Iterable[str]:
    """Yield lines on sizes and on what is shared between the sets."""
    for name, rows in sides.items():
        largest = Counter(row["story"] for row in rows).most_common(1)[0][1]
        yield f"{name}: {len(rows)} rows, {len({row['story'] for row in rows})} stories, largest of {largest} rows"
    yield f"generated: {len(generated)} rows; {left_out} more left out, too near to a held-out story"
    texts = {
        name: {blanked(row["prompt"]) for row in rows} for name, rows in (*sides.items(), ("generated", generated))
    }
    for one, other in combinations(texts, 2):
        yield f"{one} and {other}: {len(texts[one] & texts[other])} texts in common, numbers blanked"
    held_out = {words(row["body"]) for name in SIZES for row in sides[name]}
    learnt = {words(row["body"]) for row in sides["train"]}
    nearest = max(overlap(one, other) for one in held_out for other in learnt)
    yield f"train and held-out stories share at most {nearest:.2f} of their words"


def write(path: Path, rows: Iterable[Row]) -> None:
    """Write one JSON object per line, without the columns that only the split needs."""
    lines = ({key: value for key, value in row.items() if key != "body"} for row in rows)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("svamp", type=Path, help="SVAMP.json")
    parser.add_argument("out", type=Path, help="folder for the JSONL files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--generated", type=int, default=6000, help="generated problems")
    options = parser.parse_args()
    sides = svamp_rows(json.loads(options.svamp.read_text(encoding="utf-8")), options.seed)
    held_out = [row["body"] for name in SIZES for row in sides[name]]
    generated, left_out = generated_rows(options.generated, options.seed, held_out)
    options.out.mkdir(parents=True, exist_ok=True)
    for name, rows in (*sides.items(), ("generated", generated)):
        write(options.out / f"{name}.jsonl", rows)
    text = "\n".join(report(sides, generated, left_out))
    (options.out / "report.txt").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
