"""Configuration: one frozen value, built once from `headrace.toml`, the environment and the stack.

Precedence, strongest first: an option of the command line, the environment, the file, the local
stack where it is running. Nobody else reads `os.environ`. librdkafka's keys keep librdkafka's
spelling.

    HEADRACE_CONFIG   path of the file (default: ./headrace.toml, which may be missing)
    HEADRACE_KAFKA    bootstrap servers, "host:port,host:port"
    HEADRACE_POSTGRES, HEADRACE_CHDB   what `--to postgres` and `--to chdb` mean: a URL, a directory
    HEADRACE_RAW   where replays find raw events that Kafka no longer has; `raw` of [replay]
    HEADRACE_TRACE_KEY   the secret for ids that [trace] hashes, and for keys of events
                         whose id is personal data
    HEADRACE_STATE    directory of the local stack (default: ./.headrace)
    SENTRY_DSN        where answers of vendors that are no yes are told as well
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from consumers.forward.settings import VendorSettings
from consumers.forward.settings import from_tables as vendor_settings
from consumers.trace.allowlist import TraceError, TraceSettings
from consumers.trace.allowlist import from_table as trace_settings
from consumers.vendors import VENDORS, VendorError
from ingest.collector.settings import CollectError, CollectSettings
from ingest.collector.settings import from_table as collect_settings
from ingest.descriptors import compile_proto
from ingest.stream_settings import from_table
from ingest.streams import BUILT_IN, Stream, StreamError

__all__ = ["Config", "ConfigError", "load", "start_the_stack"]

_SECTIONS = {"kafka", "streams", "collect", "trace", "vendors", "replay"}


class ConfigError(Exception):
    """The configuration can't be used; the text names the file, the setting and the remedy."""


@dataclass(frozen=True, slots=True)
class Config:
    """What every role needs to know."""

    # librdkafka's settings, shared by producers and consumers; holds "bootstrap.servers".
    kafka: Mapping[str, str | int | float | bool]
    streams: Mapping[str, Stream]
    # Where the local stack lives; PostgreSQL and chDB, of the environment or the running stack.
    state: Path
    postgres: str | None = None
    chdb: Path | None = None
    # The database with the table of raw events, as --to takes it; where none is named, `postgres`
    # or `chdb`, if one is known.
    raw: str | None = None
    collect: CollectSettings = field(default_factory=CollectSettings)
    trace: TraceSettings = field(default_factory=TraceSettings)
    # Those that are configured; their credentials are asked for when they are made.
    vendors: Mapping[str, VendorSettings] = field(default_factory=dict)
    sentry_dsn: str | None = field(default=None, repr=False)
    # What was read, or would have been.
    file: Path = Path("headrace.toml")

    def stream(self, name: str) -> Stream:
        """The stream of that name. Raises ConfigError, naming those there are."""
        try:
            return self.streams[name]
        except KeyError:
            raise ConfigError(
                f"there is no stream {name!r}; declared are: {', '.join(self.streams)}. "
                "Add [streams." + name + "] to headrace.toml."
            ) from None


def load(
    path: Path | None = None,
    *,
    kafka: str | None = None,
    environ: Mapping[str, str] | None = None,
    need_kafka: bool = True,
) -> Config:
    """Read the configuration. `path` and `kafka` are the command line's; raises ConfigError."""
    env = os.environ if environ is None else environ
    named = path or (Path(env["HEADRACE_CONFIG"]) if env.get("HEADRACE_CONFIG") else None)
    file = named or Path("headrace.toml")
    document = _document(file, must_exist=named is not None)
    streams = _streams(file, document.get("streams", {}))
    settings = _kafka(file, document.get("kafka", {}))
    state = Path(env.get("HEADRACE_STATE") or ".headrace")
    local = _local(state)
    vendors = _vendors(file, document.get("vendors", {}), env)
    bootstrap = kafka or env.get("HEADRACE_KAFKA") or settings.get("bootstrap.servers")
    if not bootstrap and local is not None:
        bootstrap = local.kafka
    if bootstrap:
        settings["bootstrap.servers"] = bootstrap
    elif need_kafka:
        raise ConfigError(
            f"no Kafka is known: {start_the_stack(state)}, or set --kafka, HEADRACE_KAFKA or "
            '"bootstrap.servers" under [kafka] in headrace.toml'
        )
    return Config(
        kafka=settings,
        streams=streams,
        state=state,
        postgres=env.get("HEADRACE_POSTGRES") or (local.postgres if local else None),
        chdb=Path(env["HEADRACE_CHDB"]) if env.get("HEADRACE_CHDB") else local and local.chdb,
        raw=env.get("HEADRACE_RAW") or _raw(file, document.get("replay", {})),
        collect=_collect(file, document.get("collect", {})),
        trace=_trace(
            file, document.get("trace", {}), {*VENDORS, *vendors}, env.get("HEADRACE_TRACE_KEY")
        ),
        vendors=vendors,
        sentry_dsn=env.get("SENTRY_DSN") or None,
        file=file,
    )


def _document(file: Path, *, must_exist: bool) -> dict[str, Any]:
    """The file as TOML, its sections checked; empty where it is missing and may be."""
    try:
        # Editors on Windows put a byte order mark in front, which tomllib refuses as a statement.
        document = tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        if must_exist:
            raise ConfigError(f"{file} does not exist") from None
        return {}
    except OSError as error:
        raise ConfigError(f"{file} can't be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not TOML: {error}") from error
    unknown = sorted(set(document) - _SECTIONS)
    if unknown:
        raise ConfigError(
            f"{file}: unknown section [{unknown[0]}]; known: {', '.join(sorted(_SECTIONS))}"
        )
    for section in document:
        if not isinstance(document[section], dict):
            raise ConfigError(f"{file}: {section} must be a section: [{section}]")
    return document


def _streams(file: Path, tables: Mapping[str, Any]) -> dict[str, Stream]:
    """The built-in streams and those of the file."""
    streams = dict(BUILT_IN)
    # A process of protoc for each file, and not for each stream: of forty that share one the start
    # of every command was seconds. Not kept beyond this, for the file may change.
    compiled = cache(compile_proto)
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise ConfigError(f"{file}: streams.{name} must be a section: [streams.{name}]")
        try:
            streams[name] = from_table(name, table, file.resolve().parent, compiled)
        except StreamError as error:
            raise ConfigError(f"{file}: {error}") from error
    _refuse_shared(file, streams)
    return streams


def _kafka(file: Path, table: Mapping[str, Any]) -> dict[str, str | int | float | bool]:
    """librdkafka's settings of the file."""
    for key, value in table.items():
        if not isinstance(value, str | int | float | bool):
            raise ConfigError(
                f"{file}: kafka.{key} must be text, a number or true/false (write dotted keys in "
                'quotes: "bootstrap.servers" = "…")'
            )
    return dict(table)


def _raw(file: Path, table: Mapping[str, Any]) -> str | None:
    """Where replays find raw events that Kafka no longer has."""
    found = table.get("raw")
    if set(table) - {"raw"} or not isinstance(found, str | None):
        raise ConfigError(
            f"{file}: [replay] has one setting, the database with the table of raw events: "
            'raw = "postgres", "chdb", or a URL as `headrace insert --to` takes it'
        )
    return found


def _collect(file: Path, table: Mapping[str, Any]) -> CollectSettings:
    """The collector's settings of the file."""
    try:
        return collect_settings(table, file.resolve().parent)
    except CollectError as error:
        raise ConfigError(f"{file}: {error}") from error


def _vendors(
    file: Path, tables: Mapping[str, Any], environ: Mapping[str, str]
) -> dict[str, VendorSettings]:
    """The vendors that are sent to."""
    try:
        return vendor_settings(tables, environ)
    except VendorError as error:
        raise ConfigError(f"{file}: {error}") from error


def _trace(
    file: Path, table: Mapping[str, Any], vendors: Collection[str], key: str | None
) -> TraceSettings:
    """What may leave for the vendors."""
    try:
        return trace_settings(table, vendors, key)
    except TraceError as error:
        raise ConfigError(f"{file}: {error}") from error


def _refuse_shared(file: Path, streams: Mapping[str, Stream]) -> None:
    """Two streams may not share a topic or a table: positions are kept by topic and table."""
    for what in ("topic", "table"):
        seen: dict[str, str] = {}
        for stream in streams.values():
            names = (stream.topic, stream.dlq) if what == "topic" else (stream.table,)
            for value in names:
                if value in seen:
                    raise ConfigError(
                        f"{file}: streams {seen[value]} and {stream.name} share the {what} "
                        f"{value!r}"
                    )
                seen[value] = stream.name


def _local(state: Path) -> Any:
    """The local stack's endpoints when it is running (and installed), else None.

    Also where they can't be read, as those of another user's stack: who has named another Kafka
    needs none, and for who has not start_the_stack() raises the same StackError.
    """
    if not _is_there(state):
        return None
    try:
        from headrace.stack import Stack, StackError
    except ImportError:
        return None
    try:
        return Stack(state).endpoints()
    except StackError:
        return None


def _is_there(state: Path) -> bool:
    """Also False where this user may not look: `headrace up` says that it can't be used."""
    try:
        return state.is_dir()
    except PermissionError:
        return False


def start_the_stack(state: Path) -> str:
    """What to do about a local stack that does not run, or only in part."""
    ask = "start the local stack with `headrace up`"
    if not _is_there(state):
        return ask
    try:
        from headrace.stack import Stack
    except ImportError:
        return ask
    services = Stack(state).status().services
    if not any(s.state in ("running", "crashed") for s in services):
        return ask
    found = ", ".join(f"{s.name} is {s.state}" for s in services)
    return f"of the local stack in {state}, {found}: bring it up with `headrace up`"
