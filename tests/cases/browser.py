"""A headless Chromium for tests, driven over pipes by the DevTools protocol: no driver, no port, no library."""

import json
import os
import select
import shutil
import subprocess
import time
from contextlib import contextmanager

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HOW_TO_GET_IT = "no Chromium here: apt-get install --no-install-recommends chromium"
PATIENCE = 240  # seconds for one answer, of a machine that may be busy with all else


@contextmanager
def a_browser(tmp_path_factory):
    """A browser, closed in the end; skips where there is none."""
    if CHROMIUM is None:
        pytest.skip(HOW_TO_GET_IT)
    browser = Browser(tmp_path_factory.mktemp("browser") / "profile")
    yield browser
    browser.close()


class Browser:
    """One page of one browser. ``events`` holds what the page told since it was opened."""

    def __init__(self, folder):
        reading, its_writing = os.pipe()
        its_reading, writing = os.pipe()
        self.events, self._buffer, self._number, self._session = [], b"", 0, None
        self._reading, self._writing = reading, writing
        command = [
            CHROMIUM,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--remote-debugging-pipe",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-extensions",
            "--disable-component-update",
            f"--user-data-dir={folder}",
            "about:blank",
        ]
        # Chromium reads commands from descriptor 3 and answers on 4. (dash knows no descriptors above 9.)
        shell = ["bash", "-c", f'exec "$@" 3<&{its_reading} 4>&{its_writing} 2>{folder}.log', "bash", *command]
        self._process = subprocess.Popen(shell, pass_fds=(its_reading, its_writing))
        os.close(its_reading)
        os.close(its_writing)
        (page,) = (t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=page["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method, **params):
        """The answer to one command; events that come before it are kept."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._writing, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer)
                return answer["result"]
            self.events.append(answer)

    def open(self, path):
        """Shows a file, once all in it has been loaded."""
        self.events.clear()
        self.call("Page.navigate", url=path.as_uri())
        while not self.told("Page.loadEventFired"):
            self.events.append(self._read())

    def told(self, *methods):
        """What events of some kinds held."""
        return [event["params"] for event in self.events if event.get("method") in methods]

    def run(self, script):
        """The value of a JavaScript expression in the page; what it throws is an AssertionError."""
        done = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def view(self, width, height=900, dark=False):
        """Sets size and colour scheme."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=scheme)

    def close(self):
        self.call("Browser.close")
        self._process.wait(PATIENCE)
        os.close(self._reading)
        os.close(self._writing)

    def _read(self):
        end = time.monotonic() + PATIENCE
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._reading], [], [], max(0, end - time.monotonic()))
            data = os.read(self._reading, 1 << 20) if ready else b""
            assert data, f"the browser says nothing, its state is {self._process.poll()}"
            self._buffer += data
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)
