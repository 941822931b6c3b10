"""Judge code answers by their tests, in a limited subprocess.

The limits (time, memory, file size, processes, a temporary folder, an empty environment) stop accidents: endless loops,
memory hogs, forks, output floods. Where bubblewrap works, programs have no network either, see no other processes and
may write to their folder only; what this user may read they can still read. Without it a program that means harm can
also use the network and delete this user's files: run code of models you do not trust inside a container or a virtual
machine. A verdict cannot be forged, but tests share a process with the answer: one whose objects claim to equal
everything, or that patches what the tests call, passes them.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import signal
import struct
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from ballast.errors import BallastError
from ballast.protocols import Progress
from ballast.verifiers.sandbox import command, running_tasks, sandbox

TOKEN_BYTES = 32
"""Of the secret that a program's supervisor knows and the program does not."""
RUNNER_SECONDS = 60.0
"""Time beyond a program's own that its supervisor has to start and to clear up."""
IMPORTS = "import collections, math, re, typing"
COLUMNS = ("prompt", "test", "entry_point")
STOPS = ("\ndef ", "\nclass ", "\nif ", "\nprint(", "\nassert ", "\n@", "\n#", "\n```")
FENCE = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)


@dataclass(frozen=True)
class CodeLimits:
    """What a program may use: wall clock and processor seconds, bytes of memory, bytes of any file it writes."""

    seconds: float = 10.0
    memory_bytes: int = 2**30
    file_bytes: int = 2**20
    processes: int = 32


@dataclass(frozen=True)
class ProgramResult:
    """How a program ended, and in what it ran.

    Attributes:
        status: ``passed``, ``failed``, ``timeout`` or ``killed``.
        detail: names the exception or signal; of a program that passed, what it left as its result.
        sandbox: ``bwrap`` or ``rlimits``.
    """

    status: str
    detail: str = ""
    sandbox: str = "rlimits"

    @property
    def passed(self) -> bool:
        return self.status == "passed"


def require_permission(allowed: bool, programs: int) -> None:
    """Refuse to run code unless the user allowed it in so many words.

    Raises:
        BallastError: if `allowed` is not True.
    """
    if allowed is not True:
        raise BallastError(
            f"{programs} programs written by the model would run on this machine with your rights; the limits around "
            "them are no sandbox. Set allow_code_execution=True to run them, best inside a container"
        )


def assemble(row: Mapping[str, Any], completion: str) -> str:
    """Return the program that tests an answer: HumanEval's prompt, the answer, the tests and their call.

    A fenced block in the answer is taken for the code. Code that defines the function itself replaces the prompt's
    definition and keeps what the prompt has before it (imports, helpers); other code continues the prompt and ends
    where the function does.
    """
    entry, prompt = row["entry_point"], row["prompt"]
    fenced = FENCE.search(completion)
    code = fenced.group(1) if fenced else completion
    if re.search(rf"^def {re.escape(entry)}\b", code, re.MULTILINE):
        definition = re.search(rf"^def {re.escape(entry)}\b", prompt, re.MULTILINE)
        body = (prompt[: definition.start()] if definition else prompt) + "\n" + code
    else:
        body = prompt + code[: min((place for stop in STOPS if (place := code.find(stop)) >= 0), default=None)]
    return f"{body}\n\n{row['test']}\n\ncheck({entry})\n"


def run_program(program: str, limits: CodeLimits | None = None, *, allow_code_execution: bool = False) -> ProgramResult:
    """Run a Python program in a limited process of its own; it passes if it reaches its end without an exception.

    See the module's docstring for what the limits do not stop. Leaving early through `sys.exit` or `os._exit` fails.
    Everything that the program started is killed with it.

    Raises:
        BallastError: without ``allow_code_execution=True``, or where the system has no such limits or refuses one.
    """
    require_permission(allow_code_execution, 1)
    if not hasattr(os, "fork"):
        raise BallastError(
            "running code answers needs POSIX resource limits, which this system lacks: use Linux or WSL"
        )
    limits, kind = limits or CodeLimits(), sandbox()
    said = _run(program, limits)
    if said.get("status") == "refused":
        raise BallastError(
            f"programs cannot be limited here ({said['detail']}), so every answer would fail; lower code_seconds or "
            "code_memory_mb to what is allowed, or raise the limit (ulimit -H)"
        )
    return ProgramResult(said["status"], said["detail"], kind)


def _run(program: str, limits: CodeLimits) -> dict[str, str]:
    """Return what the runner says of a program; what cannot be its word is a program that was killed."""
    token, source = secrets.token_bytes(TOKEN_BYTES), program.encode("utf-8", "replace")
    settings = asdict(limits) | {"processes": (running := running_tasks()) and running + limits.processes}
    with tempfile.TemporaryDirectory(prefix="ballast-code-") as folder:
        process = subprocess.Popen(
            [*command(folder), json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={},
            start_new_session=True,
        )
        try:
            # The runner keeps the time; this longer clock is for a runner that was itself stopped or killed.
            request = struct.pack("<Q", len(source)) + source + token
            output, _ = process.communicate(request, timeout=limits.seconds + RUNNER_SECONDS)
        except subprocess.TimeoutExpired:
            return {"status": "timeout", "detail": "the runner did not answer"}
        finally:
            _kill_session(process)
    with contextlib.suppress(ValueError):
        said = json.loads(output)
        if isinstance(said, dict) and said.pop("token", None) == token.hex():
            return said
    return {"status": "killed", "detail": f"the runner ended with code {process.returncode}"}


def _kill_session(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def check_limits(limits: CodeLimits) -> None:
    """Run a program that only imports, so that limits which the system refuses are found before a model is loaded.

    Raises:
        BallastError: naming the limit, or saying that no program can pass.
    """
    result = run_program(IMPORTS, limits, allow_code_execution=True)
    if not result.passed:
        raise BallastError(
            f"the program {IMPORTS!r} does not pass within {limits.seconds:g} s and {limits.memory_bytes // 2**20} MiB "
            f"({result.status} {result.detail}), so every answer would fail; raise code_seconds or code_memory_mb"
        )


def run_programs(
    programs: Sequence[str],
    limits: CodeLimits | None = None,
    *,
    allow_code_execution: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
) -> list[ProgramResult]:
    """Run programs side by side, `workers` at a time (None: one per core); results in order.

    Raises:
        BallastError: without ``allow_code_execution=True``.
    """
    require_permission(allow_code_execution, len(programs))
    results = []
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        for result in pool.map(lambda program: run_program(program, limits, allow_code_execution=True), programs):
            results.append(result)
            if progress is not None:
                progress(len(results), len(programs))
    return results


def check_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    """Refuse rows without a prompt, tests and the name of the function.

    Raises:
        BallastError: naming the first such row.
    """
    for index, row in enumerate(rows):
        for name in COLUMNS:
            if not isinstance(row.get(name), str) or not row[name].strip():
                raise BallastError(f"row {index + 1}: {name!r} must be text (columns: {', '.join(map(str, row))})")
