"""Conversations with the unix socket, without a socket: bytes in, bytes out, and their laws.

Of each: nothing is raised or logged; what comes back is the protocol; answers keep to the order of
the numbers; what was acknowledged and not refused was stored, once; nothing else was.
"""

from __future__ import annotations

import asyncio
import random
from typing import Any, NamedTuple

from fuzz.bodies import Bodies, mutated
from fuzz.target import STREAMS, Failure, Target

from ingest.collector.unix import UnixDoor
from ingest.collector.unix_connection import Connection
from ingest.socket_protocol import Ack, Answers, Frame, Goodbye, Hello, Refusal, Welcome, encode

__all__ = ["Conversation", "Socket", "converse"]

_NAMES = ("device_state", "http_test", "test", "raw_events", "none", "ключ", "x" * 255, "\x00", " ")


class Conversation(NamedTuple):
    """What a client sends, piece by piece, and whether it says that this is all."""

    pieces: list[bytes]
    ends: bool


def converse(rng: random.Random, bodies: Bodies) -> Conversation:
    """A client's side, mostly right."""
    key = rng.choice(("", "", "", "KEY-A", "KEY-B", "wrong", "x" * 1024))
    said = encode(Hello(rng.randbytes(16), key))
    if rng.random() < 0.05:
        said = mutated(said, rng)
    seq = 0
    for _ in range(rng.choice((0, 1, 2, 3, 5, 12))):
        seq += rng.choice((1, 1, 1, 1, 1, 2, 1000, 0, -1, 2**40) if rng.random() < 0.1 else (1,))
        stream = rng.choice(_NAMES) if rng.random() < 0.1 else rng.choice(tuple(STREAMS))
        value = bodies.message(stream if stream in STREAMS else "test")
        if rng.random() < 0.01:
            value *= 1 + 9000 // (1 + len(value))
        frame = encode(Frame(seq % 2**64, stream, value))
        said += mutated(frame, rng) if rng.random() < 0.05 else frame
    if rng.random() < 0.03:
        said += rng.choice((b"\0\0\0\0", b"\xff\xff\xff\xff", b"\xff\xff\x1f\0", rng.randbytes(30)))
    if rng.random() < 0.05:
        said = said[: rng.randrange(len(said) + 1)]
    pieces = [said]
    if rng.random() < 0.4:
        step = rng.choice((1, 3, 16, 100)) if len(said) < 3000 else 500
        pieces = [said[at : at + step] for at in range(0, len(said), step)]
    return Conversation(pieces, rng.random() < 0.8)


class _Wire(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.out = bytearray()
        self.closed = self.paused = False

    def write(self, data: Any) -> None:
        if not self.closed:
            self.out += data

    def close(self) -> None:
        self.closed = True

    abort = close

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        if self.paused:
            raise Failure("reading is paused twice")
        self.paused = True

    def resume_reading(self) -> None:
        if not self.paused:
            raise Failure("reading goes on that was not paused")
        self.paused = False


class Socket:
    """The door, on the running loop, with the target's spool."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._door = UnixDoor(
            target.settings.spool / "unused.sock", target.acks, STREAMS,
            limits=target.settings.limits, find_key=target.keys.find,
        )  # fmt: skip

    async def talk(self, said: Conversation) -> None:
        """One conversation from its first byte to its last answer. Raises Failure."""
        wire = _Wire()
        connection = Connection(self._door)
        connection.connection_made(wire)
        try:
            await self._feed(connection, wire, said)
        finally:
            connection.connection_lost(None)
        if self._door.connections or self._door.sessions:
            raise Failure("a connection that is gone is still known")
        self._check(bytes(wire.out), wire)

    async def _feed(self, connection: Connection, wire: _Wire, said: Conversation) -> None:
        for piece in said.pieces:
            for _ in range(1000):
                if not wire.paused or wire.closed:
                    break
                await asyncio.sleep(0)
            else:
                if self._target.spool.refuses is None:
                    raise Failure("it does not read on")
                return
            if wire.closed:
                return
            buffer = connection.get_buffer(-1)
            for at in range(0, len(piece), len(buffer)):
                part = piece[at : at + len(buffer)]
                buffer[: len(part)] = part
                connection.buffer_updated(len(part))
        if said.ends and not wire.closed and not wire.paused:
            connection.eof_received()
        for _ in range(10):
            await asyncio.sleep(0)
        if said.ends and not wire.closed and self._target.spool.refuses is None:
            raise Failure("the client has sent all, and the collector does not close")

    def _check(self, out: bytes, wire: _Wire) -> None:
        answers = Answers()
        events = list(answers.receive(out))
        answers.end()
        refused, acked = set(), 0
        for place, event in enumerate(events):
            match event:
                case Welcome():
                    if place:
                        raise Failure("a welcome is not the first word")
                case Refusal(seq, code, reason):
                    if seq <= acked or not code or not reason:
                        raise Failure(f"{event} came behind the ack of {acked}")
                    refused.add(seq)
                case Ack(seq):
                    if seq <= acked:
                        raise Failure(f"{event} came behind the ack of {acked}")
                    acked = seq
                case Goodbye(code, reason):
                    if place != len(events) - 1 or not code or not reason or not wire.closed:
                        raise Failure(f"{event} is not the end")
        stored = [int(str(record.id).rpartition(":")[2]) for record in self._target.spool.taken()]
        if stored != sorted(set(stored)):
            raise Failure(f"stored in the order {stored}")
        if refused & set(stored):
            raise Failure(f"refused and stored: {refused & set(stored)}")
        if stored and stored[-1] > acked:
            raise Failure(f"{stored[-1]} was stored, and {acked} is the last one acknowledged")
