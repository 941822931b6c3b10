"""The program between ballast and a server: it starts the server, and ends it when ballast closes the pipe or dies.

Arguments: seconds that the server has to end by itself, then its command. Everything runs in one session, so that what
the server has started ends with it. The exit code is the server's.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading


def end(process: "subprocess.Popen[bytes]", seconds: float) -> None:
    """Ask the server to end, then take down the whole session, this process included."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    os.killpg(0, signal.SIGKILL)


def watch(process: "subprocess.Popen[bytes]", seconds: float) -> None:
    """Wait for the end of the pipe that ballast holds: it is closed by a process that is killed, too."""
    while os.read(0, 1024):
        pass
    end(process, seconds)


def main() -> None:
    seconds, command = float(sys.argv[1]), sys.argv[2:]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    threading.Thread(target=watch, args=(process, seconds), daemon=True).start()
    code = process.wait()
    # What the server has started, and left, is of no use to anybody.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.killpg(0, signal.SIGTERM)
    os._exit(code if code >= 0 else 128 - code)


if __name__ == "__main__":
    main()
