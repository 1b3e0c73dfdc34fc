"""Looking after a spool: what is in it, and writing it out.

A spool that is in use can be looked into (read only), but neither checked nor written out: one that
is being sent changes under one's hands.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from stat import S_ISREG
from typing import BinaryIO

from ingest.spool.errors import SpoolClosed, SpoolError
from ingest.spool.frames import Stored
from ingest.spool.lock import Lock, user_of
from ingest.spool.mend import repair
from ingest.spool.reader import DATABASE, Reader, State, is_cut_off, translated
from ingest.spool.store import Store
from ingest.spool.verify import Findings, connect, records_of, verify
from ingest.varint import varint

__all__ = ["Glance", "Overview", "TopicLine", "export", "fsck", "glance", "look", "writable"]


@dataclass
class TopicLine:
    """One topic's records that wait."""

    records: int = 0
    bytes: int = 0
    oldest_us: int = 0
    newest_us: int = 0


@dataclass
class Overview:
    """What `headrace spool ls` prints. `bytes_on_disk` are the files'."""

    state: State
    user: int | None
    bytes_on_disk: int
    damaged: int = 0
    topics: dict[str, TopicLine] = field(default_factory=dict)

    @property
    def records(self) -> int:
        """Records at or above the position."""
        return sum(line.records for line in self.topics.values())

    @property
    def oldest_us(self) -> int | None:
        """When the oldest of them came."""
        return min((line.oldest_us for line in self.topics.values()), default=None)


@dataclass(frozen=True, slots=True)
class Glance:
    """What a spool says of itself; of what it has sent it may not know yet that it arrived."""

    state: State
    user: int | None
    # When the oldest record came that may wait.
    oldest_us: int | None

    @property
    def waiting(self) -> int:
        """Records that may not be in Kafka."""
        return self.state.next_seq - self.state.position


def of_workers(folder: Path) -> list[Path]:
    """The spools of a collector whose directory this is; none where it is none, or a spool."""
    with suppress(OSError):  # who may not look is told so by whatever opens it
        if (folder / DATABASE).exists():
            return []
    return sorted(found.parent for found in folder.glob(f"*/{DATABASE}"))


@contextmanager
def writable(folder: Path) -> Iterator[None]:
    """Hold the spool's lock. Raises SpoolInUse, and SpoolError where there is no spool."""
    _require(folder)
    lock = Lock(folder)
    try:
        yield
    finally:
        lock.release()


def look(folder: Path) -> Overview:
    """What is in a spool, in use or not. Raises SpoolError where there is none."""
    with _readable(folder) as (user, reader):
        return _look(folder, user, reader)


def glance(folder: Path) -> Glance:
    """The same at once, however much is in it. Raises SpoolError where there is none."""
    with _readable(folder) as (user, reader):
        state = reader.state()
        return Glance(state, user, reader.oldest_us(state.position))


def fsck(folder: Path, *, mend: bool) -> Findings:
    """Verify every checksum and the file; with `mend` set aside what is damaged."""
    with writable(folder):
        return repair(folder) if mend else verify(folder)


def export(folder: Path, out: BinaryIO, *, form: str, topic: str | None = None) -> tuple[int, int]:
    """Write what waits to `out`; how many records, and how many could not be read.

    `ndjson`: an object a line with `seq`, `received_at`, `topic`, `source`, `id`, `key` and
    `value`, the last two in base64. `protobuf`: the values only, each behind its length as a
    varint, as protobuf's parseDelimitedFrom reads them; of one topic, since they do not say which
    they are of. Raises SpoolError where there are several and none is named.
    """
    with writable(folder):
        store = Store(folder)
        try:
            with closing(Reader(folder)) as reader:
                state = reader.state()
                if form == "protobuf" and topic is None:
                    topic = _only_topic(reader, state)
                written = damaged = 0
                for records, bad in _all(reader, state):
                    damaged += bad
                    for record in records:
                        if topic is None or record.topic == topic:
                            out.write(_line(record) if form == "ndjson" else _delimited(record))
                            written += 1
        finally:
            store.close()
    return written, damaged


# -- inside


@contextmanager
def _readable(folder: Path) -> Iterator[tuple[int | None, Reader]]:
    """By whom the spool is in use, if it is, and a connection that reads it.

    The lock is held while that is opened, not while it reads: who wants to use the spool meanwhile
    may, for a reader is nothing new to it.
    """
    _require(folder)
    user = user_of(folder)
    if user is not None:
        with closing(Reader(folder)) as reader:
            yield user, reader
        return
    with ExitStack() as stack:
        # A Store takes in what a killed process left in the WAL; without a WAL nobody can only
        # read. The reader has it before the Store closes, or there would be none again.
        with writable(folder), closing(Store(folder)):
            reader = stack.enter_context(closing(Reader(folder)))
            reader.state()
        yield None, reader
        reader.close()
        _clear(folder)


def _clear(folder: Path) -> None:
    """Remove the WAL that was for a reader, unless somebody has begun to use the spool; whatever
    else keeps it there does no harm."""
    path = folder / DATABASE
    with suppress(SpoolError), writable(folder), translated(path), closing(connect(folder)) as db:
        db.execute("SELECT one FROM state").fetchone()


def _require(folder: Path) -> None:
    path = folder / DATABASE
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        found = None
    except OSError as error:
        raise SpoolClosed(
            f"{folder} can't be looked into: {error.strerror}. Run this as the user whose spool it "
            "is, which is the collector's, or as root"
        ) from error
    if found is None or not S_ISREG(found.st_mode):
        if spools := of_workers(folder):
            spools_are = ", ".join(map(str, spools))
            raise SpoolError(f"{folder} is a collector's: its spools are {spools_are}; name one")
        raise SpoolError(f"there is no spool in {folder}")
    if not found.st_size and not is_cut_off(path):
        raise SpoolError(f"{path} is empty: nothing was stored, or the copy is not whole")


def _look(folder: Path, user: int | None, reader: Reader) -> Overview:
    state = reader.state()
    size = sum(file.stat().st_size for file in folder.glob(f"{DATABASE}*"))
    found = Overview(state, user, size)
    for records, bad in _all(reader, state):
        found.damaged += bad
        for record in records:
            line = found.topics.setdefault(
                record.topic, TopicLine(oldest_us=record.at_us, newest_us=record.at_us)
            )
            line.records += 1
            line.bytes += len(record.value) + len(record.key or b"")
            line.oldest_us = min(line.oldest_us, record.at_us)
            line.newest_us = max(line.newest_us, record.at_us)
    return found


def _all(reader: Reader, state: State) -> Iterator[tuple[list[Stored], int]]:
    """Block by block, so that no snapshot is held: the records from the position on, and how many
    are damaged."""
    following = -1
    while True:
        row = reader.following(following)
        if row is None:
            return
        following = row[0]
        good, damaged = records_of(row)
        yield (
            [record for record in good if record.seq >= state.position],
            sum(d.last - d.first + 1 for d in damaged),
        )


def _only_topic(reader: Reader, state: State) -> str | None:
    topics = {record.topic for records, _ in _all(reader, state) for record in records}
    if len(topics) > 1:
        raise SpoolError(
            f"the spool has records of {', '.join(sorted(topics))}: name one with --topic, for "
            "protobuf values do not say which they are of"
        )
    return next(iter(topics), None)


def _line(record: Stored) -> bytes:
    came = datetime.fromtimestamp(record.at_us / 1e6, UTC).isoformat(timespec="microseconds")
    text = json.dumps(
        {
            "seq": record.seq,
            "received_at": came.replace("+00:00", "Z"),
            "topic": record.topic,
            "source": record.source,
            "id": record.id,
            "key": None if record.key is None else base64.b64encode(record.key).decode(),
            "value": base64.b64encode(record.value).decode(),
        }
    )
    return text.encode() + b"\n"


def _delimited(record: Stored) -> bytes:
    return varint(len(record.value)) + record.value
