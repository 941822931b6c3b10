"""What counts as a hit of the rule of `ballast advise`, how often it hits, and the table of `docs/advise.md`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

TASKS = ("greedy", "sampled")
OBJECTIVES = ("sft", "prift-mass")
FLOOR = 0.03
PARTS = ("fix", "test")


def truth(difference: dict[str, Any]) -> str:
    """Return where prift-mass stands against sft: ``above`` or ``below``, else ``equal``.

    A side is taken where greedy or sampled accuracy differs clearly, its interval leaving out 0, and the other does not
    differ clearly the other way. ``floor`` where neither objective gets anywhere, so that nothing can differ.
    """
    if all(difference[task][name] < FLOOR for task in TASKS for name in OBJECTIVES):
        return "floor"
    intervals = [(difference[task]["low"], difference[task]["high"]) for task in TASKS]
    known = [(low, high) for low, high in intervals if low is not None]
    above, below = any(low > 0 for low, _ in known), any(high < 0 for _, high in known)
    return "equal" if above == below else "above" if above else "below"


def outcome(expects: str, truth: str) -> str:
    """Return ``hit`` where training showed what the rule expects, else ``miss``.

    ``floor`` where training showed nothing, ``silent`` where the rule expects nothing; neither is counted.
    """
    if truth == "floor":
        return "floor"
    if expects == "unknown":
        return "silent"
    return "hit" if expects == truth else "miss"


def rates(settings: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return for each part how often the rule hit among the settings that count.

    Beside it the exact interval (Clopper and Pearson 1934, through `scipy.stats.binomtest`), as if settings were drawn
    by chance, which they are not, and how often each expectation would have hit if it were given for every setting.
    """
    from scipy.stats import binomtest

    found = {}
    for part in PARTS:
        own = [one for one in settings if one["part"] == part]
        outcomes = Counter(one["outcome"] for one in own)
        counted = [one for one in own if one["outcome"] in ("hit", "miss")]
        interval = binomtest(outcomes["hit"], len(counted)).proportion_ci(0.95) if counted else None
        found[part] = {
            "settings": len(own),
            **{name: outcomes[name] for name in ("hit", "miss", "silent", "floor")},
            "rate": outcomes["hit"] / len(counted) if counted else None,
            "low": interval and float(interval.low),
            "high": interval and float(interval.high),
            "constant": {side: sum(one["truth"] == side for one in counted) for side in ("above", "equal", "below")},
        }
    return found


def table(settings: Sequence[dict[str, Any]]) -> str:
    """Return the settings as Markdown, those of ``fix`` first."""
    lines = [
        "| setting | start | supported | contradicted | flawed loss | rule expects | greedy | sampled | training | |",
        "|---|--:|--:|--:|--:|---|--:|--:|---|---|",
    ]
    for part in PARTS:
        lines += [_line(one) for one in settings if one["part"] == part]
    return "\n".join(lines)


def rates_table(found: dict[str, dict[str, Any]]) -> str:
    """Return the hit rates of both parts as Markdown."""
    lines = [
        "| part | settings | count | hits | rate | exact 95 % interval | `below` for all | `above` for all |",
        "|---|--:|--:|--:|--:|---|--:|--:|",
    ]
    for part, one in found.items():
        count = one["hit"] + one["miss"]
        interval = f"{one['low']:.0%} to {one['high']:.0%}"
        always = (f"{one['constant'][side]} of {count}" for side in ("below", "above"))
        cells = (part, one["settings"], count, one["hit"], f"{one['rate']:.0%}", interval, *always)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def flaws_table(settings: Sequence[dict[str, Any]]) -> str:
    """Return how the suspects compare with the flaws that the generator wrote, as Markdown."""
    lines = [
        "| rows | flawed | suspect | precision | recall | flawed tokens named | called likely noise |",
        "|---|--:|--:|--:|--:|--:|---|",
    ]
    for one in settings:
        shares = (one[name] for name in ("row_precision", "row_recall", "token_recall"))
        cells = (
            f"{one['part']}: {one['name']}",
            f"{one['flawed_rows']} of {one['rows']}",
            str(one["suspect_rows"]),
            *("–" if share is None else f"{share:.0%}" for share in shares),
            "yes" if one["separable"] else "no",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _line(one: dict[str, Any]) -> str:
    cells = (
        f"{one['part']}: {one['name']}",
        f"{one['start']['greedy']:.3f}",
        f"{one['support']['typical_row']['supported']:.1%}",
        f"{one['support']['typical_row']['contradicted']:.1%}",
        f"{one['support']['contradicted_loss']:.1%}",
        one["expects"],
        *(_difference(one["difference"][task]) for task in TASKS),
        one["truth"],
        f"**{one['outcome']}**" if one["outcome"] == "miss" else one["outcome"],
    )
    return f"| {' | '.join(cells)} |"


def _difference(found: dict[str, Any]) -> str:
    interval = "" if found["low"] is None else f" [{found['low']:+.3f}, {found['high']:+.3f}]"
    return f"{found['difference']:+.3f}{interval}".replace("-", "−")
