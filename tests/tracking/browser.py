"""A real browser without a window, through chromedriver's own protocol (WebDriver): pages as people see them."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ALL, TAB = "\ue009a\ue000", "\ue004"
"""Keys as WebDriver writes them: Control and A, which chooses all that is in a field, and Tab."""
OPTIONS = (
    "--headless=new",
    "--no-sandbox",  # containers run as root, where the sandbox refuses
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--hide-scrollbars",
)


def missing() -> str:
    """Which of the browser's programs is not on this machine; empty if none."""
    absent = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return f"needs {' and '.join(absent)} (Debian's packages chromium and chromium-driver)" if absent else ""


class Browser:
    """One window."""

    def __init__(self, session: str) -> None:
        self._session = session

    def open(self, address: str) -> None:
        self._call("url", {"url": address})

    def text(self) -> str:
        """What the page shows, as one would copy it."""
        return str(self.run("return document.body ? document.body.innerText : ''"))

    def run(self, script: str, *arguments: object) -> Any:
        return self._call("execute/sync", {"script": script, "args": list(arguments)})

    def wait_for(self, *texts: str, seconds: float = 90) -> str:
        """The page's text, once it has all of these."""
        deadline = time.monotonic() + seconds
        while absent := [text for text in texts if text not in (shown := self.text())]:
            assert time.monotonic() < deadline, f"the page does not show {absent}, but: {shown[:4000]}"
            time.sleep(0.5)
        return shown

    def wait_until(self, script: str, *arguments: object, seconds: float = 90) -> Any:
        """What a script returns, once that is true."""
        deadline = time.monotonic() + seconds
        while not (found := self.run(script, *arguments)):
            assert time.monotonic() < deadline, f"it does not become true: {script}; the page: {self.text()[:4000]}"
            time.sleep(0.5)
        return found

    def resize(self, width: int, height: int) -> None:
        self._call("window/rect", {"width": width, "height": height})

    def press(self, place: str, keys: str) -> None:
        """Press keys in the element that a CSS selector finds."""
        element = self._call("element", {"using": "css selector", "value": place})
        self._call(f"element/{next(iter(element.values()))}/value", {"text": keys})

    def picture(self) -> bytes:
        """The window as PNG."""
        return base64.b64decode(self._call("screenshot"))

    def _call(self, path: str, content: dict[str, Any] | None = None) -> Any:
        return call(f"{self._session}/{path}", content)


def call(address: str, content: dict[str, Any] | None = None, method: str | None = None) -> Any:
    data = None if content is None else json.dumps(content).encode()
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"}, method=method)
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)["value"]


@contextmanager
def open_browser(folder: Path, width: int = 1500, height: int = 1000) -> Iterator[Browser]:
    """Start chromedriver and a window, and end both."""
    driver, address = _started_driver()
    try:
        session = f"{address}/session"
        arguments = [*OPTIONS, f"--user-data-dir={folder / 'profile'}", f"--window-size={width},{height}"]
        options = {"binary": shutil.which("chromium"), "args": arguments}
        wanted = {"capabilities": {"alwaysMatch": {"browserName": "chrome", "goog:chromeOptions": options}}}
        session += "/" + call(session, wanted)["sessionId"]
        try:
            yield Browser(session)
        finally:
            call(session, method="DELETE")  # the driver ends its browser
    finally:
        _end(driver)


def _started_driver() -> tuple[subprocess.Popen[bytes], str]:
    """chromedriver, and where it listens: it takes a free port of ::1, and ends if 127.0.0.1 has that number in use."""
    for _ in range(20):
        driver = subprocess.Popen(["chromedriver", "--port=0"], stdout=subprocess.PIPE)
        said = _said_at_start(driver)
        if found := re.search(rb"started successfully on port (\d+)", said):
            return driver, f"http://127.0.0.1:{int(found[1])}"
        _end(driver)
        assert b"port not available" in said, f"chromedriver does not start: {said!r}"
    raise AssertionError(f"chromedriver finds no port: {said!r}")


def _said_at_start(driver: subprocess.Popen[bytes]) -> bytes:
    assert driver.stdout is not None
    said = b""
    for line in driver.stdout:
        said += line
        if b"started successfully" in line:
            break
    return said


def _end(driver: subprocess.Popen[bytes]) -> None:
    assert driver.stdout is not None
    driver.terminate()
    driver.wait(timeout=30)
    driver.stdout.close()
