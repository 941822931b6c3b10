"""The program of the math-verify worker: one JSON request a line in, one JSON reply a line out."""

import json
import os
import resource
import select
import signal
import sys

MEMORY_BYTES = 4 * 2**30


def last_answer_form(answer: str) -> str:
    """Return the reference answer as math-verify reads it: the part after ``####``, LaTeX between dollar signs."""
    answer = answer.rsplit("####", 1)[-1].strip()
    return answer if "$" in answer or "\\boxed" in answer else f"${answer}$"


def compare(completion: str, answer: str) -> float:
    from math_verify import parse, verify

    gold = parse(last_answer_form(answer), parsing_timeout=None, raise_on_error=True)
    if not gold:
        raise ValueError(f"no mathematical answer found in the row's answer {answer[:80]!r}")
    given = parse(completion, parsing_timeout=None)
    return float(verify(gold, given, timeout_seconds=None, raise_on_error=True))


def lines(parent: int):
    """Yield requests until the input closes or the parent is gone."""
    buffer = b""
    while os.getppid() == parent:
        if not select.select([0], [], [], 5.0)[0]:
            continue
        part = os.read(0, 65536)
        if not part:
            return
        buffer += part
        *complete, buffer = buffer.split(b"\n")
        yield from complete


def main() -> None:
    sys.path[:] = json.loads(sys.argv[1])
    parent = os.getppid()
    replies = os.dup(1)
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Should the parent die in the middle of a comparison, the alarm's default action ends this process even inside one
    # long operation of the interpreter.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    import math_verify  # noqa: F401

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    os.write(replies, b"{}\n")
    for line in lines(parent):
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, request["seconds"] + 5.0)
        try:
            reply = {"score": compare(request["completion"], request["answer"])}
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"[:300]}
        signal.setitimer(signal.ITIMER_REAL, 0)
        os.write(replies, json.dumps(reply).encode() + b"\n")


if __name__ == "__main__":
    main()
