"""A headless Chromium driven over a pair of pipes (DevTools protocol), so that no package is needed for it."""

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

EXECUTABLES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
TIMEOUT_SEC = 60.0


def find_chromium() -> str | None:
    """Path of a Chromium or Chrome on PATH, or None."""
    return next((path for name in EXECUTABLES if (path := shutil.which(name))), None)


class Chromium:
    """One tab. Console errors, exceptions and requests are collected while pages load and run."""

    def __init__(self, executable: str, profile: Path) -> None:
        read_commands, self.write_fd = os.pipe()
        self.read_fd, write_answers = os.pipe()
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        flags += ["--remote-debugging-pipe", f"--user-data-dir={profile}", "--disable-background-networking"]

        def connect() -> None:  # Chromium reads commands from descriptor 3 and answers on 4
            low = [os.dup2(fd, target) for fd, target in ((read_commands, 103), (write_answers, 104))]
            os.dup2(low[0], 3)
            os.dup2(low[1], 4)

        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(
            [executable, *flags, "about:blank"], preexec_fn=connect, close_fds=False, **quiet
        )
        os.close(read_commands)
        os.close(write_answers)
        self.numbers, self.buffer, self.session = itertools.count(1), b"", None
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.loaded = False
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """One command and its answer; what happens meanwhile is taken note of."""
        number = next(self.numbers)
        session = {"sessionId": self.session} if self.session else {}
        message = json.dumps({"id": number, "method": method, "params": params} | session).encode() + b"\0"
        while message:
            message = message[os.write(self.write_fd, message) :]
        while True:
            answer = self._receive()
            if answer.get("id") == number:
                assert "error" not in answer, f"{method}: {answer}"
                return answer["result"]

    def open(
        self, path: Path, *, width: int = 1280, height: int = 800, scheme: str = "light", scale: float = 1
    ) -> None:
        """Load a local file in a window of this size and colour scheme, and wait until it has loaded."""
        is_phone = width < 600
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=is_phone
        )
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.errors, self.requests, self.loaded = [], [], False
        self.send("Page.navigate", url=path.resolve().as_uri())
        while not self.loaded:
            self._receive()

    def run(self, expression: str) -> Any:
        """Value of a JavaScript expression in the page."""
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def press(self, key: str) -> None:
        """A key, as the user presses it."""
        text = {"text": key} if len(key) == 1 else {}
        self.send("Input.dispatchKeyEvent", type="keyDown", key=key, code=key, **text)
        self.send("Input.dispatchKeyEvent", type="keyUp", key=key, code=key)

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        """The window, or the whole page, as PNG."""
        picture = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(picture["data"]))

    def close(self) -> None:
        """End the browser."""
        self.session = None
        self.send("Browser.close")
        self.process.wait(timeout=TIMEOUT_SEC)
        os.close(self.write_fd)
        os.close(self.read_fd)

    def _receive(self) -> dict[str, Any]:
        """The next message; events are taken note of."""
        deadline = time.monotonic() + TIMEOUT_SEC
        while b"\0" not in self.buffer:
            is_ready, _, _ = select.select([self.read_fd], [], [], max(0.0, deadline - time.monotonic()))
            assert is_ready, "Chromium does not answer"
            part = os.read(self.read_fd, 1 << 20)
            assert part, "Chromium has ended"
            self.buffer += part
        message, self.buffer = self.buffer.split(b"\0", 1)
        event = json.loads(message)
        self._note(event.get("method"), event.get("params", {}))
        return event

    def _note(self, method: str | None, params: dict[str, Any]) -> None:
        if method == "Page.loadEventFired":
            self.loaded = True
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.errors.append(str(params["exceptionDetails"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.errors.append(params["entry"]["text"])
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.errors.append(str(params["args"]))
