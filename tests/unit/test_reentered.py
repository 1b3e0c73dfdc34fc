"""A signal handler that tracks or publishes comes into the middle of that, in the same thread.

It comes at calls. So here each call in the middle is the one at which it comes, in turn.
"""

from __future__ import annotations

import itertools
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest

from ingest import socket_outbox
from ingest.socket_outbox import Outbox
from ingest.sparrow_queue import Memory

PATIENCE_S = 10.0


def interrupted(
    put: Any, make: Callable[[], tuple[Callable[[], object], Callable[[], object]]]
) -> Iterator[None]:
    """What is made, work and handler: the first is done, and the other at the nth call in `put`
    meanwhile; for each n there is."""
    for nth in itertools.count():
        work, handler = make()
        count = itertools.count()
        came = []

        def profile(
            frame: FrameType,
            event: str,
            _: Any,
            handler: Any = handler,
            count: Any = count,
            came: Any = came,
            nth: int = nth,
        ) -> None:
            where = frame.f_back if event == "return" else frame
            is_in_put = where is not None and where.f_code is put.__code__
            if is_in_put and event.endswith("return") and next(count) == nth:
                handler()
                came.append(nth)

        def run(profile: Any = profile, work: Any = work) -> None:
            sys.setprofile(profile)
            try:
                work()
            finally:
                sys.setprofile(None)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        thread.join(PATIENCE_S)
        assert not thread.is_alive(), "it waits for itself"
        if not came:
            assert nth, "there was no call at all"
            return
        yield


class Waiting:
    calls_back = True
    seq = 0

    def number(self, seq: int) -> None:
        self.seq = seq


@pytest.mark.parametrize("batch_bytes", [1, 40, 1_000])
def test_frames_keep_their_numbers_and_their_order(
    monkeypatch: pytest.MonkeyPatch, batch_bytes: int
) -> None:
    """Also where a batch is full in the middle."""
    monkeypatch.setattr(socket_outbox, "BATCH_BYTES", batch_bytes)
    waiting: dict[bytes, Waiting] = {}

    def make() -> tuple[Callable[[], object], Callable[[], object]]:
        nonlocal outbox
        outbox = Outbox(1_000, 1_000_000)
        waiting.clear()
        put(b"first")
        return lambda: put(b"main"), lambda: put(b"handler")

    def put(value: bytes) -> None:
        waiting[value] = Waiting()
        outbox.put(b"head", value, waiting[value])

    outbox: Any = None
    for _ in interrupted(Outbox.put, make):
        put(b"last")
        data, callers = b"", []
        while len(outbox):
            while taken := outbox.take():
                data += taken
            callers += outbox.answer(outbox.last)
        frames = []
        while data:
            size, seq = struct.unpack_from("<IQ", data)
            frames.append((seq, data[16 : size + 4]))
            data = data[size + 4 :]
        assert [seq for seq, _ in frames] == [1, 2, 3, 4]
        assert {value: seq for seq, value in frames} == {
            value: asking.seq for value, asking in waiting.items()
        }
        assert [asking.seq for asking in callers] == [1, 2, 3, 4]
        assert outbox._bytes == 0


def test_events_in_memory_are_counted_right() -> None:
    def make() -> tuple[Callable[[], object], Callable[[], object]]:
        nonlocal queue
        queue = Memory(10, 100)
        return lambda: queue.put(b"main"), lambda: queue.put(b"handler")

    queue: Any = None
    for _ in interrupted(Memory.put, make):
        assert sorted(queue.batch(10)) == [b"handler", b"main"]
        assert (queue.end, queue._bytes) == (2, 11)


def test_nothing_is_taken_behind_the_end() -> None:
    """An event that is, is neither sent nor counted as dropped."""

    def make() -> tuple[Callable[[], object], Callable[[], object]]:
        nonlocal queue
        queue = Memory(10, 100)
        ends.clear()
        return lambda: queue.put(b"main"), close

    def close() -> None:
        queue.close()
        ends.append(queue.end)

    queue: Any = None
    ends: list[int] = []
    for _ in interrupted(Memory.put, make):
        assert ends == [queue.end]
