"""The program of a verifier's worker: pickled requests in (length and number first), one JSON reply a line out."""

import importlib
import json
import os
import pickle
import resource
import signal
import struct
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

Reply = dict[str, Any]

MEMORY_BYTES = 4 * 2**30
"""Memory a verifier may take beyond what it has once imported."""

TEXT_CHARACTERS = 1_000
"""What is kept of an answer that was read off a completion."""


def load(target: str) -> Callable[[str, Any], Any]:
    module, _, attribute = target.partition(":")
    found: Any = importlib.import_module(module)
    for part in attribute.split("."):
        found = getattr(found, part)
    return found


def limit_memory() -> None:
    # Private writable memory: libraries for accelerators reserve address space by the terabyte. Where the system does
    # not count it, the limit is without effect.
    try:
        with open("/proc/self/statm") as file:
            used = int(file.read().split()[5]) * resource.getpagesize()
    except (OSError, IndexError, ValueError):
        used = 0
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = used + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_DATA, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))


def leave_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os.killpg(0, signal.SIGKILL)


def read(source: int, size: int) -> bytes:
    parts = []
    while size:
        part = os.read(source, min(size, 2**20))
        if not part:
            os._exit(0)
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def number(score: Any) -> float:
    if isinstance(score, (str, bytes)):
        raise TypeError(f"it returned {score[:60]!r}, which is no number")
    return float(score)


def text(answer: Any) -> str | None:
    if answer is not None and not isinstance(answer, str):
        raise TypeError(f"it returned a {type(answer).__name__}, which is no text")
    return None if answer is None else answer[:TEXT_CHARACTERS]


def judge(function: Callable[[str, Any], Any], request: bytes) -> Reply:
    """Return the reply; it is marked as the last where the process is of no further use."""
    reply: Reply
    try:
        completion, row, seconds, reads = pickle.loads(request)
        # Should the parent die while one long operation keeps every thread waiting, this ends the process. Processor
        # time of all cores, so that it never comes before the parent's own clock; not SIGALRM, which verifiers use.
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_PROF, (seconds + 5.0) * (os.cpu_count() or 1))
        found = function(completion, row)
        reply = {"text": text(found)} if reads else {"score": number(found)}
    except MemoryError:
        return {"error": f"MemoryError: it may take {MEMORY_BYTES // 2**30} GiB beyond its imports", "last": True}
    except BaseException as error:
        reply = {"error": describe(error)}
    # An alarm that the verifier set and left would end the process while it judges another answer.
    for timer in (signal.ITIMER_PROF, signal.ITIMER_REAL, signal.ITIMER_VIRTUAL):
        signal.setitimer(timer, 0)
    return reply


def describe(error: BaseException) -> str:
    try:
        text = f"{type(error).__name__}: {error}"[:300]
        frames = traceback.extract_tb(error.__traceback__)[1:]
        return f"{text} ({frames[-1].filename}, line {frames[-1].lineno})" if frames else text
    except Exception:
        return type(error).__name__


def main() -> None:
    settings = json.loads(sys.argv[1])
    sys.path[:] = settings["path"]
    # The verifier gets neither end of our pipes: what it prints goes nowhere, and it finds its input at an end.
    requests, replies = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    own = os.getpid()
    threading.Thread(target=leave_with_parent, args=(os.getppid(),), daemon=True).start()

    def send(reply: Reply) -> None:
        if os.getpid() != own:  # a child that the verifier forked and that came back: one question, one answer
            os._exit(1)
        os.write(replies, json.dumps(reply).encode() + b"\n")

    try:
        function = load(settings["target"])
    except BaseException as error:
        send({"error": describe(error)})
        os._exit(1)
    limit_memory()
    send({})
    while True:
        size, asked = struct.unpack("<QQ", read(requests, 16))
        send(judge(function, read(requests, size)) | {"number": asked})


if __name__ == "__main__":
    main()
