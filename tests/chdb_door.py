"""A ClickHouse server for tests, without one: its HTTP interface in front of chDB.

    with running_door(tmp_path / "chdb") as door:
        client = clickhouse_connect.get_client(dsn=door.url)
        door.cut("after", match="INSERT")              # executed, but the answer is lost
        door.kill(); door.start()                      # an outage; same port, same data

The door is a process of its own, `chdb_door_server.py`, because chDB takes one path per process. It
never outlives the test: it ends when its stdin closes.

clickhouse-connect repeats a SELECT and `client.insert` (Native) by itself, once, when the
connection is closed without an answer: cut those twice. It does not repeat `insert_arrow` and
commands.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["Door", "running_door"]

_SERVER = Path(__file__).with_name("chdb_door_server.py")


class Door:
    """A door that runs, seen from the test."""

    def __init__(self, path: Path, port: int, user: str, password: str) -> None:
        self._path, self.port, self._user, self._password = path, port, user, password
        self._process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        """For `clickhouse_connect.get_client(dsn=…)`."""
        who = f"{urllib.parse.quote(self._user)}:{urllib.parse.quote(self._password)}"
        return f"http://{who}@127.0.0.1:{self.port}/default"

    def start(self) -> None:
        """Start it, at the port it had before; returns when it answers."""
        assert self._process is None
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(_SERVER),
             "--path", str(self._path), "--port", str(self.port),
             "--user", self._user, "--password", self._password],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self.kill()
            raise RuntimeError("the chDB door did not start; its error is above")
        self.port = int(line)

    def kill(self) -> None:
        """SIGKILL, as an outage; harmless if it isn't running."""
        if self._process is not None:
            self._process.kill()
            self._end()

    def stop(self) -> None:
        """End it in peace; harmless if it isn't running."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
            self._end()

    def _end(self) -> None:
        assert self._process is not None
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._process = None

    def cut(self, where: str, *, match: str = "INSERT", times: int = 1, code: int = 252) -> None:
        """Spoil the next `times` queries that hold `match`; times=0 ends it.

        "before": the connection closes and nothing was executed; "after": it was executed, but the
        answer is lost; "error": ClickHouse's error `code`, nothing executed.
        """
        assert where in ("before", "after", "error")
        cuts = [{"where": where, "match": match, "times": times, "code": code}]
        self._post("door", cuts)

    def profile(self, **settings: str) -> None:
        """The user has these settings, until another call; a request's own are stronger."""
        self._post("profile", settings)

    def _post(self, path: str, body: object) -> None:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/{path}", json.dumps(body).encode(), method="POST"
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            answer.read()


@contextmanager
def running_door(
    path: Path, *, user: str = "default", password: str = "", port: int = 0
) -> Iterator[Door]:
    """A door in front of the chDB at `path` (made if missing), gone afterwards."""
    door = Door(Path(path), port, user, password)
    door.start()
    try:
        yield door
    finally:
        door.stop()
