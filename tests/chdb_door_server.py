"""ClickHouse's HTTP interface in front of chDB; started by `chdb_door.running_door`.

    python tests/chdb_door_server.py --path DIR [--port N] [--user U] [--password P]

It prints its port as a line. The rules:

1. It ends when its stdin closes, so that it never outlives its parent.
2. Every request has a session of its own, so settings in the URL hold for that request only; with a
   `session_id` it has the one of that name, whose temporary tables stay.
3. INSERT data goes through a file and FROM INFILE. chDB's `send_insert` would be the obvious way,
   but it reports success for rows that a constraint or a limit refused.
4. Errors look like ClickHouse's: status, X-ClickHouse-Exception-Code, and the text as body.
"""

from __future__ import annotations

import argparse
import base64
import gzip
import json
import os
import re
import signal
import sys
import tempfile
import threading
import urllib.parse
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from chdb.session import Session

# What ClickHouse takes from the URL that is not a setting (HTTPHandler.cpp).
_NOT_SETTINGS = {
    "query", "database", "default_format", "query_id", "session_id", "session_timeout",
    "session_check", "user", "password", "quota_key", "compress", "decompress", "buffer_size",
    "wait_end_of_query", "role", "client_protocol_version", "enable_http_compression",
    "send_progress_in_http_headers", "http_headers_progress_interval_ms", "stacktrace",
    "cancel_http_readonly_queries_on_disconnect",
}  # fmt: skip
_INSERT = re.compile(r"(?is)\s*INSERT\s+INTO\s.*?\sFORMAT\s+(\w+)\s*")
_CODE = re.compile(r"Code: (\d+)\.")
# exceptionCodeToHTTPStatus in ClickHouse; the rest is 500.
_STATUS = {
    **dict.fromkeys((36, 38, 41, 42, 43, 44, 46, 47, 53, 62, 69, 70, 115, 117, 27, 6, 16), 400),
    **dict.fromkeys((60, 81), 404),
    **dict.fromkeys((192, 193, 194, 516), 403),
    **dict.fromkeys((159, 209), 408),
    48: 501,
}


@dataclass
class _Cut:
    where: str  # "before", "after", or "error"
    match: str
    times: int
    code: int


@dataclass
class _State:
    """What all requests share."""

    path: str
    user: str
    password: str
    lock: threading.Lock = field(default_factory=threading.Lock)
    cuts: list[_Cut] = field(default_factory=list)
    profile: dict[str, str] = field(default_factory=dict)

    def cut(self, query: str) -> _Cut | None:
        with self.lock:
            for cut in self.cuts:
                if cut.times > 0 and cut.match.lower() in query.lower():
                    cut.times -= 1
                    return cut
        return None


class _Refused(Exception):
    """An answer that is an error, with ClickHouse's code."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # As ClickHouse does: or what follows the headers waits for their ACK, 40 ms with each answer.
    disable_nagle_algorithm = True
    state: _State

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def log_message(self, format: str, *args: object) -> None:
        """Silent: the test's output is what matters."""

    def _serve(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        params = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
        body = self._body()
        if url.path == "/ping":
            self._answer(200, b"Ok.\n", {})
        elif url.path == "/door":
            with self.state.lock:
                self.state.cuts = [_Cut(**cut) for cut in json.loads(body)]
            self._answer(200, b"Ok.\n", {})
        elif url.path == "/profile":
            self.state.profile = json.loads(body)
            self._answer(200, b"Ok.\n", {})
        else:
            headers = {
                "X-ClickHouse-Query-Id": params.get("query_id") or str(uuid.uuid4()),
                "X-ClickHouse-Server-Display-Name": "chdb-door",
                "X-ClickHouse-Timezone": "UTC",
            }
            try:
                self._query(params, body, headers)
            except _Refused as error:
                code = {"X-ClickHouse-Exception-Code": str(error.code)}
                text = f"{error} (version 26.9.2.1)\n".encode()
                self._answer(_STATUS.get(error.code, 500), text, headers | code)

    def _query(self, params: dict[str, str], body: bytes, headers: dict[str, str]) -> None:
        self._authenticate(params)
        body = _decoded(body, self.headers.get("Content-Encoding", ""))
        query, data = _split(params.get("query", ""), body)
        cut = self.state.cut(query)
        if cut is not None and cut.where == "error":
            raise _Refused(cut.code, f"Code: {cut.code}. DB::Exception: refused by the test.")
        if cut is not None and cut.where == "before":
            self.close_connection = True
            return
        params = {**self.state.profile, **params}
        fmt = params.get("default_format", self.headers.get("X-ClickHouse-Format", "TabSeparated"))
        try:
            result = _execute(self.state.path, query, data, params, fmt)
        except Exception as error:
            found = _CODE.search(str(error))
            raise _Refused(int(found[1]) if found else 1002, str(error)) from error
        if cut is not None:
            self.close_connection = True
            return
        said = re.search(r"(?i)\bFORMAT\s+(\w+)\s*;?\s*$", query)
        if result.content:
            headers["X-ClickHouse-Format"] = said[1] if said and data is None else fmt
        headers["X-ClickHouse-Summary"] = json.dumps(result.summary)
        self._answer(200, result.content, headers)

    def _authenticate(self, params: dict[str, str]) -> None:
        user = params.get("user") or self.headers.get("X-ClickHouse-User") or "default"
        password = params.get("password") or self.headers.get("X-ClickHouse-Key") or ""
        basic = self.headers.get("Authorization", "")
        if basic.startswith("Basic "):
            user, _, password = base64.b64decode(basic[6:]).decode().partition(":")
        if (user, password) != (self.state.user, self.state.password):
            raise _Refused(
                516,
                f"Code: 516. DB::Exception: {user}: Authentication failed: password is incorrect, "
                "or there is no user with such name. (AUTHENTICATION_FAILED)",
            )

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", "").lower():
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@dataclass(frozen=True)
class _Result:
    content: bytes
    summary: dict[str, str]


def _split(query: str, body: bytes) -> tuple[str, bytes | None]:
    """The query, and the data of an INSERT … FORMAT if it is one."""
    if query:
        found = _INSERT.fullmatch(query)
        if found is not None and found[1].lower() != "values":
            return query, body
        return (query + "\n" + body.decode(), None) if body else (query, None)
    # The query ends with its FORMAT clause and a newline; data may be binary and follows.
    head, _, rest = body.partition(b"\n")
    line = head.decode(errors="replace")
    found = _INSERT.fullmatch(line)
    if found is not None and found[1].lower() != "values":
        return line, rest
    return body.decode(), None


_lock = threading.Lock()
_sessions: dict[str, Session] = {}


@contextmanager
def _session(path: str, params: dict[str, str]) -> Iterator[Session]:
    from chdb.session import Session

    name = params.get("session_id")
    if name is None:
        with Session(path) as session:
            yield session
    else:
        with _lock:
            kept = _sessions.get(name) or _sessions.setdefault(name, Session(path))
        yield kept


def _execute(
    path: str, query: str, data: bytes | None, params: dict[str, str], fmt: str
) -> _Result:
    values = {k[6:]: v for k, v in params.items() if k.startswith("param_")}
    settings = {
        k: v for k, v in params.items() if k not in _NOT_SETTINGS and not k.startswith("param_")
    }
    with _session(path, params) as session, tempfile.NamedTemporaryFile() as file:
        if params.get("database"):
            session.query(f"USE `{params['database']}`")
        for name, value in settings.items():
            session.query(f"SET {re.sub(r'[^A-Za-z0-9_]', '', name)} = {_quoted(value)}")
        if data is not None:
            file.write(data)
            file.flush()
            # FROM INFILE stands before SETTINGS and FORMAT.
            found = re.search(r"(?is)\s(SETTINGS\s.+?\s)?FORMAT\s+\w+\s*$", query)
            assert found is not None
            query = f"{query[: found.start()]} FROM INFILE {_quoted(file.name)}{found[0]}"
        result = session.query(query, fmt, params=values)
        inserted = re.match(r"(?i)\s*INSERT\b", query) is not None
        rows, size = str(result.rows_read()), str(result.bytes_read())
        return _Result(
            content=b"" if inserted else bytes(result.bytes() or b""),
            summary={
                "read_rows": rows,
                "read_bytes": size,
                "written_rows": rows if inserted else "0",
                "written_bytes": size if inserted else "0",
                "total_rows_to_read": "0",
                "result_rows": rows,
                "result_bytes": size,
                "elapsed_ns": str(int(result.elapsed() * 1e9)),
            },
        )


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _decoded(body: bytes, encoding: str) -> bytes:
    match encoding:
        case "" | "identity":
            return body
        case "gzip":
            return gzip.decompress(body)
        case "deflate":
            return zlib.decompress(body)
        case "zstd":
            import zstandard

            return zstandard.ZstdDecompressor().decompressobj().decompress(body)
        case "lz4":
            import lz4.frame

            return bytes(lz4.frame.decompress(body))
    raise _Refused(48, f"Code: 48. DB::Exception: no such encoding here: {encoding}")


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 64

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is no news; anything else is."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--path", required=True)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--user", default="default")
    parser.add_argument("--password", default="")
    args = parser.parse_args()

    from chdb.session import Session

    # Held open for good: the engine stays with it while requests come and go.
    engine = Session(args.path)
    engine.query("SELECT 1")
    _Handler.state = _State(args.path, args.user, args.password)
    server = _Server(("127.0.0.1", args.port), _Handler)

    def end(*_: object) -> None:
        threading.Thread(target=server.shutdown).start()

    def parent_gone() -> None:
        sys.stdin.read()
        os._exit(0)

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=parent_gone, daemon=True).start()
    print(server.server_address[1], flush=True)
    server.serve_forever(poll_interval=0.05)
    engine.close()
    os._exit(0)


if __name__ == "__main__":
    _main()
