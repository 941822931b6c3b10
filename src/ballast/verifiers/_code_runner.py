"""Run one program under limits and report how it ended; kills everything it leaves behind.

Reads the program from standard input, its limits from the first argument, and prints one JSON object.
"""

import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import sys
import time

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


def control(option: int, value: int) -> None:
    """Set a property of this process where the system is Linux."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def limit(limits: dict) -> None:
    cpu = max(1, int(limits["seconds"]) + 1)
    for name, value in (
        ("RLIMIT_CPU", cpu),
        ("RLIMIT_AS", limits["memory_bytes"]),
        ("RLIMIT_DATA", limits["memory_bytes"]),
        ("RLIMIT_FSIZE", limits["file_bytes"]),
        ("RLIMIT_NOFILE", 64),
        ("RLIMIT_CORE", 0),
    ):
        resource.setrlimit(getattr(resource, name), (value, value))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)


def limit_processes(count: int) -> None:
    # Counted per user over the whole machine: so many more than now. The superuser is exempt from this limit.
    running = 0
    for entry in os.listdir("/proc") if os.path.isdir("/proc") else ():
        if entry.isdigit():
            with contextlib.suppress(OSError):
                if os.stat(f"/proc/{entry}").st_uid == os.getuid():
                    running += len(os.listdir(f"/proc/{entry}/task"))
    if running:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NPROC, (running + count, running + count))


def run(program: str, limits: dict, verdict: int) -> None:
    """Run in the child; write the verdict as the last thing, so that leaving early writes none."""
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    limit_processes(limits["processes"])
    limit(limits)
    outcome = {"status": "passed", "detail": ""}
    try:
        exec(compile(program, "<answer>", "exec"), {"__name__": "__main__"})
    except BaseException as error:
        outcome = {"status": "failed", "detail": f"{type(error).__name__}: {error}"[:300]}
    os.write(verdict, json.dumps(outcome).encode())
    os._exit(0)


def children() -> list:
    found = []
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


def verdict_of(source: int, child: int, seconds: float) -> dict:
    deadline = time.monotonic() + seconds
    collected = b""
    while True:
        ready = select.select([source], [], [], max(0.0, min(0.05, deadline - time.monotonic())))[0]
        part = os.read(source, 65536) if ready else None
        if part:
            collected += part
            with contextlib.suppress(ValueError):
                return json.loads(collected)
            continue
        pid, status = os.waitpid(child, os.WNOHANG)
        # Read once more after the child is gone: it may have written between the read and its end.
        if pid and not select.select([source], [], [], 0)[0]:
            return ended(status)
        if pid:
            part = os.read(source, 65536)
            with contextlib.suppress(ValueError):
                return json.loads(collected + part)
            return ended(status)
        if time.monotonic() >= deadline:
            return {"status": "timeout", "detail": f"no end within {seconds:g} s"}


def ended(status: int) -> dict:
    if os.WIFSIGNALED(status):
        return {"status": "killed", "detail": signal.Signals(os.WTERMSIG(status)).name}
    return {"status": "failed", "detail": "left before the tests were through"}


def main() -> None:
    limits = json.loads(sys.argv[1])
    program = sys.stdin.buffer.read().decode()
    control(PR_SET_CHILD_SUBREAPER, 1)
    source, verdict = os.pipe()
    child = os.fork()
    if child == 0:
        control(PR_SET_PDEATHSIG, signal.SIGKILL)
        os.setsid()
        os.close(source)
        run(program, limits, verdict)
    os.close(verdict)
    outcome = verdict_of(source, child, limits["seconds"])
    reap(child)
    print(json.dumps(outcome))


if __name__ == "__main__":
    main()
