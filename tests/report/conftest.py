"""The synthetic runs of the figures' tests, and a browser driven over its DevTools protocol."""

import base64
import importlib.util
import itertools
import json
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import websocket

_spec = importlib.util.spec_from_file_location(
    "synthetic_runs", Path(__file__).parent.parent / "figures" / "conftest.py"
)
_runs = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = _runs  # dataclasses look their module up
_spec.loader.exec_module(_runs)
_healthy, _diverged, _huge, _only_loss, make = (
    _runs._healthy,
    _runs._diverged,
    _runs._huge,
    _runs._only_loss,
    _runs.make,
)

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
_FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
    "--remote-debugging-port=0", "--remote-allow-origins=*", "--window-size=1400,900",
]  # fmt: skip


class Browser:
    """One page of a headless Chromium: what it does, asks the network for and complains of."""

    def __init__(self, profile):
        self.process = subprocess.Popen(
            [CHROMIUM, *_FLAGS, f"--user-data-dir={profile}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        port = _until(lambda: _port(profile / "DevToolsActivePort"))
        pages = _until(lambda: [page for page in _targets(port) if page["type"] == "page"])
        self._socket = websocket.create_connection(pages[0]["webSocketDebuggerUrl"], timeout=60)
        self._ids = itertools.count(1)
        self.requests, self.complaints = [], []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method, **parameters):
        number = next(self._ids)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv())
            self._note(message)
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]

    def _note(self, message):
        kind, facts = message.get("method"), message.get("params", {})
        if kind == "Network.requestWillBeSent":
            self.requests.append(facts["request"]["url"])
        elif kind == "Runtime.exceptionThrown":
            self.complaints.append(facts["exceptionDetails"])
        elif kind == "Runtime.consoleAPICalled" and facts["type"] in ("error", "warning", "assert"):
            self.complaints.append(facts["args"])
        elif kind == "Log.entryAdded":
            self.complaints.append(facts["entry"])

    def open(self, path, width=1400, height=900, dark=False):
        """Load a report and wait until it is drawn."""
        self.requests.clear()
        self.complaints.clear()
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=scheme)
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Page.navigate", url=Path(path).resolve().as_uri())
        _until(lambda: self("document.readyState === 'complete' && Boolean(window.dynaxx?.state().ready)"))
        self("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def __call__(self, expression):
        """The value of a JavaScript expression; promises are awaited."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def state(self):
        return self("window.dynaxx.state()")

    def mouse(self, kind, x, y, **more):
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def key(self, name):
        text = {"text": name} if len(name) == 1 else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=name, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=name)

    def picture(self, path, full=True):
        taken = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=full)
        Path(path).write_bytes(base64.b64decode(taken["data"]))

    def close(self):
        self._socket.close()
        self.process.terminate()
        self.process.wait(20)


def _port(file):
    return int(file.read_text().split()[0]) if file.exists() and file.read_text() else None


def _targets(port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=5) as answer:
        return json.load(answer)


def _until(ready, seconds=30):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := ready():
            return value
        time.sleep(0.05)
    raise TimeoutError(f"nothing within {seconds} s")


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("no chromium on the path: what a browser shows is not checked here")
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture
def healthy_synthetic():
    return _runs.healthy(300, 6)


@pytest.fixture
def only_loss_synthetic():
    return _runs.only_loss()
