"""A headless Chromium, driven over the WebDriver protocol; nothing but the browser is needed."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
DRIVER = shutil.which("chromedriver")
WAIT_S = 90.0
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"


@dataclass
class Browser:
    """One session."""

    url: str

    def call(self, path: str, body: Any = None, method: str = "POST") -> Any:
        """One WebDriver command."""
        data = None if method == "GET" else json.dumps(body or {}).encode()
        request = urllib.request.Request(self.url + path, data, method=method)
        request.add_header("Content-Type", "application/json")
        try:
            with urllib.request.urlopen(request, timeout=WAIT_S) as answer:
                return json.loads(answer.read())["value"]
        except urllib.error.HTTPError as err:
            raise AssertionError(err.read().decode()) from err

    def open(self, url: str) -> None:
        self.call("/url", {"url": url})

    @contextmanager
    def tab(self) -> Iterator[None]:
        """A tab of its own: what is emulated in it, and what it says, ends with it."""
        first = self.call("/window", method="GET")
        self.call("/window", {"handle": self.call("/window/new", {"type": "tab"})["handle"]})
        try:
            yield
        finally:
            self.console()
            self.requests()
            self.call("/window", method="DELETE")
            self.call("/window", {"handle": first})

    def js(self, script: str, *arguments: Any) -> Any:
        """Runs the body of a function in the page."""
        return self.call("/execute/sync", {"script": script, "args": list(arguments)})

    def until(self, script: str) -> Any:
        """Waits for a script to give something true."""
        end = time.monotonic() + WAIT_S
        while not (found := self.js(script)):
            assert time.monotonic() < end, script
            time.sleep(0.05)
        return found

    def find(self, selector: str) -> str:
        found = self.call("/element", {"using": "css selector", "value": selector})
        return str(found[_ELEMENT])

    def click(self, selector: str) -> None:
        self.call(f"/element/{self.find(selector)}/click")

    def type(self, selector: str, text: str) -> None:
        self.call(f"/element/{self.find(selector)}/value", {"text": text})

    def console(self) -> list[str]:
        """Everything at level WARNING or above since the last call."""
        return [line["message"] for line in self.call("/se/log", {"type": "browser"})
                if line["level"] in ("SEVERE", "WARNING")]  # fmt: skip

    def requests(self) -> list[str]:
        """URLs of every request that the page sent since the last call, not the browser's own."""
        urls = []
        for line in self.call("/se/log", {"type": "performance"}):
            event = json.loads(line["message"])["message"]
            if event["method"] == "Network.requestWillBeSent":
                sent = event["params"]
                if not sent["documentURL"].startswith("chrome"):  # its page of a new tab
                    urls.append(str(sent["request"]["url"]))
        return urls

    def devtools(self, command: str, **parameters: Any) -> Any:
        return self.call("/goog/cdp/execute", {"cmd": command, "params": parameters})

    def colours(self, scheme: str) -> None:
        """``light`` or ``dark``, as the system would ask for."""
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.devtools("Emulation.setEmulatedMedia", features=[feature])

    def size(self, width: int, height: int, mobile: bool = False) -> None:
        self.devtools(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=mobile,
        )

    def picture(self, path: Path, whole: bool = False) -> None:
        """A screenshot, of the whole page if asked for."""
        shot = self.devtools("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))


@contextmanager
def chromium(profile: Path) -> Iterator[Browser]:
    """A browser that ends with the ``with`` statement."""
    assert CHROMIUM is not None
    assert DRIVER is not None
    driver = subprocess.Popen(
        [DRIVER, "--port=0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "HOME": str(profile)},
        text=True,
    )
    try:
        server = Browser(f"http://127.0.0.1:{_port(driver)}")
        session = server.call("/session", {"capabilities": {"alwaysMatch": _wishes(profile)}})
        browser = Browser(f"{server.url}/session/{session['sessionId']}")
        try:
            yield browser
        finally:
            browser.call("", method="DELETE")
    finally:
        driver.terminate()
        driver.communicate()


def _wishes(profile: Path) -> dict[str, Any]:
    arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    arguments += ["--autoplay-policy=no-user-gesture-required", "--no-first-run", "--mute-audio"]
    arguments += [f"--user-data-dir={profile / 'chromium'}", "--window-size=1280,900"]
    return {
        "browserName": "chrome",
        "goog:chromeOptions": {"binary": CHROMIUM, "args": arguments},
        "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
    }


def _port(driver: subprocess.Popen[str]) -> int:
    """The port that the driver has chosen, once it answers there."""
    assert driver.stdout is not None
    said = ""
    for line in driver.stdout:
        said += line
        if found := re.search(r"started successfully on port (\d+)", line):
            return int(found[1])
    raise AssertionError(f"chromedriver did not start: {said}")
