"""Sparrow: product events to a collector, from any thread, without making anybody wait.

    sparrow = Sparrow("https://collect.example.com", "hr_…")
    sparrow.track("purchase product", {"category": "billing"})

Rules

* track() never waits for the network and never raises because of it. An event goes into a queue; a
  thread sends batches of 100 events or 500 kB, and sends the same batch again until it is answered.
* An event gets its `eventId` once, in track(). So however often it is sent, it is stored once, for
  as long as the collector remembers ids.
* When the queue is full the new event is dropped: track() returns False, `stats.dropped` counts it,
  and the log says so. What is queued stays, and so does its order.
* With `spool=DIR` track() returns when the event is on disk, and a crash loses nothing of it. It
  waits 1 s for a slow disk: after that True means queued for the disk, and if that fails the event
  is counted as dropped.
* What the collector refuses is counted in `stats.refused`, with its reason in the log.
* A wrong key, or an address where no collector answers, is said in the log and tried again every
  minute: it may be mended over there.
* At exit what is queued has `exit_s` to get out. A Sparrow that nobody holds any more sends what it
  has, and its thread ends then.
* After a fork the parent's events are the parent's; the child has a queue of its own, in memory.

No key and nothing of an event is ever in the log.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self
from uuid import UUID, uuid4

from ingest.sparrow_http import Client
from ingest.sparrow_json import encode
from ingest.sparrow_queue import BATCH_BYTES, Disk, Memory, Queue
from ingest.sparrow_sender import Sender, Stats

__all__ = ["Sparrow", "Stats"]


class Sparrow:
    """Events of one device to the collector at `host`, under `key` (empty: none is needed there).

    `host` is https://… unless it says http://. `device_id` names this device; without it there is a
    random one, kept in the spool's directory where there is a spool. `user_id` is whose events they
    are, as identify() sets it. A server that speaks for many gives both with each call. An int is
    as good as its text, as on a page; TypeError for anything else.

    `spool` is a directory that one process at a time may use. `max_events` bounds the queue in
    memory, `max_bytes` either queue. `delay_s` is how long a first event waits for others.
    `timeout_s` is for each step of a request. `context` is for certificates of one's own.

    Raises ValueError for what is no address, SpoolError where the spool can't be opened. Threads
    share it: one for a process is enough. As a context manager it is closed when it is left.
    """

    def __init__(
        self,
        host: str,
        key: str,
        *,
        spool: Path | str | None = None,
        device_id: str | int | UUID | None = None,
        user_id: str | int | UUID | None = None,
        max_events: int = 10_000,
        max_bytes: int = 32 * 1024 * 1024,
        delay_s: float = 0.25,
        timeout_s: float = 10.0,
        exit_s: float = 5.0,
        context: ssl.SSLContext | None = None,
    ) -> None:
        client = Client(host, key, context)
        given = _text("device_id", device_id)
        self._user_id = _text("user_id", user_id)
        memory = partial(Memory, max_events, max_bytes)
        queue: Queue
        if spool is None:
            queue = memory()
            self.device_id = given or str(uuid4())
        else:
            queue = Disk(Path(spool), max_bytes)
            try:
                self.device_id = given or _kept_device_id(Path(spool) / "device_id")
            except BaseException:
                # Its thread would keep the directory from whoever tries again.
                queue.close()
                raise
        self._sender = Sender(
            client, queue, memory, delay_s=delay_s, timeout_s=timeout_s, exit_s=exit_s
        )

    # -- events

    def track(
        self,
        event: str,
        properties: Mapping[str, Any] | None = None,
        *,
        user_id: str | int | UUID | None = None,
        device_id: str | int | UUID | None = None,
    ) -> bool:
        """Something happened. Whether it was taken: False where the queue is full, or closed.

        Raises ValueError for an event without a name, or more than 500 kB; TypeError for properties
        that are no JSON (dates, UUIDs and dataclasses are), and for ids that are no text.
        """
        if not isinstance(event, str) or not event:
            raise ValueError("an event needs a name")
        if properties is not None and not isinstance(properties, Mapping):
            raise TypeError(f"properties are a mapping, not a {type(properties).__name__}")
        device_id, user_id = _text("device_id", device_id), _text("user_id", user_id)
        found: dict[str, Any] = {"event": event, "deviceId": device_id or self.device_id}
        if user_id is None and found["deviceId"] == self.device_id:
            user_id = self._user_id
        if user_id:
            found["userId"] = user_id
        if properties is not None:
            found["properties"] = dict(properties)
        found["eventId"] = str(uuid4())
        now = datetime.now(UTC)
        found["timestamp"] = now.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        data = encode(found)
        if len(data) >= BATCH_BYTES:
            raise ValueError(f"an event has {len(data):,} bytes; less than {BATCH_BYTES:,} it may")
        return self._sender.take(data)

    def pageview(
        self,
        path: str,
        *,
        user_id: str | int | UUID | None = None,
        device_id: str | int | UUID | None = None,
    ) -> bool:
        """A page was seen: the event `pageview` with the property `pathname`, as sparrow.js has it.

        Returns and raises as track().
        """
        return self.track("pageview", {"pathname": path}, user_id=user_id, device_id=device_id)

    def identify(
        self,
        user_id: str | int | UUID | None,
        traits: Mapping[str, Any] | None = None,
        *,
        device_id: str | int | UUID | None = None,
    ) -> bool:
        """Whose the events are: the event `identify`, with the traits as its properties.

        Events from now on have this user, unless it is said of another `device_id` than this one.
        None forgets the user, and is no event. Returns and raises as track().
        """
        device_id, user_id = _text("device_id", device_id), _text("user_id", user_id)
        if device_id is None or device_id == self.device_id:
            self._user_id = user_id
        if not user_id:
            return True
        return self.track("identify", traits or {}, user_id=user_id, device_id=device_id)

    # -- the end

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until all that was taken so far has its answer; False after `timeout` seconds.

        It does not wait out a pause of our own, but one that the collector has asked for.
        """
        return self._sender.flush(timeout)

    def close(self, timeout: float | None = None) -> None:
        """Take no more events, send what is queued within `timeout` seconds (else `exit_s`).

        What is left then is lost, and counted as dropped, or stays in the spool. Never raises;
        closing twice is harmless.
        """
        self._sender.close(timeout)

    @property
    def stats(self) -> Stats:
        """The figures of this process; `queued` are also those that a spool had from before."""
        return self._sender.stats

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __copy__(self) -> NoReturn:
        # The end of the copy would be the end of both.
        raise TypeError("a Sparrow can't be copied: threads share one")

    def __del__(self) -> None:
        # A constructor that raised leaves no sender.
        if hasattr(self, "_sender"):
            self._sender.let_go()


def _text(name: str, given: str | int | UUID | None) -> str | None:
    """An id as sparrow.js writes it; what is no text would be taken here and refused over there."""
    if given is None or isinstance(given, str):
        return given
    if isinstance(given, int) and not isinstance(given, bool):
        return str(int(given))
    if isinstance(given, UUID):
        return str(given)
    raise TypeError(f"{name} is text, an int or a UUID, not a {type(given).__name__}")


def _kept_device_id(path: Path) -> str:
    """The id in the file, which is made when it is missing or empty. Raises SpoolError."""
    try:
        with contextlib.suppress(FileNotFoundError):
            if kept := path.read_text(encoding="ascii").strip():
                return kept
        made = str(uuid4())
        # Whole or not at all: half of it would be another device.
        beside = path.with_name(f"{path.name}.new")
        beside.write_text(made + "\n", encoding="ascii")
        beside.replace(path)
    except (OSError, UnicodeError) as error:
        from ingest.spool import SpoolError  # not at the top, see Disk

        raise SpoolError(
            f"{path} holds the device's id, and can't be read or made: {error}. The events that "
            "wait beside it are safe. Mend or remove it, or give device_id="
        ) from error
    return made
