"""A real headless Chromium, driven by its own DevTools protocol over a WebSocket: no driver to install."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from websockets.asyncio.client import ClientConnection, connect

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
STARTS_WITHIN_S = 60.0
ANSWERS_WITHIN_S = 60.0
_FLAGS = (
    "--headless=new",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-gpu",
    "--disable-extensions",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--mute-audio",
    "--remote-debugging-port=0",
)
_KEYS = {
    "Tab": (9, ""),
    "Enter": (13, "\r"),
    "Escape": (27, ""),
    "Space": (32, " "),
}


def find_chromium() -> str | None:
    """The program, or None; FIRSTLIGHT_TEST_CHROMIUM names another than those on the path."""
    given = os.environ.get("FIRSTLIGHT_TEST_CHROMIUM")
    return given or next((found for name in NAMES if (found := shutil.which(name))), None)


class Page:
    """One tab. `problems` are its console's errors, refusals of its policy included; `asked` every URL."""

    # Any: messages of the protocol are JSON.
    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.session_id: str | None = None
        self.problems: list[str] = []
        self.asked: list[str] = []

    async def read(self) -> None:
        async for raw in self._socket:
            message = json.loads(raw)
            if (number := message.get("id")) is not None:
                if not (answer := self._waiting.pop(number)).done():
                    answer.set_result(message)
                continue
            self._note(message.get("method", ""), message.get("params", {}))

    def _note(self, method: str, params: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self.asked.append(params["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(params["exceptionDetails"]))
        elif method == "Log.entryAdded":
            entry = params["entry"]
            # What a server refuses or does not answer is logged too, and is no fault of the page.
            if entry["level"] == "error" and entry["source"] != "network":
                self.problems.append(json.dumps(entry))

    async def attach(self) -> None:
        target = await self.send("Target.createTarget", url="about:blank")
        attached = await self.send("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self.session_id = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self.send(f"{domain}.enable")

    async def send(self, method: str, **params: object) -> dict[str, Any]:
        """Raises: AssertionError for a command that the browser refuses."""
        number = next(self._numbers)
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        message: dict[str, object] = {"id": number, "method": method, "params": params}
        if self.session_id is not None:
            message["sessionId"] = self.session_id
        await self._socket.send(json.dumps(message))
        async with asyncio.timeout(ANSWERS_WITHIN_S):
            told = await answer
        assert "error" not in told, (method, told.get("error"))
        result: dict[str, Any] = told["result"]
        return result

    # Any: whatever the expression is.
    async def run(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        told = await self.send(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    async def until(self, expression: str, *, within_s: float = 30.0) -> None:
        """Wait until the expression is true. Raises: AssertionError with what the page shows instead."""
        try:
            async with asyncio.timeout(within_s):
                while not await self.run(f"Boolean({expression})"):  # noqa: ASYNC110  it is in another process
                    await asyncio.sleep(0.03)
        except TimeoutError:
            text = await self.run("document.body.innerText")
            raise AssertionError(f"not within {within_s} s: {expression}\n{text}\n{self.problems}") from None

    async def open(self, url: str) -> None:
        await self.send("Page.navigate", url=url)
        await self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    async def press(self, key: str, *, shift: bool = False) -> None:
        code, text = _KEYS[key]
        given = {"key": " " if key == "Space" else key, "code": key, "windowsVirtualKeyCode": code}
        modifiers = 8 if shift else 0
        await self.send("Input.dispatchKeyEvent", type="keyDown", text=text, modifiers=modifiers, **given)
        await self.send("Input.dispatchKeyEvent", type="keyUp", modifiers=modifiers, **given)

    async def type(self, text: str) -> None:
        await self.send("Input.insertText", text=text)

    async def focus_on(self, condition: str, *, at_most: int = 80, within_s: float = 20.0) -> None:
        """Press Tab until the focused element `e` meets the condition, as somebody without a mouse would."""
        end_s = time.monotonic() + within_s
        while time.monotonic() < end_s:
            # Once through the page; what is looked for may come with the next figures only.
            for _ in range(at_most):
                if await self.run(f"(e => Boolean({condition}))(document.activeElement)"):
                    return
                await self.press("Tab")
        raise AssertionError(f"Tab never reaches {condition}")

    async def look(self, *, dark: bool = False, width: int = 1280, height: int = 900) -> None:
        """As in a window of this size, light or dark."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.send("Emulation.setEmulatedMedia", features=[scheme])
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        await self.send("Emulation.setDeviceMetricsOverride", **size)

    async def picture(self, path: Path) -> None:
        told = await self.send("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(told["data"]))


@asynccontextmanager
async def browsing(program: str) -> AsyncIterator[Page]:
    """A browser with a profile of its own, and its one tab."""
    # Not below a test's own folder: sockets in it need a short path.
    profile = Path(tempfile.mkdtemp(prefix="chromium-"))
    # In a container there is neither a sandbox nor need of one: it visits this test's server alone.
    process = await asyncio.create_subprocess_exec(
        program,
        *_FLAGS,
        "--no-sandbox",
        f"--user-data-dir={profile}",
        "about:blank",
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        address = await _address(profile / "DevToolsActivePort", process)
        async with connect(address, max_size=None, proxy=None) as socket:
            page = Page(socket)
            reading = asyncio.create_task(page.read())
            try:
                await page.attach()
                yield page
            finally:
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)
    finally:
        with suppress(ProcessLookupError):
            # Its children are of its process group.
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        shutil.rmtree(profile, ignore_errors=True)


async def _address(port_file: Path, process: asyncio.subprocess.Process) -> str:
    async with asyncio.timeout(STARTS_WITHIN_S):
        while True:
            assert process.returncode is None, f"Chromium ended with {process.returncode}"
            lines = port_file.read_text().split() if port_file.exists() else []
            if len(lines) == 2:
                return f"ws://127.0.0.1:{lines[0]}{lines[1]}"
            await asyncio.sleep(0.03)
