"""Chromium without a window, driven through the DevTools protocol; its microphone plays a file once."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import shutil
import subprocess
import time
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

from websockets.asyncio.client import connect

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
START_SECONDS = 60.0
FLAGS = (
    "--headless=new",
    "--no-sandbox",  # it does not start as root otherwise
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--no-first-run",
    "--remote-debugging-port=0",
    "--use-fake-ui-for-media-stream",
    "--use-fake-device-for-media-stream",
)


@contextmanager
def running_chromium(folder: Path, sound: Path):
    """Run Chromium and give the address of its DevTools; its microphone plays ``sound`` once an opening."""
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                str(CHROMIUM),
                *FLAGS,
                f"--user-data-dir={folder / 'profile'}",
                f"--use-file-for-fake-audio-capture={sound}%noloop",
                "about:blank",
            ],
            stdout=log,
            stderr=log,
        )
        try:
            yield _address(folder / "profile" / "DevToolsActivePort", process)
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()
            process.wait()


def _address(path: Path, process) -> str:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(OSError, ValueError):
            port, target = path.read_text().split()
            return f"ws://127.0.0.1:{port}{target}"
        time.sleep(0.05)
    raise RuntimeError(f"Chromium did not start; see {path.parent.parent / 'log'}.")


class Page:
    """One page.

    Attributes:
        requests: the addresses that it asked for.
        errors: what its console has, but for answers of the network.
    """

    def __init__(self, socket, session):
        self._socket, self._session = socket, session
        self._numbers = itertools.count(1000)
        self._answers = {}
        self.requests, self.errors = [], []

    async def listen(self):
        async for text in self._socket:
            message = json.loads(text)
            if "id" in message and (answer := self._answers.pop(message["id"], None)):
                answer.set_result(message)
            elif message.get("method") in ("Network.requestWillBeSent", "Network.webSocketCreated"):
                fields = message["params"]
                self.requests.append(fields["request"]["url"] if "request" in fields else fields["url"])
            elif message.get("method") == "Runtime.exceptionThrown":
                self.errors.append(message["params"]["exceptionDetails"])
            elif message.get("method") == "Log.entryAdded":
                entry = message["params"]["entry"]
                self.errors += [entry] if entry["source"] != "network" else []

    async def call(self, method, **parameters):
        """Call a method of the protocol."""
        number = next(self._numbers)
        self._answers[number] = asyncio.get_running_loop().create_future()
        message = {"id": number, "method": method, "params": parameters, "sessionId": self._session}
        await self._socket.send(json.dumps(message))
        answer = await self._answers[number]
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    async def evaluate(self, expression):
        """Return what an expression gives."""
        result = await self.call(
            "Runtime.evaluate",
            expression=expression,
            awaitPromise=True,
            returnByValue=True,
            userGesture=True,
        )
        if "exceptionDetails" in result:
            raise RuntimeError(str(result["exceptionDetails"]))
        return result["result"].get("value")

    async def until(self, expression, seconds=40.0):
        """Wait until an expression is true."""
        deadline = time.monotonic() + seconds
        while not await self.evaluate(expression):
            if time.monotonic() > deadline:
                body = await self.evaluate("document.body.innerText")
                raise TimeoutError(f"{expression} stayed false; the page says: {body} {self.errors}")
            await asyncio.sleep(0.05)

    async def click(self, selector):
        """Press the mouse on an element."""
        x, y = await self.evaluate(
            f"(() => {{ const r = document.querySelector({selector!r}).getBoundingClientRect();"
            "return [r.x + r.width / 2, r.y + r.height / 2] })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            await self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    async def press(self, key, text=""):
        """Press a key."""
        code = {"Tab": 9, "Enter": 13, "Escape": 27}[key]
        fields = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        await self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **fields)
        await self.call("Input.dispatchKeyEvent", type="keyUp", **fields)

    async def resize(self, width, height, scheme="light", motion="no-preference"):
        """Set the screen's size and the person's preferences."""
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if width < 600 else 1,
            mobile=width < 600,
        )
        features = [
            {"name": "prefers-color-scheme", "value": scheme},
            {"name": "prefers-reduced-motion", "value": motion},
        ]
        await self.call("Emulation.setEmulatedMedia", features=features)

    async def drop(self, *paths):
        """Drop files in the middle of the page."""
        data = {"items": [], "files": list(map(str, paths)), "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            await self.call("Input.dispatchDragEvent", type=kind, x=200, y=200, data=data)

    async def choose(self, selector, path):
        """Choose a file for an input."""
        document = await self.call("DOM.getDocument")
        node = await self.call("DOM.querySelector", nodeId=document["root"]["nodeId"], selector=selector)
        await self.call("DOM.setFileInputFiles", files=[str(path)], nodeId=node["nodeId"])

    async def screenshot(self, path):
        """Write a picture of the page."""
        picture = await self.call("Page.captureScreenshot")
        Path(path).write_bytes(base64.b64decode(picture["data"]))


@asynccontextmanager
async def opened(devtools, url, before=""):
    """Open a page in a profile of its own; ``before`` is run in it before its own scripts."""
    async with connect(devtools, max_size=None, compression=None) as socket:
        numbers = itertools.count(1)

        async def call(method, **parameters):
            number = next(numbers)
            await socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
            async for text in socket:
                message = json.loads(text)
                if message.get("id") == number:
                    return message["result"]

        context = (await call("Target.createBrowserContext", disposeOnDetach=True))["browserContextId"]
        target = await call("Target.createTarget", url="about:blank", browserContextId=context)
        attached = await call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        page = Page(socket, attached["sessionId"])
        listening = asyncio.create_task(page.listen())
        try:
            for domain in ("Page", "Runtime", "Log", "Network"):
                await page.call(f"{domain}.enable")
            await page.call("Page.addScriptToEvaluateOnNewDocument", source=before)
            await page.call("Page.navigate", url=url)
            await page.until("document.querySelector('#host')?.textContent === location.hostname")
            yield page
        finally:
            listening.cancel()
