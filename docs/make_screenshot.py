"""Takes a picture of a running status page with headless Chromium.

    python docs/make_screenshot.py http://127.0.0.1:8080 docs/page.png [--size 1280x900] [--dark] [--wait 4]

The page is live (server-sent events never end), so the browser is given some seconds and is then told to draw,
through its debugging pipe; nothing but Chromium and the standard library is needed.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
LAUNCH = """
import fcntl, os, sys
reading, writing = (fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3])
os.dup2(reading, 3)
os.dup2(writing, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
"""Puts the two pipes where Chromium looks for them, and becomes Chromium."""


class Browser:
    """Chromium, spoken to by the DevTools protocol over descriptors 3 and 4."""

    def __init__(self) -> None:
        program = next((found for name in BROWSERS if (found := shutil.which(name))), None)
        if program is None:
            raise SystemExit("no Chromium here; on Debian: apt-get install chromium")
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        profile = f"--user-data-dir={self._profile.name}"
        to_read, self._write = os.pipe()
        self._read, to_write = os.pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-c", LAUNCH, str(to_read), str(to_write), program, *OPTIONS, profile],
            pass_fds=(to_read, to_write),
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_write)
        self._number = 0
        self._rest = b""
        self._tabs: dict[str, str] = {}
        self.complaints: list[str] = []
        """What the page's console said: errors and warnings."""

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(10)
        os.close(self._write)
        os.close(self._read)
        self._profile.cleanup()

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Sends one command and waits for its answer. Raises RuntimeError when it is refused."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                result: dict[str, Any] = answer["result"]
                return result
            self._note(answer)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            chunk = os.read(self._read, 1 << 20)
            if not chunk:
                raise RuntimeError("the browser ended")
            self._rest += chunk
        one, self._rest = self._rest.split(b"\0", 1)
        message: dict[str, Any] = json.loads(one)
        return message

    def _note(self, event: dict[str, Any]) -> None:
        params = event.get("params", {})
        if event.get("method") == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.complaints.append(params["entry"]["text"])
        if event.get("method") == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.complaints.append(details.get("exception", {}).get("description", details["text"]))

    def open(self, url: str, *, width: int, height: int, dark: bool) -> str:
        """Opens a tab and goes to `url`; returns its session."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session: str = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._tabs[session] = target
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable", session)
        phone = width < 600
        self.call(
            "Emulation.setDeviceMetricsOverride",
            session,
            width=width,
            height=height,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", session, features=[scheme])
        self.call("Page.navigate", session, url=url)
        return session

    def close_tabs(self) -> None:
        """Closes every tab that was opened."""
        for target in self._tabs.values():
            self.call("Target.closeTarget", targetId=target)
        self._tabs.clear()

    def run(self, session: str, script: str) -> Any:
        """The value of a JavaScript expression in the page."""
        result = self.call(
            "Runtime.evaluate", session, expression=script, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in result:
            raise RuntimeError(result["exceptionDetails"].get("exception", {}).get("description"))
        return result["result"].get("value")

    def wait_for(self, session: str, script: str, seconds: float = 20.0) -> Any:
        """Asks until the expression is true; returns its value. Raises TimeoutError."""
        end = time.monotonic() + seconds
        while not (value := self.run(session, script)):
            if time.monotonic() > end:
                raise TimeoutError(script)
            time.sleep(0.1)
        return value

    def picture(self, session: str) -> bytes:
        """What the tab shows, as PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot", session, format="png")["data"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("url")
    parser.add_argument("png", type=Path)
    parser.add_argument("--size", default="1280x900", help="WIDTHxHEIGHT; under 600 wide: as a phone")
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--wait", type=float, default=4.0, help="seconds before the picture is taken")
    args = parser.parse_args()
    width, height = (int(part) for part in args.size.split("x"))
    with Browser() as browser:
        session = browser.open(args.url, width=width, height=height, dark=args.dark)
        browser.wait_for(session, "document.querySelectorAll('#rows tr').length > 0")
        time.sleep(args.wait)
        args.png.write_bytes(browser.picture(session))
        for complaint in browser.complaints:
            print(complaint, file=sys.stderr)


if __name__ == "__main__":
    main()
