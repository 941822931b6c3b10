"""Run one program under limits and report how it ended; kills everything it leaves behind.

Standard input holds the program's length (8 bytes), the program and a secret token; the limits are the first argument.
One JSON object is printed, the token in it. A program has passed when its process gives the token back. The token is
read after that process was forked, and there it is on the interpreter's stack alone, where no name, frame or object
leads to it: a program that leaves early, writes to inherited files or kills this process cannot say that it passed.
"""

import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import struct
import sys
import time
from typing import Any, NoReturn

TOKEN_BYTES = 32
MESSAGE_BYTES = 4096
START_SECONDS = 20.0
READY = b"ready"
RESULT = "__result__"
"""Name under which a program leaves bytes that are told beside its having passed."""
RESULT_BYTES = 300
PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
CAPABILITIES_VERSION = 0x20080522
READ_ANY_FILE, WRITE_ANY_FILE = 1 << 2, 1 << 1
REFUSED_EVENTS = {"sys.settrace", "sys.setprofile", "gc.get_objects", "gc.get_referents", "gc.get_referrers"}
"""Tracing can jump over tests, and the collector could find what is on the stack."""

Outcome = dict[str, str]


def control(option: int, value: int) -> None:
    """Set a property of this process where the system is Linux."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def give_up_privileges() -> None:
    """Drop the superuser's capabilities but that of reading files, which Python's library may need."""
    control(PR_SET_NO_NEW_PRIVS, 1)
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        header, held = struct.pack("=Ii", CAPABILITIES_VERSION, 0), ctypes.create_string_buffer(24)
        library.capget(header, held)
        permitted = struct.unpack("=6I", held.raw)[1]
        kept = permitted & READ_ANY_FILE or permitted & WRITE_ANY_FILE
        library.capset(header, struct.pack("=6I", kept, kept, 0, 0, 0, 0))


def limit(limits: dict[str, Any]) -> None:
    """Limit this process.

    Raises:
        OSError: naming the limit that the system refuses.
    """
    cpu = max(1, int(limits["seconds"]) + 1)
    wanted = {
        "RLIMIT_CPU": cpu,
        "RLIMIT_AS": limits["memory_bytes"],
        "RLIMIT_DATA": limits["memory_bytes"],
        "RLIMIT_FSIZE": limits["file_bytes"],
        "RLIMIT_NOFILE": 64,
        "RLIMIT_CORE": 0,
    }
    if limits["processes"]:
        # The superuser is exempt from this one, and a limit already below it serves as well.
        hard = resource.getrlimit(resource.RLIMIT_NPROC)[1]
        most = limits["processes"] if hard == resource.RLIM_INFINITY else min(limits["processes"], hard)
        wanted["RLIMIT_NPROC"] = most
    for name, value in wanted.items():
        try:
            resource.setrlimit(getattr(resource, name), (value, value))
        except (OSError, ValueError) as error:
            hard = resource.getrlimit(getattr(resource, name))[1]
            raise OSError(f"{name} cannot be set to {value} where the hard limit is {hard}: {error}") from error
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)


def refuse(event: str, _: tuple[Any, ...]) -> None:
    """An audit hook: it cannot be taken away again."""
    if event in REFUSED_EVENTS:
        raise RuntimeError(f"{event} is not available to a program under test")


def run(program: bytes, limits: dict[str, Any], token: int, verdict: int) -> NoReturn:
    """Run in the child: say that the limits hold, then give the token back or the reason for having none."""
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    os.close(null)
    os.environ.clear()
    try:
        limit(limits)
    except OSError as error:
        os.write(verdict, str(error).encode())
        os._exit(1)
    give_up_privileges()
    os.write(verdict, READY)
    sys.addaudithook(refuse)
    space: dict[str, Any] = {"__name__": "__main__"}
    try:
        # Evaluated from left to right: the function and the token wait on the stack until the program has ended.
        os.write(
            verdict,
            (
                os.read(token, TOKEN_BYTES),
                os.close(token),  # type: ignore[func-returns-value]  # called for the order
                exec(compile(program.decode(), "<answer>", "exec"), space),  # type: ignore[func-returns-value]  # called for the order
            )[0]
            + result(space),
        )
    except BaseException as error:
        os.write(verdict, f"{type(error).__name__}: {error}"[:300].encode("utf-8", "replace"))
    os._exit(0)


def result(space: dict[str, Any]) -> bytes:
    found = space.get(RESULT)
    return found[:RESULT_BYTES] if type(found) is bytes else b""


def children() -> list[int]:
    """Return the processes that this one is the parent of."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in os.listdir("/proc/self/task"):
            with open(f"/proc/self/task/{task}/children") as file:
                found += map(int, file.read().split())
    return found


def reap(child: int) -> None:
    """Kill the child's group, then whatever was re-parented to this process, until nothing is left."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            os.killpg(child, signal.SIGKILL)
        for pid in children():
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.005)


def message(source: int, seconds: float) -> bytes | None:
    """Return what the child writes within `seconds`; empty where nobody can write any more, None after that time."""
    return os.read(source, MESSAGE_BYTES) if select.select([source], [], [], seconds)[0] else None


def verdict_of(source: int, child: int, token: bytes, seconds: float) -> Outcome:
    """Wait for the child's one message or its end."""
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        said = message(source, min(0.05, left))
        if not said:
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid == 0:
                time.sleep(0.0 if said is None else 0.01)
                continue
            # It may have written between the look and its end.
            said = message(source, 0.0)
            if not said:
                return ended(status)
        verdict = "passed" if said.startswith(token) else "failed"
        return {"status": verdict, "detail": said.removeprefix(token).decode("utf-8", "replace")}
    return {"status": "timeout", "detail": f"no end within {seconds:g} s"}


def ended(status: int) -> Outcome:
    if not os.WIFSIGNALED(status):
        return {"status": "failed", "detail": "left before the tests were through"}
    number = os.WTERMSIG(status)
    return {
        "status": "killed",
        "detail": next((one.name for one in signal.Signals if one == number), f"signal {number}"),
    }


def read(size: int) -> bytes:
    """Return bytes of standard input, and no byte more: what is still in the pipe is in no child's memory."""
    parts = []
    while size:
        part = os.read(0, size)
        if not part:
            os._exit(1)
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def main() -> None:
    limits = json.loads(sys.argv[1])
    program = read(struct.unpack("<Q", read(8))[0])
    control(PR_SET_CHILD_SUBREAPER, 1)
    control(PR_SET_DUMPABLE, 0)  # the child may not read this process's memory or open its files
    source, verdict = os.pipe()
    taking, giving = os.pipe()
    child = os.fork()
    if child == 0:
        control(PR_SET_PDEATHSIG, signal.SIGKILL)
        os.setsid()
        os.close(source)
        os.close(giving)
        run(program, limits, taking, verdict)
    os.close(verdict)
    os.close(taking)
    try:
        token = read(TOKEN_BYTES)
        first = message(source, START_SECONDS)
        if first == READY:
            os.write(giving, token)
            outcome = verdict_of(source, child, token, limits["seconds"])
        else:
            detail = "its process did not start" if not first else first.decode("utf-8", "replace")
            outcome = {"status": "refused" if first else "killed", "detail": detail}
    finally:
        reap(child)
    print(json.dumps({**outcome, "token": token.hex()}))


if __name__ == "__main__":
    main()
