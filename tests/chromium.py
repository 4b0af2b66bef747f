"""A browser without a window, for tests: opens an address, lists what it asked for, and takes pictures."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import subprocess
import time
from contextlib import contextmanager, suppress
from io import BytesIO

import numpy as np
from PIL import Image
from tornado.websocket import websocket_connect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ("--headless=new", "--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--hide-scrollbars")
FLAGS += ("--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync")
# no name is found, so that nothing is fetched from elsewhere
FLAGS += ("--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1", "--remote-debugging-port=0")


class Browser:
    """One page; `asked` are the addresses of all that it has asked for, `said` its errors."""

    def __init__(self, socket, loop):
        self._socket, self._loop, self._number = socket, loop, 0
        self.asked, self.said = [], []

    def call(self, method, **parameters):
        return self._loop.run_until_complete(asyncio.wait_for(self._call(method, parameters), 60))

    async def _call(self, method, parameters):
        self._number += 1
        await self._socket.write_message(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            message = json.loads(await self._socket.read_message())
            if message.get("method") == "Network.requestWillBeSent":
                self.asked.append(message["params"]["request"]["url"])
            elif message.get("method") == "Runtime.exceptionThrown":
                self.said.append(message["params"]["exceptionDetails"]["text"])
            elif message.get("id") == self._number:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']['message']}")
                return message["result"]

    def evaluate(self, script):
        return self.call("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")

    def take_picture(self):
        """Returns the page as uint8 (y, x, 3)."""
        content = base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])
        return np.asarray(Image.open(BytesIO(content)).convert("RGB"))

    def wait_for(self, condition, seconds=90):
        """Takes pictures until one fulfils a condition, and returns the last."""
        end = time.monotonic() + seconds
        picture = None
        while time.monotonic() < end and (picture is None or not condition(picture)):
            time.sleep(0.5)
            with suppress(RuntimeError):  # there is no page for a moment while the address is opened
                picture = self.take_picture()
        return picture


@contextmanager
def open_browser(folder, url, size=(1000, 700)):
    """Opens an address; `folder` takes what the browser writes."""
    command = [CHROMIUM, *FLAGS, f"--window-size={size[0]},{size[1]}", f"--user-data-dir={folder}", "about:blank"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    loop = asyncio.new_event_loop()
    try:
        port = _read_port(folder / "DevToolsActivePort")
        socket = loop.run_until_complete(_connect(_find_page(port)))
        browser = Browser(socket, loop)
        for domain in ("Network", "Page", "Runtime"):
            browser.call(f"{domain}.enable")
        browser.call("Page.navigate", url=url)
        yield browser
        browser.call("Browser.close")
        socket.close()
        process.wait(30)
        loop.run_until_complete(asyncio.sleep(0.1))
    finally:
        process.kill()
        process.wait()
        loop.close()


async def _connect(address):
    return await websocket_connect(address, max_message_size=1 << 28)


def _read_port(path):
    for _ in range(300):
        if path.is_file() and (lines := path.read_text().splitlines()):
            return int(lines[0])
        time.sleep(0.1)
    raise TimeoutError("chromium did not start")


def _find_page(port):
    from urllib.request import urlopen

    for _ in range(100):
        with urlopen(f"http://127.0.0.1:{port}/json") as answer:
            pages = [page for page in json.load(answer) if page["type"] == "page"]
        if pages:
            return pages[0]["webSocketDebuggerUrl"]
        time.sleep(0.1)
    raise TimeoutError("chromium opened no page")
