"""A real browser for tests: Debian's Chromium, driven through ChromeDriver's plain HTTP.

    with Browser.open(tmp_path) as browser:
        browser.go("http://127.0.0.1:…/page")
        browser.run("return document.title")
        browser.click("#buy")
        second = browser.new_tab()
        browser.offline(True)                # for the tab that is in front; fires `offline`, `online`

WebDriver is a small protocol, so no package is needed. The profile is a folder of the test's own, and
nothing is left running at the end of the block.
"""  # noqa: E501

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

__all__ = ["Browser"]

_FLAGS = (
    "--headless",
    "--no-sandbox",  # Chromium's needs a user who is not root
    "--disable-gpu",
    "--disable-dev-shm-usage",  # containers have 64 MB there
    "--no-first-run",
    # It calls nobody but the test.
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
_PORT_TAKEN = "IPv4 port not available"
_PORTS = 10
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # WebDriver's name for a reference to an element


class Browser:
    """One browser with its own profile; commands go to the tab that is in front."""

    def __init__(self, address: str, session: str) -> None:
        self._base = f"{address}/session/{session}"

    @classmethod
    @contextlib.contextmanager
    def open(cls, folder: Path, *, storage: bool = True) -> Iterator[Browser]:
        """Skips the test where there is no browser. `storage`: sites may keep something."""
        chromium = shutil.which("chromium")
        driver = shutil.which("chromedriver")
        if chromium is None or driver is None:
            pytest.skip("there is no chromium with its chromedriver")
        options: dict[str, Any] = {
            "binary": chromium,
            "args": [*_FLAGS, f"--user-data-dir={folder / 'profile'}"],
        }
        if not storage:
            options["prefs"] = {"profile.default_content_setting_values.cookies": 2}
        always = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        with _driver(driver) as address:
            made = _ask("POST", f"{address}/session", {"capabilities": {"alwaysMatch": always}})
            yield cls(address, made["sessionId"])
            _ask("DELETE", f"{address}/session/{made['sessionId']}")

    def go(self, url: str) -> None:
        """Opens a page, and returns when it has loaded."""
        self._do("url", url=url)

    def reload(self) -> None:
        """The page again."""
        self._do("refresh")

    def run(self, script: str, *args: Any) -> Any:
        """The body of a function, run in the page; what it returns."""
        return self._do("execute/sync", script=script, args=list(args))

    def click(self, selector: str) -> None:
        """As a person does."""
        found = self._do("element", using="css selector", value=selector)
        self._do(f"element/{found[_ELEMENT]}/click")

    def new_tab(self) -> str:
        """A tab, which comes to the front; its handle."""
        handle = self._do("window/new", type="tab")["handle"]
        self.front(handle)
        return str(handle)

    def tab(self) -> str:
        """The handle of the tab in front."""
        return str(_ask("GET", f"{self._base}/window"))

    def front(self, handle: str) -> None:
        """Brings a tab to the front."""
        self._do("window", handle=handle)

    def close_tab(self) -> None:
        """Closes the tab in front; another one must be brought there."""
        _ask("DELETE", f"{self._base}/window")

    def offline(self, yes: bool) -> None:
        """Takes the network away from the tab in front, or gives it back."""
        conditions = {
            "offline": yes,
            "latency": 0,
            "downloadThroughput": -1,
            "uploadThroughput": -1,
        }
        self._do("goog/cdp/execute", cmd="Network.enable", params={})
        self._do("goog/cdp/execute", cmd="Network.emulateNetworkConditions", params=conditions)

    def console(self) -> list[str]:
        """What was written to the console since this was last asked."""
        return [entry["message"] for entry in self._do("se/log", type="browser")]

    def _do(self, command: str, **body: Any) -> Any:
        return _ask("POST", f"{self._base}/{command}", body)


@contextlib.contextmanager
def _driver(program: str) -> Iterator[str]:
    """A ChromeDriver's address; it and the browsers that it started are gone at the end.

    It takes a free port of ::1, and ends where something else has that of 127.0.0.1, such as one of
    the other tests' connections. The port is its choice, so it is asked for another one.
    """
    for _ in range(_PORTS):
        # A group of its own: the browser's processes end with it, whatever happens.
        process = subprocess.Popen(
            [program, "--port=0"],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True,
        )  # fmt: skip
        try:
            assert process.stdout is not None
            said = ""
            for line in process.stdout:
                said += line
                if found := re.search(r"started successfully on port (\d+)", line):
                    yield f"http://127.0.0.1:{found[1]}"
                    return
            if _PORT_TAKEN not in said:
                break
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
    raise AssertionError(f"chromedriver did not start: {said}")


def _ask(method: str, url: str, body: Any = None) -> Any:
    request = urllib.request.Request(
        url,
        None if body is None else json.dumps(body).encode(),
        {"Content-Type": "application/json"},
        method=method,
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["value"]
    except urllib.error.HTTPError as error:
        with error:
            raise AssertionError(f"{method} {url}: {error.read().decode()[:500]}") from None
