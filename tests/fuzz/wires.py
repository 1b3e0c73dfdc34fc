"""The same inputs and worse over sockets, to a real `headrace collect`: what HTTP servers choke on.

Requests are written as bytes and then spoilt: request lines, headers, lengths, chunks, pipelines,
HTTP/2's preface and frames, TLS on a plain port; and conversations with the unix socket, cut off
anywhere. Of each connection: an end within seconds and no 5xx that is not stated. Of the collector:
the same process to the end, nothing in its log that is a fault, and memory that stays flat.
"""

from __future__ import annotations

import asyncio
import random
import re
import struct
import tempfile
from pathlib import Path

from collecting import Collector
from fuzz.bodies import Bodies, mutated
from fuzz.calls import Call, make
from fuzz.frames import converse
from fuzz.target import STREAMS, Failure, write_keys

from ingest.collector.doors import doors
from ingest.streams import BUILT_IN

__all__ = ["send_all"]

_AT_ONCE = 32
# The collector's own patience with headers and with bodies, and ours with a connection.
_PATIENCE_S = 1.0
_HANG_S = 30.0
# How long a first byte of an answer is waited for.
_ANSWER_S = 0.15
_UNIX_SHARE = 0.15
_GROWTH_BYTES = 64 * 1024**2
# Nobody listens there: the spool is what is tried here.
_NO_KAFKA = "127.0.0.1:1"
# The spool is full; with ack=kafka, Kafka is away.
_STATED = (b"503", b"504")
_FAULTS = ("Traceback", "could not be answered", "panicked", "was never awaited", "never retrieved")
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def send_all(inputs: int, seed: int) -> str:
    """So many connections; what was seen. Raises Failure."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        write_keys(place / "keys.json")
        collector = Collector(
            place, kafka=_NO_KAFKA, keys="keys.json", socket="fuzz.sock",
            header_timeout_s=_PATIENCE_S, body_timeout_s=_PATIENCE_S,
            kafka_timeout_s=0.1, http2="always",
        )  # fmt: skip
        with collector:
            workers = collector.workers()
            seen: dict[str, int] = {}
            first = inputs // 10
            asyncio.run(_connections(collector, range(first), seed, seen))
            before = sum(map(_resident, workers))
            asyncio.run(_connections(collector, range(first, inputs), seed, seen))
            after = sum(map(_resident, workers))
            said = ", ".join(f"{k}: {n:,}" for k, n in sorted(seen.items()))
            report = (
                f"{inputs:,} connections; {said}; memory {before / 1e6:.0f} MB, "
                f"{after / 1e6:.0f} MB at the end"
            )
            if collector.workers() != workers:
                raise Failure(f"a worker has died: {collector.log()[-4000:]}")
            if collector.client.get(collector.url + "/healthz").status_code != 200:
                raise Failure("it does not serve any more")
            if after - before > _GROWTH_BYTES:
                raise Failure(f"memory grows: {report}")
        found = [line for line in collector.log().splitlines() if any(f in line for f in _FAULTS)]
        if found:
            raise Failure(f"it logged: {found[:20]}")
        return report


async def _connections(
    collector: Collector, numbers: range, seed: int, seen: dict[str, int]
) -> None:
    waiting = iter(numbers)
    paths = {
        path: f"segment:{path.rpartition('/')[2]}" if door.kind == "segment"
        else f"logs:{door.stream}" if door.kind == "logs"
        else "sparrow"
        for path, door in doors(BUILT_IN).items()
    }  # fmt: skip
    streams = [(name, stream.descriptor) for name, stream in STREAMS.items()]

    async def one_by_one() -> None:
        for number in waiting:
            rng = random.Random(seed << 40 | 1 << 39 | number)
            bodies = Bodies(rng, streams)
            try:
                if rng.random() < _UNIX_SHARE:
                    pieces = converse(rng, bodies).pieces
                    answer = await _talk(collector.folder / "fuzz.sock", pieces, rng)
                    seen["socket"] = seen.get("socket", 0) + 1
                    continue
                pieces = [_request(rng, bodies, paths)]
                if rng.random() < 0.2:
                    cut = rng.randrange(len(pieces[0]) + 1)
                    pieces = [pieces[0][:cut], pieces[0][cut:]]
                answer = await _talk(int(collector.url.rpartition(":")[2]), pieces, rng)
                statuses = re.findall(rb"^HTTP/1\.[01] (\d+)", answer, re.MULTILINE)
                for status in statuses or [b"no status"]:
                    seen[status.decode()] = seen.get(status.decode(), 0) + 1
                    if status[:1] == b"5" and status not in _STATED:
                        raise Failure(f"the status {status.decode()} is not stated")
            except (Failure, TimeoutError) as error:
                again = f"connection {number} of seed {seed}"
                what = "no end" if isinstance(error, TimeoutError) else str(error)
                raise Failure(f"{again}: {what}\n{pieces!r}"[:20_000]) from error

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(_AT_ONCE):
                group.create_task(one_by_one())
    except ExceptionGroup as several:
        raise several.exceptions[0] from None


async def _talk(place: Path | int, pieces: list[bytes], rng: random.Random) -> bytes:
    """All that comes back until the other side closes. Raises TimeoutError where it does not."""
    async with asyncio.timeout(_HANG_S):
        if isinstance(place, int):
            reader, writer = await asyncio.open_connection("127.0.0.1", place)
        else:
            reader, writer = await asyncio.open_unix_connection(str(place))
        try:
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
            if rng.random() < 0.1:
                return b""  # gone without a word
            # To end our side at once would end an answer that is on its way.
            try:
                first = await asyncio.wait_for(reader.read(65536), _ANSWER_S)
            except TimeoutError:
                first = b""
            writer.write_eof()
            return first + await reader.read(-1)
        except OSError as error:
            if isinstance(error, TimeoutError):
                raise
            return b""  # it may close while we still send
        finally:
            writer.transport.abort()


def _request(rng: random.Random, bodies: Bodies, paths: dict[str, str]) -> bytes:
    dice = rng.random()
    if dice < 0.03:
        return rng.randbytes(rng.choice((1, 20, 2000)))
    if dice < 0.05:
        return b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + rng.randbytes(500)
    if dice < 0.15:
        return _http2(rng)
    calls = [make(rng, bodies, paths) for _ in range(rng.choice((1, 1, 1, 2, 4)))]
    said = b"".join(_written(rng, call) for call in calls)
    return mutated(said, rng) if rng.random() < 0.25 else said


def _written(rng: random.Random, call: Call) -> bytes:
    """As HTTP/1.1, mostly with a length that is right."""
    target = "".join(c if 32 < ord(c) < 127 else "%FF" for c in call.path).encode() or b"/"
    if call.query:
        target += b"?" + call.query
    version = rng.choice((b"HTTP/1.1",) * 20 + (b"HTTP/1.0", b"HTTP/2.0", b"HTTP/9", b"", b"XTTP"))
    lines = [b" ".join((call.method.encode(), target, version))]
    lines += [name + b": " + value for name, value in call.headers if name != b"content-length"]
    body = call.body
    match rng.randrange(12):
        case 0:
            lines.append(b"transfer-encoding: chunked")
            size = rng.choice(
                (b"%x", b"%X;a=b", b"%x ", b"0%x", b"-%x", b"%xz", b"ffffffffffffffff%x")
            )
            part = b"".join(size % len(p) + b"\r\n" + p + b"\r\n" for p in call.parts if p)
            body = part + rng.choice(
                (b"0\r\n\r\n", b"0\r\n\r\n", b"0\r\na: b\r\n\r\n", b"", b"0\r\n")
            )
        case 1:
            said = rng.choice((b"-1", b"+5", b"0x10", b"1_0", b"5, 5", b"", b"99999999999999999999",
                               b"%d" % (len(body) + 1), b" 7 "))  # fmt: skip
            lines.append(b"content-length: " + said)
        case 2:
            lines += [b"content-length: %d" % len(body), b"content-length: %d" % (len(body) + 1)]
        case 3:
            lines += [b"content-length: %d" % len(body), b"transfer-encoding: chunked"]
        case 4:
            lines += [b"content-length: %d" % len(body), b"expect: 100-continue"]
        case 5:
            lines += [b"content-length: %d" % len(body), b"upgrade: h2c", b"connection: upgrade"]
        case _:
            lines.append(b"content-length: %d" % len(body))
    if rng.random() < 0.01:
        lines.append(b"x: " + b"y" * rng.choice((9_000, 70_000)))
    if rng.random() < 0.01:
        lines += [b"h%d: v" % n for n in range(rng.choice((101, 3_000)))]
    end = rng.choice((b"\r\n",) * 20 + (b"\n", b"\r", b"\r\n "))
    return end.join(lines) + end * 2 + body


def _http2(rng: random.Random) -> bytes:
    """The preface and frames of any kind with any content."""
    frames = []
    for _ in range(rng.randrange(6)):
        payload = rng.randbytes(rng.choice((0, 4, 5, 8, 30, 300)))
        size = len(payload) if rng.random() < 0.9 else rng.randrange(2**24)
        head = struct.pack(">I", size)[1:] + bytes((rng.randrange(12), rng.randrange(256)))
        frames.append(head + struct.pack(">I", rng.choice((0, 1, 1, 3, 2**31))) + payload)
    settings = b"\0\0\0\4\0\0\0\0\0" if rng.random() < 0.8 else b""
    return _PREFACE[: rng.choice((24, 24, 24, 24, 10))] + settings + b"".join(frames)


def _resident(pid: int) -> int:
    pages = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * 4096
