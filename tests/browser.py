"""Headless Chromium driven over its debugging pipe: pages, JavaScript, files for upload, pictures of the page."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome")
PATIENCE = 60.0  # seconds


def find_chromium() -> str | None:
    """Returns the browser of this machine, or None."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """A browser process: `with Browser(path, folder) as browser: page = browser.open(url)`."""

    def __init__(self, path: str, folder: Path, microphone: Path | None = None):
        """folder: of its profile. microphone: a WAV file that it hears there, over and over."""
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--mute-audio"]
        flags += ["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream", "--window-size=1200,900"]
        flags += [f"--use-file-for-fake-audio-capture={microphone}"] if microphone else []
        flags += ["--remote-debugging-pipe", f"--user-data-dir={folder}", "--no-first-run", "about:blank"]
        out, inn = os.pipe(), os.pipe()
        log = open(folder / "browser.log", "wb")  # noqa: SIM115
        shell = 'exec 3<&"$1" 4>&"$2"; shift 2; exec "$@"'  # the browser wants exactly these descriptors
        self.process = subprocess.Popen(
            ["bash", "-c", shell, "bash", str(out[0]), str(inn[1]), path, *flags],
            pass_fds=(out[0], inn[1]),
            stdout=log,
            stderr=log,
        )
        os.close(out[0])
        os.close(inn[1])
        log.close()
        self._write, self._read = os.fdopen(out[1], "wb", buffering=0), os.fdopen(inn[0], "rb", buffering=0)
        self._number, self._rest = 0, b""
        self.events: list[dict] = []

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *error) -> None:
        self.process.terminate()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._write.close()
        self._read.close()

    def call(self, method: str, session: str = "", **params) -> dict:
        """Returns the answer to one command of the protocol. Errors: RuntimeError with what the browser says."""
        self._number += 1
        command = {"id": self._number, "method": method, "params": params}
        command |= {"sessionId": session} if session else {}
        self._write.write(json.dumps(command).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self.events.append(answer)

    def _receive(self) -> dict:
        while b"\0" not in self._rest:
            data = self._read.read(1 << 16)
            if not data:
                raise RuntimeError("the browser has ended")
            self._rest += data
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def open(self, url: str) -> Tab:
        """Returns a new tab with a page."""
        target = self.call("Target.createTarget", url=url)["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        return Tab(self, session, target)


class Tab:
    """One page. Selectors are CSS."""

    def __init__(self, browser: Browser, session: str, target: str):
        self.browser, self.session, self.target = browser, session, target
        for domain in ("Page", "Runtime", "DOM", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params) -> dict:
        """Returns the answer to a command for this page."""
        return self.browser.call(method, self.session, **params)

    def ask(self, script: str):
        """Returns the value of an expression of JavaScript, evaluated as if the user had just clicked."""
        found = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True, userGesture=True
        )
        if "exceptionDetails" in found:
            raise RuntimeError(f"{script}: {found['exceptionDetails']}")
        return found["result"].get("value")

    def wait(self, script: str, is_good: Callable = bool, seconds: float = PATIENCE):
        """Returns the value of an expression as soon as it is good. Errors: AssertionError with the last one."""
        end, value = time.monotonic() + seconds, None
        while time.monotonic() < end:
            value = self.ask(script)
            if is_good(value):
                return value
            time.sleep(0.1)
        raise AssertionError(f"{script} stayed {value!r}; the page says {self.ask('document.body.innerText')[-800:]!r}")

    def click(self, selector: str) -> None:
        """Clicks an element when it is there."""
        self.wait(f"!!document.querySelector({selector!r})")
        self.ask(f"document.querySelector({selector!r}).click()")

    def upload(self, selector: str, path: Path) -> None:
        """Gives a file to an input, as a user who chose it."""
        self.wait(f"!!document.querySelector({selector!r})")
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def type(self, selector: str, text: str) -> None:
        """Replaces the text of a field."""
        self.wait(f"!!document.querySelector({selector!r})")
        told = "e.dispatchEvent(new Event('input', {bubbles: true})); e.blur()"
        self.ask(f"(e => {{ e.focus(); e.value = {json.dumps(text)}; {told} }})(document.querySelector({selector!r}))")

    def picture(self, path: Path) -> None:
        """Writes a PNG of what the page shows."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def close(self) -> None:
        """Closes the tab."""
        self.browser.call("Target.closeTarget", targetId=self.target)
