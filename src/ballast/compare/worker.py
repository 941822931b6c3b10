"""A process that does jobs for another one.

It is asked in lines of JSON. The first line on its stdin says what is compared, every further one is a job; each is
answered by one line on stdout, the first one when everything is imported.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import traceback
from pathlib import Path
from queue import Queue
from typing import Any

from ballast.compare.jobs import Job, JobContext, one_line
from ballast.compare.plan import Plan
from ballast.config.recipe import Recipe
from ballast.errors import BallastError
from ballast.records.folder import Store
from ballast.records.schema import Record


class Reply(Record):
    """What came of a job: nothing, where it is done.

    Attributes:
        failed: why it broke off.
        unusable: what is wrong with the input of all.
        said: lines for the user.
    """

    failed: str | None = None
    unusable: str | None = None
    said: tuple[str, ...] = ()


def order(context: JobContext, threads: int | None) -> str:
    """Return the line that tells a process what is compared."""
    asked = {
        "recipe": context.plan.recipe.resolved(),
        "root": str(context.store.root),
        "steps": context.steps,
        "threads": threads,
    }
    return json.dumps(asked)


def take_order(line: str) -> JobContext:
    """Prepare this process for what `order` tells."""
    asked: dict[str, Any] = json.loads(line)
    configure_process(asked["threads"])
    return JobContext(Plan(Recipe.model_validate(asked["recipe"])), Store(Path(asked["root"])), asked["steps"])


def serve() -> None:
    """Be one of the processes: do jobs until stdin ends, which it does with the process that asks."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    # What libraries print is no answer.
    os.dup2(2, 1)
    lines: Queue[str] = Queue()
    threading.Thread(target=_listen, args=(lines,), daemon=True).start()
    context = take_order(lines.get())
    reply = Reply()
    while True:
        answers.write(reply.model_dump_json() + "\n")
        answers.flush()
        reply = attempt(context, Job.model_validate_json(lines.get()))


def configure_process(threads: int | None) -> None:
    """Turn off progress bars and notices, and threads that a small model only waits for."""
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


def _listen(lines: Queue[str]) -> None:
    for line in sys.stdin:
        lines.put(line)
    # Whoever asked is gone: what is half done would otherwise be finished beside the next run of it.
    os._exit(1)


def attempt(context: JobContext, job: Job) -> Reply:
    """Do a job for another process."""
    said: list[str] = []
    try:
        context.run(job, lambda line: said.append(str(line)))
    except BallastError as error:
        return Reply(unusable=str(error))
    except Exception as error:
        return _broken(context, job, error)
    return Reply(said=tuple(said))


def _broken(context: JobContext, job: Job, error: Exception) -> Reply:
    if job.shared:
        traceback.print_exception(error)
        return Reply(unusable=f"{one_line(error)}; {context.store.jobs_log} has the traceback")
    try:
        return Reply(failed=context.fail(job, error))
    except BallastError as full:
        return Reply(unusable=str(full))
