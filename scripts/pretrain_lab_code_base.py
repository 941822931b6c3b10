"""Pretrain the tiny base model of the code tasks from nothing and write it to src/ballast/lab/code_base.

    python scripts/pretrain_lab_code_base.py --log docs/lab_code_base_log.json

The same seed gives the same text; weights agree up to the rounding of the machine's matrix products.
"""

import re
from collections.abc import Iterator
from functools import partial

from pretrain_lab_base import closed_tokenizer, parser, pretrain

from ballast.lab import code_tasks
from ballast.lab.code_atoms import atoms

PATTERN = r"\n {4}| ?\w+|[\s\S]"
"""A token is a word with the space before it, the start of an indented line, or any other character."""


def texts() -> Iterator[str]:
    """Yield every text that holds a token: steps by name and in all wordings, with each variable, and deep chains."""
    for atom in atoms():
        yield code_tasks.named(atom)
        yield from (code_tasks.prompt((atom,), wording) for wording in code_tasks.WORDINGS)
        yield code_tasks.prompt((atom, atom))
        # The first step of a chain reads x, those after it a and b; each may be assigned or returned.
        yield code_tasks.program((atom, atom, atom, atom))
    yield from (row["prompt"] + row["completion"] for row in code_tasks.split("code-deep-test"))


def vocabulary() -> list[str]:
    """Return the tokens of the code tasks in order."""
    return sorted({token for text in texts() for token in re.findall(PATTERN, text)})


def main() -> None:
    """Parse the command line and pretrain."""
    command = parser(__doc__.splitlines()[0], "src/ballast/lab/code_base", "docs/lab_code_base_log.json")
    command.set_defaults(hidden=128, heads=4)
    command.add_argument("--near", type=int, default=2, help="steps that share their phrases")
    command.add_argument("--swapped", type=float, default=0.25, help="share of chains asked for in the other order")
    options = command.parse_args()
    tokenizer = closed_tokenizer(vocabulary(), PATTERN)
    pretrain(options, tokenizer, partial(code_tasks.draw_text, near=options.near, swapped=options.swapped), "\n", {})


if __name__ == "__main__":
    main()
