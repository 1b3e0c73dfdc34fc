"""Stand-ins in a process of their own, for tests and demonstrations, and how to talk to them.

with serve() as vendors:
    ... "endpoint": vendors.at("amplitude") ...
    vendors.break_("amplitude", fail=0.05, fail_after=0.05)
    assert vendors.stored("amplitude", name="purchase")["count"] == 12
"""

from __future__ import annotations

import contextlib
import http.client
import subprocess
import sys
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode, urlsplit

import orjson

__all__ = ["Vendors", "serve"]

_PATIENCE_S = 30.0
_MAIN = "from headrace.cli import main; main()"


class Vendors:
    """Stand-ins that run at `url`. What they refuse is raised as ValueError."""

    def __init__(self, url: str) -> None:
        self.url = url

    def at(self, vendor: str) -> str:
        """The address that is this vendor's, instead of https://its.host."""
        return f"{self.url}/{vendor}"

    def break_(self, vendor: str, **faults: Any) -> None:
        """With these faults and no others, see faults.py."""
        self._ask("PUT", f"/faults/{vendor}", faults)

    def mend(self, vendor: str) -> None:
        """No faults."""
        self._ask("DELETE", f"/faults/{vendor}")

    def stored(self, vendor: str, **wanted: Any) -> dict[str, Any]:
        """What it stored, see shelf.py; with list="keys" or "events" in `list`, at most `limit`."""
        found: dict[str, Any] = self._ask("GET", f"/stored/{vendor}?{urlencode(wanted)}")
        return found

    def keys(self, vendor: str) -> list[str]:
        """The key of every event that it stored, in the order in which they came."""
        return list(self.stored(vendor, list="keys", limit=1_000_000)["list"])

    def forget(self, vendor: str) -> None:
        """As though it had never stored anything."""
        self._ask("DELETE", f"/stored/{vendor}")

    def advance(self, seconds: float) -> None:
        """Their time goes on by so much."""
        self._ask("POST", "/clock", {"advance_s": seconds})

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        where = urlsplit(self.url)
        with contextlib.closing(
            http.client.HTTPConnection(where.hostname or "", where.port, timeout=_PATIENCE_S)
        ) as connection:
            connection.request(method, path, None if body is None else orjson.dumps(body))
            answer = connection.getresponse()
            found = orjson.loads(answer.read())
        if answer.status != 200:
            raise ValueError(found["error"])
        return found


@contextlib.contextmanager
def serve() -> Iterator[Vendors]:
    """All six on a free port; the process ends with the block, and with this process."""
    with subprocess.Popen(
        [
            sys.executable, "-c", _MAIN, "vendors", "serve", "--listen", "127.0.0.1:0", "--tied",
        ],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        try:
            yield Vendors(_url(process))
        finally:
            process.terminate()
            try:
                process.wait(_PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()


def _url(process: subprocess.Popen[bytes]) -> str:
    """What it says first. Its end, too, ends the wait."""
    line = process.stdout.readline().decode() if process.stdout is not None else ""
    if not line.startswith("listening at "):
        raise RuntimeError(f"the stand-in vendors did not start, exit code {process.wait()}")
    return line.split()[2]
