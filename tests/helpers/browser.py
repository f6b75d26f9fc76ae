"""A page in a real browser: headless Chromium, told what to do over a pipe by the DevTools protocol.

Nothing is sent beyond the page itself: names resolve to nothing, and what the page asked for is in `Page.requests`.
Protocol: https://chromedevtools.github.io/devtools-protocol/
"""

import base64
import io
import json
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from tests.helpers.chromium import FONTS, LIBRARIES, MISSING, PROGRAM

PATIENCE = 60.0  # seconds until an answer counts as lost; each takes milliseconds on an idle machine
COLOURS = 20  # a page of text and figures has more, by its smoothed edges alone; an empty one has 1
PHONE = 500  # below this width the window is a phone's: the viewport that the page asks for counts
FLAGS = (
    "--headless",
    "--no-sandbox",  # it opens only pages that we made, and in containers as root no sandbox starts
    "--disable-gpu",
    "--disable-dev-shm-usage",  # containers have 64 MB there
    "--disable-background-networking",
    "--hide-scrollbars",
    "--font-render-hinting=none",
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--remote-debugging-pipe",
)

UNTOLD = """[...document.querySelectorAll("svg, img, canvas")].filter(drawn => {
    const parent = drawn.parentElement.closest("[role=img], svg"), own = drawn.getAttribute("aria-label") || drawn.alt;
    return !own && !(parent && (parent.localName === "svg" || parent.getAttribute("aria-label")));
}).map(drawn => drawn.outerHTML.slice(0, 80))"""
# The matrix is that from the drawing's units to the window's; its determinant does not care for turned text.
SIZES = """[...document.querySelectorAll("svg text")].map(text => {
    const to = text.getScreenCTM();
    return parseFloat(getComputedStyle(text).fontSize) * Math.sqrt(Math.abs(to.a * to.d - to.b * to.c));
})"""


class Page:
    """A page that has loaded. `open_page` makes it."""

    def __init__(self, pipe: socket.socket, url: str, width: int, height: int) -> None:
        self.width = width  # CSS pixels
        self.console: list[str] = []  # errors and warnings, the browser's own too (policy, failed requests)
        self.requests: list[str] = []  # addresses that the page asked for beside itself
        self._url, self._pipe, self._rest, self._asked = url, pipe, b"", 0
        self._loaded: set[str] = set()  # navigations, about:blank's too
        self._session = ""
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")
        self.ask("Page.setLifecycleEventsEnabled", enabled=True)
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < PHONE}
        self.ask("Emulation.setDeviceMetricsOverride", **screen)
        opened = self.ask("Page.navigate", url=url)
        if "errorText" in opened:
            raise RuntimeError(f"{url} does not open: {opened['errorText']}")
        deadline = time.monotonic() + PATIENCE
        while opened["loaderId"] not in self._loaded:
            self._hear(deadline)
        self.wait_until_settled()

    def evaluate(self, script: str) -> Any:
        """The value of a JavaScript expression as JSON; a promise is awaited. What it throws is a RuntimeError."""
        answer = self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if thrown := answer.get("exceptionDetails"):
            raise RuntimeError(describe_exception(thrown))
        return answer["result"].get("value")

    def click(self, selector: str) -> None:
        """Clicks with the mouse in the middle of the first element that a CSS selector finds, as a reader would.

        Raises:
            RuntimeError: Nothing is there, or something else lies over it.
        """
        name = json.dumps(selector)
        place = self.evaluate(f"""(() => {{
            const found = document.querySelector({name});
            if (!found) throw new Error("no element is " + {name});
            found.scrollIntoView({{block: "center", inline: "center", behavior: "instant"}});
            const box = found.getBoundingClientRect(), x = box.x + box.width / 2, y = box.y + box.height / 2;
            const hit = document.elementFromPoint(x, y);
            if (!hit || !(found.contains(hit) || hit.contains(found))) throw new Error({name} + " is covered");
            return {{x, y}};
        }})()""")
        for kind in ("mousePressed", "mouseReleased"):
            self.ask("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **place)
        self.wait_until_settled()

    def wait_until_settled(self) -> None:
        """Waits until what has been started is drawn, and what that said has come."""
        frame = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done))))"
        self.evaluate(f"document.fonts.ready.then(() => {frame})")

    def screenshot(self, path: Path | None = None) -> "np.ndarray[Any, np.dtype[np.uint8]]":
        """The whole page, below the window's edge too, as pixels (height, width, 3); a PNG file as well, if named."""
        size = self.ask("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        answer = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        png = base64.b64decode(answer["data"])
        if path:
            path.write_bytes(png)
        return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))

    def ask(self, method: str, **arguments: Any) -> dict[str, Any]:
        """One command of the DevTools protocol, and its answer."""
        self._asked += 1
        message: dict[str, Any] = {"id": self._asked, "method": method, "params": arguments}
        if self._session:
            message["sessionId"] = self._session
        self._pipe.sendall(json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + PATIENCE
        while True:
            heard = self._hear(deadline)
            if heard.get("id") == self._asked:
                if "error" in heard:
                    raise RuntimeError(f"{method}: {heard['error']['message']}")
                return heard["result"]

    def _hear(self, deadline: float) -> dict[str, Any]:
        """The next message; what it says about the page is kept."""
        while b"\0" not in self._rest:
            self._pipe.settimeout(max(0.01, deadline - time.monotonic()))
            part = self._pipe.recv(1 << 20)
            if not part:
                raise ConnectionError("the browser has ended")
            self._rest += part
        one, self._rest = self._rest.split(b"\0", 1)
        heard: dict[str, Any] = json.loads(one)
        reported = heard.get("params", {})
        match heard.get("method"):
            case "Page.lifecycleEvent" if reported["name"] == "load":
                self._loaded.add(reported["loaderId"])
            case "Runtime.exceptionThrown":
                self.console.append(describe_exception(reported["exceptionDetails"]))
            case "Runtime.consoleAPICalled" if reported["type"] in ("error", "warning", "assert"):
                words = (str(a.get("value", a.get("description", a["type"]))) for a in reported["args"])
                self.console.append(f"{reported['type']}: {' '.join(words)}")
            case "Log.entryAdded" if reported["entry"]["level"] in ("error", "warning"):
                self.console.append(f"{reported['entry']['source']}: {reported['entry']['text']}")
            case "Network.requestWillBeSent":
                asked = reported["request"]["url"]
                if asked != self._url and not asked.startswith(("data:", "blob:")):
                    self.requests.append(asked)
        return heard


def find_faults(page: Page) -> list[str]:
    """What is wrong with a page of ours: each line a fault, none is good."""
    page.wait_until_settled()
    found = [f"console: {reported}" for reported in page.console] + [f"needs {address}" for address in page.requests]
    # Not against innerWidth: a phone widens its window to the page.
    if (wide := page.evaluate("document.documentElement.scrollWidth")) > page.width:
        found.append(f"{wide} px wide in a window of {page.width}")
    found += [f"no text alternative: {drawn}" for drawn in page.evaluate(UNTOLD)]
    pixels = page.screenshot().astype(np.uint32)
    if (colours := np.unique(pixels @ np.array([1 << 16, 1 << 8, 1], np.uint32)).size) < COLOURS:
        found.append(f"blank: {colours} colours")
    return found


def measure_smallest_text(page: Page) -> float:
    """Font size of the smallest text of all figures as it is seen, in CSS pixels; infinity without any text."""
    return min(page.evaluate(SIZES), default=float("inf"))


def read_column(page: Page, number: int, table: str = "table") -> list[str]:
    """Texts of a table's column, from 1, in the order that is shown."""
    query = json.dumps(f"{table} td:nth-child({number})")
    return page.evaluate(f"[...document.querySelectorAll({query})].map(cell => cell.innerText)")


@contextmanager
def open_page(page: Path | str, width: int = 1200, height: int = 800) -> Iterator[Page]:
    """Opens a file, or HTML text as a file, in a browser of its own that ends with the block.

    Where there is no browser the test is skipped with the reason; `make test` brings it first, where it can be had.
    """
    if not PROGRAM.exists():
        why = f"no browser: {MISSING.read_text().strip()}" if MISSING.exists() else "no browser yet"
        pytest.skip(f"{why}; python -m tests.helpers.chromium brings it")
    with tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True) as scratch:
        if isinstance(page, str):
            Path(scratch, "page.html").write_text(page, encoding="utf-8")
            page = Path(scratch, "page.html")
        environment = os.environ | {"LD_LIBRARY_PATH": str(LIBRARIES), "FONTCONFIG_FILE": str(FONTS), "HOME": scratch}
        ours, theirs = socket.socketpair()
        with ours, open(Path(scratch, "stderr.txt"), "w+") as stderr:
            # Chromium reads commands from file 3 and answers on file 4. It ends when our end closes, also by our death.
            with theirs:
                end = theirs.fileno()
                process = subprocess.Popen(
                    ["bash", "-c", f'exec "$@" 3<&{end} 4>&{end}', "bash"]
                    + [str(PROGRAM), *FLAGS, f"--user-data-dir={scratch}/profile"],
                    pass_fds=(end,),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=stderr,
                    env=environment,
                    start_new_session=True,
                )
            try:
                yield Page(ours, page.resolve().as_uri(), width, height)
            except ConnectionError as error:
                stderr.seek(0)
                raise RuntimeError(f"the browser has ended: {stderr.read()[-1000:]}") from error
            finally:
                _end(process)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Kills a browser and its helpers, and waits for all of them: one that lives still writes into the profile."""
    family = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGKILL)  # its own session
    process.wait(PATIENCE)
    deadline = time.monotonic() + PATIENCE
    while any(_lives(one) for one in family) and time.monotonic() < deadline:
        time.sleep(0.01)


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def describe_exception(thrown: dict[str, Any]) -> str:
    return thrown.get("exception", {}).get("description") or thrown["text"]
