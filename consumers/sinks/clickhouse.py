"""ClickHouse, exactly once; also its engine in this process (chDB), through the same client.

ClickHouse has no transaction that could hold rows and a position. Instead:

1. `intent`  the spans of the batch are committed as metadata of the group's offsets, which stay at
             the batch's start. Only a member that still owns the partitions can do that.
2. `insert`  one insert, with a deduplication token made of the spans
3. `commit`  the group's offsets move to the batch's end

All metadata names the topic's id: a topic that was deleted and made anew keeps the group's offsets
if a writer of the old one commits late.

Whoever is given a partition whose offset carries an intent settles it first: it reads exactly those
spans again, asks the table which of their offsets are there, and inserts the whole intent with the
same token if they are not. A stopped writer that wakes up and inserts late is recognised by that
token. Tokens are forgotten (after an hour, or 10,000 inserts): so the table is asked, and an intent
that is older than `_FRESH_S` is settled by its missing rows alone, and not begun by its own writer.

An intent covers all partitions of its insert, so that one insert a second is enough for all of them,
and every new owner can rebuild the same insert.
"""  # noqa: E501

from __future__ import annotations

import fcntl
import hashlib
import logging
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

import clickhouse_connect
import orjson
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError, DatabaseError

from consumers.batch import Batch, Chunk, Partition, Span
from consumers.decode import Decoder
from consumers.errors import Fenced, Rejected, SinkError, Systemic, Unavailable
from consumers.metrics import Step, step_timer
from consumers.sinks import Known, Log, raw_normalized
from consumers.sinks.clickhouse_screen import screen
from consumers.sinks.clickhouse_types import (
    DEDUPLICATION_WINDOW,
    ArrowStream,
    column_types,
    ddl,
    fits,
    quote,
)
from ingest.streams import Stream

__all__ = ["ClickHouseSink", "migrate"]

log = logging.getLogger(__name__)

# Half of the shortest time for which ClickHouse remembers a token (an hour, for replicated tables).
_FRESH_S = 1800.0

INSERT_SETTINGS = {
    # One insert, one block, one part: all or nothing. Batches are bounded, blocks need not be.
    "min_insert_block_size_rows": 100_000_000,
    "min_insert_block_size_bytes": 0,
    "max_insert_block_size": 100_000_000,
    # In tables that others have partitioned.
    "max_partitions_per_insert_block": 0,
    # The answer means stored, and the token counts.
    "async_insert": 0,
    "insert_deduplicate": 1,
    "input_format_null_as_default": 0,
    "input_format_import_nested_json": 0,
    # 1.14 M rows/s against 0.75 M/s with more (chDB, 2 cores).
    "max_insert_threads": 1,
}
_CONNECT_TIMEOUT_S = 10
_ANSWER_TIMEOUT_S = 120

_ROWS_AT_FAULT = {
    6: "CANNOT_PARSE_TEXT",
    153: "ILLEGAL_DIVISION",
    321: "VALUE_IS_OUT_OF_RANGE_OF_DATA_TYPE",
    395: "FUNCTION_THROW_IF_VALUE_IS_NON_ZERO",
    407: "DECIMAL_OVERFLOW",
    69: "ARGUMENT_OUT_OF_BOUND",
    117: "INCORRECT_DATA",
    349: "CANNOT_INSERT_NULL_IN_ORDINARY_COLUMN",
    469: "VIOLATED_CONSTRAINT",
}
_PERSON_NEEDED = {
    10: "compare the table with `headrace schema sql STREAM --for clickhouse`",
    16: "compare the table with `headrace schema sql STREAM --for clickhouse`",
    47: "compare the table with `headrace schema sql STREAM --for clickhouse`",
    53: "compare the table with `headrace schema sql STREAM --for clickhouse`",
    60: "create it with `headrace migrate`",
    76: "another process has this directory open: chDB takes one process a path",
    81: "create the database, or correct its name in the URL",
    115: "this server is too old: 24.8 or newer is needed",
    164: "this user may not write",
    192: "check user and password",
    193: "check user and password",
    194: "check user and password",
    497: "grant SELECT and INSERT on the table",
    516: "check user and password",
}


@dataclass(frozen=True, slots=True)
class _Intent:
    """The spans of one insert, and when it was announced (Unix time, milliseconds)."""

    topic_id: str
    spans: dict[Partition, Span]
    at_ms: int

    @property
    def token(self) -> str:
        spans = [(*p, *span) for p, span in sorted(self.spans.items())]
        return "headrace-" + hashlib.sha256(orjson.dumps([self.topic_id, spans])).hexdigest()

    @property
    def fresh(self) -> bool:
        return time.time() - self.at_ms / 1000 < _FRESH_S

    def note(self) -> str:
        topic = next((partition.topic for partition in self.spans), "")
        spans = [[p.number, *span] for p, span in self.spans.items()]
        body = {"v": 1, "topic": topic, "id": self.topic_id, "at_ms": self.at_ms, "spans": spans}
        return orjson.dumps(body).decode()

    @staticmethod
    def read(note: str) -> _Intent | None:
        """The intent in an offset's metadata, maybe of no spans; None where there is no metadata.

        Raises Systemic for metadata that is not ours.
        """
        if not note:
            return None
        try:
            body = orjson.loads(note)
            spans = {Partition(body["topic"], n): Span(s, e) for n, s, e in body["spans"]}
            if body["v"] != 1:
                raise ValueError
            return _Intent(body["id"], spans, body["at_ms"])
        except (ValueError, TypeError, KeyError) as error:
            raise Systemic(
                f"the group's offsets carry metadata that is not ours: {note[:80]!r}; is another "
                "program using this consumer group? Choose another with --group."
            ) from error


class ClickHouseSink:
    """One client. Opening it checks that the tables are as the streams need them.

    `url`: `clickhouse://user:password@host:8123/database`, `clickhouses://…` for TLS, or
    `chdb:DIRECTORY`. Raises Unavailable when the server is away, Systemic when a person has to act.
    """

    def __init__(
        self, url: str, streams: Sequence[Stream], kafka: Log, step: Step = step_timer
    ) -> None:
        self._url = url
        self._log = kafka
        self._step = step
        self._streams = {stream.topic: stream for stream in streams}
        self._decoders = {stream.topic: Decoder(stream) for stream in streams}
        self._stream = ArrowStream()
        # The token of an insert that has been tried and is not committed.
        self._unsure = ""
        if urlsplit(url).scheme == "chdb" and not (_directory(url) / "metadata").is_dir():
            # chDB would make what a mistyped path names.
            raise Systemic(
                f"there is no chDB in {where(url)}; make it with `headrace migrate --to {url}`, or "
                "correct the path"
            )
        self._client = connect(url)
        try:
            with self._talking():
                check_tables(self._client, streams)
        except BaseException:
            self._client.close()
            raise

    def resume(self, known: Mapping[Partition, Known]) -> dict[Partition, int]:
        """Positions: the group's, once what was begun there is settled, and never below the table."""  # noqa: E501
        found = {}
        # What an intent announced, read once for all of its partitions.
        fetched: dict[str, dict[Partition, list[Chunk]]] = {}
        for partition, k in known.items():
            intent = _Intent.read(k.note) if k.committed is not None else None
            committed = k.committed
            if intent is not None and intent.topic_id != k.topic_id:
                log.warning("the topic %s was deleted and made anew: beginning at its start",
                            partition.topic)  # fmt: skip
                intent = committed = None
            span = intent.spans.get(partition) if intent is not None else None
            expired = Span(span.start, min(k.earliest, span.end)) if span else Span(0, 0)
            if (
                span
                and expired.start < expired.end
                and not self._present(partition, expired, k.topic_id)
            ):
                # A part of it can't be read any more: it is for the lane to say, or to skip.
                position = self._after(partition, k.topic_id, span.start)
            elif intent is not None and span:
                with self._step("settle"):
                    if intent.token not in fetched:
                        fetched[intent.token] = {
                            p: self._fetch(p, s) for p, s in intent.spans.items()
                        }
                    landed = self._settle(partition, intent, fetched[intent.token])
                position = span.end if landed else span.start
            else:
                start = k.earliest if committed is None else committed
                position = self._after(partition, k.topic_id, start)
            self._log.commit({partition: position}, _at_rest(k.topic_id))
            found[partition] = position
        return found

    def write(self, batch: Batch) -> None:
        """In commit order; see the module's comment.

        0. `screen`: rows that ClickHouse would change without saying so are refused
        1. `intent`
        2. `insert`; after an attempt without an answer, only what the table does not have
        3. `commit`
        """
        ends = {partition: span.end for partition, span in batch.spans.items()}
        topic_id = self._log.topic_id(next(iter(batch.spans)))
        if batch.chunks:
            refused = screen(batch)
            if refused:
                raise Rejected("out of range", refused)
            intent = _Intent(topic_id, batch.spans, int(time.time() * 1000))
            began = time.monotonic()
            with self._step("intent"):
                self._log.commit({p: s.start for p, s in batch.spans.items()}, intent.note())
            with self._step("insert"):
                if time.monotonic() - began > _FRESH_S:
                    raise Fenced("stopped for too long between intent and insert")
                chunks: Sequence[Chunk] = batch.chunks
                if self._unsure == intent.token:
                    chunks = self._missing(chunks, batch.spans, topic_id)
                self._unsure = intent.token
                self._insert(batch.stream, chunks, topic_id, intent.token)
        with self._step("commit"):
            self._log.commit(ends, _at_rest(topic_id))
        self._unsure = ""

    # -- recovery ------------------------------------------------------------------------------------  # noqa: E501

    def _settle(
        self, partition: Partition, intent: _Intent, fetched: Mapping[Partition, list[Chunk]]
    ) -> bool:
        """Bring an announced insert to its end; whether its rows are in the table now."""
        stream = self._streams[partition.topic]
        own = [c for c in fetched[partition] if c.rows.num_rows]
        everything = [c for chunks in fetched.values() for c in chunks if c.rows.num_rows]
        span = {partition: intent.spans[partition]}
        try:
            # Whole and under its own token, so that a stopped writer's late insert is recognised;
            # unless something of it is there, which the token would not keep from landing twice.
            if intent.fresh and (
                _rows(self._missing(everything, intent.spans, intent.topic_id)) == _rows(everything)
            ):
                self._insert(stream, everything, intent.topic_id, intent.token)
            missing = self._missing(own, span, intent.topic_id)
            if missing:
                # Too old for its token, or only a part of it is there.
                token = f"{intent.token}-{partition.number}"
                self._insert(stream, missing, intent.topic_id, token)
        except Rejected:
            # It was refused then, too: nothing of it landed, and it is read again.
            return False
        log.info("settled an insert that was announced for %s: %s", partition, span[partition])
        return True

    def _fetch(self, partition: Partition, span: Span) -> list[Chunk]:
        """The rows of a span as they were first decoded; its dead letters had been sent before."""
        messages = self._log.read(partition, span)
        if not messages:
            return []
        rows, bad = self._decoders[partition.topic].decode([m.value() for m in messages])
        offsets = [m.offset() or 0 for i, m in enumerate(messages) if i not in bad]
        whole = Batch(
            self._streams[partition.topic], {partition: span}, (Chunk(partition, offsets, rows),)
        )
        return list(whole.without(list(screen(whole))).chunks)

    def _missing(
        self, chunks: Sequence[Chunk], spans: Mapping[Partition, Span], topic_id: str
    ) -> list[Chunk]:
        """What of these rows the table does not have."""
        present = {p: self._present(p, span, topic_id) for p, span in spans.items()}
        missing = []
        for chunk in chunks:
            there = present[chunk.partition]
            stay = [i for i, offset in enumerate(chunk.offsets) if offset not in there]
            if len(stay) == len(chunk.offsets):
                missing.append(chunk)
            elif stay:
                offsets = [chunk.offsets[i] for i in stay]
                missing.append(Chunk(chunk.partition, offsets, chunk.rows.take(stay)))
        return missing

    def _present(self, partition: Partition, span: Span, topic_id: str) -> set[int]:
        rows = self._ask(
            partition,
            "SELECT _offset FROM {} WHERE _topic = {{topic:String}} AND _topic_id = {{id:String}} "
            "AND _partition = {{n:Int32}} AND _offset >= {{start:Int64}} AND _offset < {{end:Int64}}",  # noqa: E501
            {"id": topic_id, "start": span.start, "end": span.end},
        )
        return {row[0] for row in rows}

    def _after(self, partition: Partition, topic_id: str, start: int) -> int:
        """The first offset from `start` on that is above all that the table has.

        The group's offsets expire a week after its last member has left, and another group may have
        written here; the table remembers.
        """
        rows = self._ask(
            partition,
            "SELECT count(), max(_offset) FROM {} WHERE _topic = {{topic:String}} AND "
            "_topic_id = {{id:String}} AND _partition = {{n:Int32}} AND _offset >= {{start:Int64}}",
            {"id": topic_id, "start": start},
        )
        count, most = rows[0]
        return int(most) + 1 if count else start

    def _ask(
        self, partition: Partition, query: str, parameters: dict[str, Any]
    ) -> Sequence[Sequence[Any]]:
        table = quote(self._streams[partition.topic].table)
        with self._talking():
            return self._client.query(
                query.format(table),
                parameters={"topic": partition.topic, "n": partition.number, **parameters},
            ).result_rows

    def _insert(self, stream: Stream, chunks: Sequence[Chunk], topic_id: str, token: str) -> None:
        if not chunks:
            return
        with self._talking():
            self._client.raw_insert(
                quote(stream.table),
                list(column_types(stream)),
                # It takes what is like bytes, in both of its ways to ClickHouse.
                self._stream(chunks, topic_id),  # type: ignore[arg-type]
                settings={**INSERT_SETTINGS, "insert_deduplication_token": token},
                fmt="ArrowStream",
            )

    @contextmanager
    def _talking(self) -> Iterator[None]:
        try:
            yield
        except (ClickHouseError, OSError) as error:
            raise explain(error, self._url) from error

    def close(self) -> None:
        """Close the client."""
        self._client.close()


def migrate(url: str, streams: Sequence[Stream]) -> list[str]:
    """Make the tables and views that are missing; answer which. Raises Unavailable, Systemic."""
    client = connect(url)
    made = []
    try:
        for stream in streams:
            if not client.command(f"EXISTS TABLE {quote(stream.table)}"):
                made.append(f"table {stream.table}")
            client.command(ddl(stream).rstrip(";\n"))
            view = raw_normalized.clickhouse(stream)
            if view is not None and _make_view(client, view):
                made.append(f"view {view.name}")
        check_tables(client, streams)
    except (ClickHouseError, OSError) as error:
        raise explain(error, url) from error
    finally:
        client.close()
    return made


def _make_view(client: Client, view: raw_normalized.View) -> bool:
    """Make a view, or put it in place of an older one of ours; whether there was anything to do."""
    found = client.query(
        "SELECT comment FROM system.tables "
        "WHERE database = currentDatabase() AND name = {name:String}",
        parameters={"name": view.name},
    ).result_rows
    if found and (
        found[0][0] == view.comment or not str(found[0][0]).startswith(raw_normalized.MARK)
    ):
        return False
    client.command(view.sql.rstrip(";\n"))
    return True


def connect(url: str) -> Client:
    """A client for a server or for chDB. Raises Unavailable, Systemic."""
    parts = urlsplit(url)
    if parts.scheme != "chdb" and not parts.hostname:
        raise Systemic(
            "the URL of ClickHouse names no host; write clickhouse://user:password@host:8123/database"
        )
    try:
        if parts.scheme == "chdb":
            return clickhouse_connect.get_client(interface="chdb", path=str(_directory(url)))
        return clickhouse_connect.get_client(
            host=parts.hostname or "localhost",
            port=_port(parts),
            username=unquote(parts.username or "default"),
            password=unquote(parts.password or ""),
            database=_database(parts),
            secure=parts.scheme == "clickhouses",
            connect_timeout=_CONNECT_TIMEOUT_S,
            send_receive_timeout=_ANSWER_TIMEOUT_S,
            autogenerate_session_id=False,
            client_name="headrace",
        )
    except ImportError as error:
        raise Systemic(f"chDB is not installed: pip install 'headrace[local]' ({error})") from error
    except (ClickHouseError, OSError) as error:
        if parts.scheme == "chdb" and _in_use(_directory(url)):
            raise Systemic(
                f"another process has {_directory(url)} open: chDB takes one process a directory"
            ) from error
        raise explain(error, url) from error


def check_tables(client: Client, streams: Sequence[Stream]) -> None:
    """Compare the tables with what the streams need. Raises Systemic, saying what to do."""
    for stream in streams:
        rows = client.query(
            "SELECT name, type FROM system.columns "
            "WHERE database = currentDatabase() AND table = {table:String}",
            parameters={"table": stream.table},
        ).result_rows
        found = {str(name): str(kind) for name, kind in rows}
        if not found:
            raise Systemic(
                f"the table {stream.table} does not exist; create it with "
                f"`headrace migrate --to URL --stream {stream.name}`"
            )
        for name, wanted in column_types(stream).items():
            if name not in found:
                raise Systemic(
                    f"the table {stream.table} has no column {name}; add it: "
                    f"ALTER TABLE {stream.table} ADD COLUMN {quote(name)} {wanted}"
                )
            if not fits(found[name], wanted):
                raise Systemic(
                    f"the column {stream.table}.{name} is {found[name]} and must be {wanted}; "
                    f"see `headrace schema sql {stream.name} --for clickhouse`"
                )
        _check_window(client, stream)


def _check_window(client: Client, stream: Stream) -> None:
    """A table that somebody else has made may forget tokens at once: ClickHouse's own default."""
    rows = client.query(
        "SELECT engine, create_table_query FROM system.tables "
        "WHERE database = currentDatabase() AND name = {table:String}",
        parameters={"table": stream.table},
    ).result_rows
    for engine, made_by in rows:
        window = re.search(r"non_replicated_deduplication_window = (\d+)", str(made_by))
        plain = str(engine).endswith("MergeTree") and not str(engine).startswith(
            ("Replicated", "Shared")
        )
        if plain and (window is None or int(window[1]) == 0):
            raise Systemic(
                f"the table {stream.table} does not remember inserts, so that a late one could "
                f"land twice: ALTER TABLE {stream.table} MODIFY SETTING "
                f"non_replicated_deduplication_window = {DEDUPLICATION_WINDOW}"
            )


def explain(error: Exception, url: str) -> SinkError:
    """The client's error as one of the kinds of failure."""
    parts = urlsplit(url)
    place = where(url)
    code = getattr(error, "code", None) if isinstance(error, DatabaseError) else None
    lines = str(error).strip().splitlines() or [type(error).__name__]
    said = lines[0].replace(unquote(parts.password), "…") if parts.password else lines[0]
    if code in _ROWS_AT_FAULT:
        return Rejected(said)
    if code in _PERSON_NEEDED:
        return Systemic(f"ClickHouse at {place}: {said}; {_PERSON_NEEDED[code]}")
    return Unavailable(f"ClickHouse at {place}: {said}")


def where(url: str) -> str:
    """Host, port and database, or chDB's directory; without user and password."""
    parts = urlsplit(url)
    if parts.scheme == "chdb":
        return str(_directory(url).resolve())
    return f"{parts.hostname or 'localhost'}:{_port(parts)}/{_database(parts)}"


def _directory(url: str) -> Path:
    """chDB's directory. Raises Systemic where the URL names none."""
    path = url.partition(":")[2].removeprefix("//")
    if not path or Path(path).is_file():
        raise Systemic(f"chdb: needs a directory, as in chdb:./data; {path or 'that'} is none")
    return Path(path)


def _in_use(directory: Path) -> bool:
    """Whether a chDB has this directory open; it takes one process."""
    status = directory / "status"
    if not status.exists():
        return False
    with status.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def _port(parts: SplitResult) -> int:
    try:
        return parts.port or (8443 if parts.scheme == "clickhouses" else 8123)
    except ValueError:
        raise Systemic(
            "the URL of ClickHouse can't be used: write clickhouse://user:password@host:8123/name, "
            "with what is special in the password as %2F (/), %40 (@), %3A (:)"
        ) from None


def _database(parts: SplitResult) -> str:
    return parts.path.strip("/") or "default"


def _at_rest(topic_id: str) -> str:
    """The metadata of a position at which nothing is announced."""
    return _Intent(topic_id, {}, 0).note()


def _rows(chunks: Sequence[Chunk]) -> int:
    return sum(chunk.rows.num_rows for chunk in chunks)
