"""A process that does works of a comparison as lines of JSON ask for them; ``python -m ballast.compare.worker``.

The first line on stdin says what is compared, every further one is a piece of work; each is answered by one line on
stdout, the first one when everything is imported.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from queue import Queue
from typing import Any

from ballast.compare.jobs import Bench, Work
from ballast.compare.plan import Plan
from ballast.config.recipe import Recipe
from ballast.errors import BallastError
from ballast.records.folder import Store


def main() -> None:
    """Do works until stdin ends, which it does with the process that asks."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    # What libraries print is no answer.
    os.dup2(2, 1)
    asked: Queue[dict[str, Any]] = Queue()
    threading.Thread(target=_listen, args=(asked,), daemon=True).start()
    context = asked.get()
    bench = Bench(Plan(Recipe.model_validate(context["recipe"])), Store(Path(context["root"])), context["steps"])
    settle(context["threads"])
    reply: dict[str, Any] = {}
    while True:
        answers.write(json.dumps(reply) + "\n")
        answers.flush()
        reply = _answer(bench, Work.from_dict(asked.get()))


def settle(threads: int | None) -> None:
    """Leave out bars and notices, and threads that a small model only waits for."""
    import datasets
    import torch
    import transformers

    import ballast.training  # noqa: F401  # what every run needs, before any is timed
    from ballast.pipeline import quiet

    quiet()
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    if threads is not None:
        torch.set_num_threads(threads)


def _listen(asked: Queue[dict[str, Any]]) -> None:
    for line in sys.stdin:
        asked.put(json.loads(line))
    # Whoever asked is gone: what is half done would otherwise be finished beside the next run of it.
    os._exit(1)


def _answer(bench: Bench, work: Work) -> dict[str, Any]:
    try:
        try:
            bench.run(work)
        except BallastError:
            raise
        except Exception as error:
            return {"failed": bench.fail(work, error)}
    except BallastError as error:
        return {"unusable": str(error)}
    return {}


if __name__ == "__main__":
    main()
