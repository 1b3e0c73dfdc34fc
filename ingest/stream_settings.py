"""Streams as `headrace.toml` declares them: a user's own, and other settings of a built-in one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from google.protobuf.descriptor_pb2 import FileDescriptorSet

from ingest.descriptors import DescriptorError, compile_proto, find_message, read_descriptor_set
from ingest.streams import BUILT_IN, Stream, StreamError

__all__ = ["from_table"]

_SETTINGS = {
    "proto", "descriptor_set", "message", "topic", "key", "time", "table", "dedupe", "indexes",
    "partitions", "chunk_interval", "segment_by", "retention", "columns",
}  # fmt: skip


def from_table(
    name: str,
    table: Mapping[str, Any],
    base: Path,
    compiled: Callable[[Path], FileDescriptorSet] = compile_proto,
) -> Stream:
    """A stream from its `[streams.NAME]` table of `headrace.toml`; paths are relative to `base`.

    `compiled` is asked for what a `.proto` says: who has several streams may remember it.

    ::

        [streams.flights]
        proto = "flights.proto"          # or descriptor_set = "flights.bin"
        message = "flights.v1.Flight"
        key = "carrier"
        time = "time_hour"
        # optional, with these defaults:
        topic = "flights"
        table = "flights"
        dedupe = []
        indexes = []                     # [["carrier", "time_hour"]]
        partitions = 4
        chunk_interval = "1 day"         # TimescaleDB
        segment_by = "…"                 # TimescaleDB columnstore; without it, none
        retention = "…"                  # TimescaleDB, ClickHouse: "7 days"; without it, for ever
        columns = {}                     # { time_hour = "hour" }: a column by another name

    A built-in stream's table may change its settings but not its message. Raises StreamError.
    """
    unknown = sorted(set(table) - _SETTINGS)
    if unknown:
        raise StreamError(
            f"stream {name}: unknown setting {unknown[0]!r}; known: {', '.join(sorted(_SETTINGS))}"
        )
    settings = {k: v for k, v in table.items() if k not in ("proto", "descriptor_set", "message")}
    settings |= _read_lists(name, settings)
    built_in = BUILT_IN.get(name)
    if built_in is not None:
        if len(settings) != len(table):
            raise StreamError(f"stream {name} is built in: its message can't be replaced")
        kept = {f: getattr(built_in, f) for f in Stream.__dataclass_fields__ if f != "required"}
        columns = {**dict(built_in.columns), **dict(settings.get("columns", ()))}
        return _build(name, {**kept, **settings, "columns": tuple(columns.items())})
    for setting in ("message", "key", "time"):
        if not isinstance(table.get(setting), str):
            raise StreamError(f'stream {name}: {setting} = "…" is missing')
    try:
        match table:
            case {"proto": str(path), **rest} if "descriptor_set" not in rest:
                files = compiled(base / path)
            case {"descriptor_set": str(path), **rest} if "proto" not in rest:
                files = read_descriptor_set(base / path)
            case _:
                raise StreamError(
                    f'stream {name}: give either proto = "FILE.proto" or descriptor_set = "FILE"'
                )
        descriptor = find_message(files, table["message"])
    except DescriptorError as error:
        raise StreamError(f"stream {name}: {error}") from error
    defaults = {"name": name, "descriptor": descriptor, "topic": name, "table": name}
    return _build(name, {**defaults, **settings})


def _read_lists(stream: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the settings that are more than a word, as Stream has them."""
    found: dict[str, Any] = {}
    if "dedupe" in settings:
        found["dedupe"] = _names(stream, "dedupe", settings["dedupe"], '["device_id", "time"]')
    if "indexes" in settings:
        example = '[["account_id", "time"]]'
        lists = settings["indexes"]
        if not isinstance(lists, list) or [] in lists:
            raise StreamError(f"stream {stream}: indexes must be lists of fields: {example}")
        found["indexes"] = tuple(_names(stream, "indexes", item, example) for item in lists)
    if "columns" in settings:
        pairs = settings["columns"]
        if not isinstance(pairs, dict) or not all(isinstance(v, str) for v in pairs.values()):
            raise StreamError(f'stream {stream}: columns must be like {{ time_hour = "hour" }}')
        found["columns"] = tuple(pairs.items())
    return found


def _names(stream: str, setting: str, value: Any, example: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        what = "a list of fields" if setting == "dedupe" else "lists of fields"
        raise StreamError(f"stream {stream}: {setting} must be {what}: {example}")
    return tuple(value)


def _build(name: str, settings: dict[str, Any]) -> Stream:
    kinds = {"partitions": int, "dedupe": tuple, "indexes": tuple, "columns": tuple}
    for setting, value in settings.items():
        if value is None or setting == "descriptor":  # TOML has no null: a built-in's default
            continue
        kind = kinds.get(setting, str)
        if not isinstance(value, kind) or isinstance(value, bool):
            words = {int: "a whole number", tuple: "a list", str: "text"}
            raise StreamError(f"stream {name}: {setting} = {value!r} must be {words[kind]}")
    return Stream(**settings)
