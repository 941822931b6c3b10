"""Headless Chromium spoken to over its debugging pipe: no package, no port, no network.

A page is opened from a file at a chosen width, light or dark; what it logs, asks for and how it lies is reported.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-extensions",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    # Whatever a page asks for by name fails, so a request is seen and reaches nobody.
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--remote-debugging-pipe",
)


def find() -> str | None:
    """Return the path of a Chromium, None where there is none; BALLAST_TEST_CHROMIUM names one."""
    named = os.environ.get("BALLAST_TEST_CHROMIUM")
    return named or next((path for name in NAMES if (path := shutil.which(name))), None)


@dataclass
class Seen:
    """What a page did: console messages and errors, addresses it asked for beside its own file."""

    console: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


class Browser:
    """One process; `open` shows a file in a tab of its own."""

    def __init__(self, read: int, write: int) -> None:
        self._read, self._write = read, write
        self._buffer, self._count = b"", 0
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next(120)
            if answer.get("id") == self._count:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self.events.append(answer)

    def wait(self, method: str, session: str) -> None:
        """Wait until the browser reports an event of a tab."""
        while not any(one.get("method") == method and one.get("sessionId") == session for one in self.events):
            self.events.append(self._next(120))

    def _next(self, seconds: float) -> dict[str, Any]:
        end = time.monotonic() + seconds
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                raise TimeoutError("the browser says nothing")
            received = os.read(self._read, 2**20)
            if not received:
                raise RuntimeError("the browser has gone")
            self._buffer += received
        line, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(line)

    def open(self, path: Path, *, width: int, height: int = 900, dark: bool = False, media: str = "screen") -> Page:
        """Show a file and return the page when it has loaded; `media` may be ``print``."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable", session)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", session, media=media, features=scheme)
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", session, **size)
        address = path.resolve().as_uri()
        self.call("Page.navigate", session, url=address)
        self.wait("Page.loadEventFired", session)
        return Page(self, session, address)


@dataclass(frozen=True)
class Page:
    """A page that has loaded."""

    browser: Browser
    session: str
    address: str

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression, which the page itself could not run."""
        found = self.browser.call("Runtime.evaluate", self.session, expression=expression, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(str(found["exceptionDetails"]))
        return found["result"].get("value")

    def seen(self) -> Seen:
        """Return what the page logged and asked for until now."""
        self.evaluate("1")
        seen = Seen()
        for event in self.browser.events:
            if event.get("sessionId") != self.session:
                continue
            method, given = event["method"], event["params"]
            if method == "Network.requestWillBeSent" and given["request"]["url"] != self.address:
                seen.requests.append(given["request"]["url"])
            elif method == "Log.entryAdded":
                seen.console.append(f"{given['entry']['level']}: {given['entry']['text']}")
            elif method == "Runtime.consoleAPICalled":
                seen.console.append(f"{given['type']}: {given['args']}")
            elif method == "Runtime.exceptionThrown":
                seen.console.append(f"exception: {given['exceptionDetails']['text']}")
        return seen

    def screenshot(self, path: Path, *, clip: tuple[float, float] | None = None) -> None:
        """Write a picture of the page, whole or from one height to another."""
        width = self.evaluate("innerWidth")
        top, bottom = clip or (0, self.evaluate("document.documentElement.scrollHeight"))
        area = {"x": 0, "y": top, "width": width, "height": bottom - top, "scale": 1}
        made = self.browser.call("Page.captureScreenshot", self.session, captureBeyondViewport=True, clip=area)
        path.write_bytes(base64.b64decode(made["data"]))


@contextmanager
def browser(folder: Path, program: str) -> Iterator[Browser]:
    """Start a browser with a profile in a folder, and end it."""
    there_read, here_write = os.pipe()
    here_read, there_write = os.pipe()
    # The browser reads commands from descriptor 3 and writes answers to 4.
    script = f'exec "$0" "$@" 3<&{there_read} 4>&{there_write}'
    process = subprocess.Popen(
        ["bash", "-c", script, program, *FLAGS, f"--user-data-dir={folder}", "about:blank"],
        pass_fds=(there_read, there_write),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    os.close(there_read)
    os.close(there_write)
    try:
        yield Browser(here_read, here_write)
    finally:
        os.close(here_write)
        os.close(here_read)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()
