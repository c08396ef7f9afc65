"""A headless Chromium, spoken to over a pipe in the protocol of its developer tools."""

import base64
import fcntl
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


def program() -> str | None:
    """The browser, if one is installed."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next(filter(None, map(shutil.which, names)), None)


class Page:
    """A page, and what it reported: messages of errors, and addresses that it asked for."""

    def __init__(self, send: Any, receive: Any) -> None:
        self.pipe_out, self.pipe_in = send, receive
        self.number, self.session, self.half = 0, None, b""
        self.events: list[Any] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **arguments: Any) -> Any:
        self.number += 1
        message = {"id": self.number, "method": method, "params": arguments}
        if self.session is not None:
            message["sessionId"] = self.session
        self.pipe_out.write(json.dumps(message).encode() + b"\0")
        self.pipe_out.flush()
        while True:
            answer = self.read()
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def read(self) -> Any:
        while b"\0" not in self.half:
            part = self.pipe_in.read1(1 << 20)
            assert part, "the browser has ended"
            self.half += part
        message, _, self.half = self.half.partition(b"\0")
        return json.loads(message)

    def open(self, path: Path, width: int = 1280, dark: bool = False) -> None:
        """Open a file, and wait until its scripts are done."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
        )
        self.events.clear()
        self.call("Page.navigate", url=path.absolute().as_uri())
        self.wait(lambda: self.value("document.readyState") == "complete")

    def value(self, expression: str) -> Any:
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def wait(self, condition: Callable[[], bool]) -> None:
        while not condition():
            time.sleep(0.05)

    def click(self, selector: str) -> None:
        """Press and release the mouse in the middle of the first element of a selector."""
        self.value(f"document.querySelector({selector!r}).scrollIntoView({{block: 'center'}})")
        box = f"(e => [e.x + e.width / 2, e.y + e.height / 2])(document.querySelector({selector!r}).getBoundingClientRect())"
        x, y = self.value(box)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def errors(self) -> list[Any]:
        """What the console has shown as an error."""
        found = [event["params"] for event in self.events if event["method"] == "Runtime.exceptionThrown"]
        for event in self.events:
            entry = event["params"].get("entry", {})
            if event["method"] == "Runtime.consoleAPICalled" and event["params"]["type"] in ("error", "assert"):
                found.append(event["params"])
            if event["method"] == "Log.entryAdded" and entry["level"] == "error":
                found.append(entry)
        return found

    def addresses(self) -> list[str]:
        """What it asked for, but for data in the page itself."""
        events = [event["params"] for event in self.events if event["method"] == "Network.requestWillBeSent"]
        urls = [event["request"]["url"] for event in events]
        return [url for url in urls if not url.startswith(("data:", "blob:"))]

    def screenshot(self, path: Path) -> None:
        """The whole page as a PNG."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True, format="png")
        path.write_bytes(base64.b64decode(shot["data"]))


@contextmanager
def opened() -> Iterator[Page]:
    """A browser with an empty page. Its processes end with the block."""
    to_browser, from_browser = os.pipe(), os.pipe()
    read, write = (fcntl.fcntl(fd, fcntl.F_DUPFD, 50) for fd in (to_browser[0], from_browser[1]))
    os.close(to_browser[0]), os.close(from_browser[1])
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        command = [str(program()), *options, f"--user-data-dir={home}", "--remote-debugging-pipe"]
        process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{read} 4>&{write}', "bash", *command],
            pass_fds=(read, write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"HOME": home},
        )
        os.close(read), os.close(write)
        with open(to_browser[1], "wb") as send, open(from_browser[0], "rb") as receive:  # noqa: PTH123
            try:
                yield Page(send, receive)
            finally:
                with suppress(Exception):
                    send.write(b'{"id": 0, "method": "Browser.close"}\0')
                    send.flush()
                process.wait()
