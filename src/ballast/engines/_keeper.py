"""The program between ballast and a server: it starts the server, and ends it when ballast closes the pipe or dies.

Arguments: seconds that the server has to end by itself, a folder to remove then, the server's command. Everything runs
in one session, so that what the server has started ends with it. The exit code is the server's.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading


def end(process: "subprocess.Popen[bytes]", seconds: float, folder: str) -> None:
    """Ask the server to end, remove the folder, then take down the whole session, this process included."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    shutil.rmtree(folder, ignore_errors=True)
    os.killpg(0, signal.SIGKILL)


def watch(process: "subprocess.Popen[bytes]", seconds: float, folder: str, ending: threading.Event) -> None:
    """Wait for the end of the pipe that ballast holds: it is closed by a process that is killed, too."""
    while os.read(0, 1024):
        pass
    ending.set()
    end(process, seconds, folder)


def main() -> None:
    seconds, folder, command = float(sys.argv[1]), sys.argv[2], sys.argv[3:]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    ending = threading.Event()
    watcher = threading.Thread(target=watch, args=(process, seconds, folder, ending), daemon=True)
    watcher.start()
    code = process.wait()
    if ending.is_set():
        watcher.join()
    # What the server has started, and left, is of no use to anybody.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.killpg(0, signal.SIGTERM)
    os._exit(code if code >= 0 else 128 - code)


if __name__ == "__main__":
    main()
