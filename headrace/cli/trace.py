"""`headrace trace`: what would leave for the vendors, and what the allowlist might hold."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from headrace.cli.options import config_options
from headrace.cli.when import TIME, check_range
from headrace.words import counted, json_line, printable, printable_lines

if TYPE_CHECKING:
    from consumers.trace.event import Event
    from consumers.trace.gate import Gate, Note
    from consumers.vendors import Vendor
    from headrace.config import Config
    from ingest.gen.headrace.v1.raw_event_pb2 import RawEvent

__all__ = ["trace"]

# Of vendors that are not configured: where one asks for more than what its class requires.
_SETTINGS: dict[str, dict[str, str]] = {
    "ga4": {"measurement_id": "G-XXXXXXXXXX"},
    "mixpanel": {"token_env": "SHOWN"},
    "webhook": {"url": "https://webhook.invalid"},
}
# In place of credentials that are not in the environment; what is shown is masked anyway.
_CREDENTIAL = "credential-is-not-shown"
# Of a value so much is shown.
_MOST = 120


@click.group()
def trace() -> None:
    """What may leave for the vendors: try [trace] of headrace.toml, and let it be proposed.

    \b
    Example:
      headrace trace check events.ndjson
    """


@trace.command()
@click.argument(
    "file", metavar="FILE", type=click.Path(exists=True, dir_okay=False, allow_dash=True)
)
@click.option(
    "--vendor",
    "chosen",
    multiple=True,
    metavar="NAME",
    help="Only this vendor of [vendors.NAME], or one that is not configured; may be given several "
    "times.",
)
@click.option(
    "--requests/--no-requests", default=True, help="Show the requests as well. [default: yes]"
)
@click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Settings with [trace] and [vendors.…]; ./headrace.toml where it exists.",
)
def check(file: str, chosen: Sequence[str], requests: bool, config_path: Path | None) -> None:
    """Show what of the events in FILE would leave for each vendor, and what was taken out and why.

    FILE (- is standard input) has a JSON object a line: an event as a client sends it, Sparrow's or
    Segment's, alone or in an envelope; or a RawEvent. Nothing is sent.

    The vendors are those of [vendors.NAME], each by its name and with its settings; where none is
    configured, all there are, with their defaults. Requests are shown without credentials, which
    need not be set, as they would be if all of it were sent now. The exit code is 1 where a line
    can't be read.

    \b
    Examples:
      headrace trace check events.ndjson
      headrace trace check - --vendor ga4 --no-requests < events.ndjson
    """
    from consumers.trace.gate import Gate
    from consumers.trace.lines import raw_events
    from headrace.config import load

    config = load(config_path, need_kafka=False)
    vendors = _vendors(config, chosen)
    if not config.trace.events:
        click.echo("[trace] lists no event, so nothing leaves; see docs/trace.md", err=True)
    gates = [Gate(config.trace, name) for name in vendors]
    now_us = time.time_ns() // 1000
    leaving: dict[str, list[Event]] = {gate.vendor: [] for gate in gates}
    unread = 0
    with click.open_file(file, "rb") as lines:
        for number, line in _numbered(lines):
            found, refused = raw_events(line, now_us)
            unread += len(refused)
            for reason in refused:
                click.echo(f"line {number}: refused: {printable(reason)}", err=True)
            for raw in found:
                click.echo(f"line {number}: event {printable(raw.event_id)}")
                for gate in gates:
                    _show(gate, raw, leaving[gate.vendor])
    for gate in gates:
        click.echo(f"\n{gate.vendor}: {counted(len(leaving[gate.vendor]), 'event')} would leave")
        for (event, where, reason), count in sorted(gate.counts.items()):
            what = " ".join(part for part in (json.dumps(event) if event else "", where) if part)
            click.echo(printable(f"  {count:,} × {reason}{': ' if what else ''}{what}"))
        if requests and leaving[gate.vendor]:
            _show_requests(gate.vendor, vendors[gate.vendor], leaving[gate.vendor], now_us)
    if unread:
        sys.exit(1)


@trace.command()
@click.option("--from", "begin_us", type=TIME, required=True, metavar="TIME", help="Since when.")
@click.option(
    "--until", "end_us", type=TIME, default="now", show_default=True, metavar="TIME",
    help="Until when.",
)  # fmt: skip
@click.option(
    "--least", type=click.IntRange(1), default=1, show_default=True,
    help="Leave out events that were found less often.",
)  # fmt: skip
@config_options
def suggest(
    begin_us: int, end_us: int, least: int, config_path: Path | None, kafka: str | None
) -> None:
    """Read raw events from Kafka and propose [trace] for what is found, as TOML with counts.

    The time is that at which the collector took them. Nothing is committed and nothing sent. What
    is proposed is everything that could leave: take out what should not. Names that hold personal
    data are commented out, and properties that are nested or of several types are remarks.

    \b
    Examples:
      headrace trace suggest --from -1h
      headrace trace suggest --from 2025-06-16 --until 2025-06-17 --least 100 > proposal.toml
    """
    from consumers.trace.scan import scan
    from consumers.trace.suggest import Suggestion
    from headrace.cli.options import require_topics
    from headrace.config import load

    check_range(begin_us, end_us)
    config = load(config_path, kafka=kafka)
    stream = config.stream("raw_events")
    require_topics(config, [stream])
    found = Suggestion(config.trace)
    for raw in scan(config.kafka, stream.topic, begin_us, end_us):
        found.add(raw)
    # To TOML the names are the same.
    click.echo(printable_lines(found.toml(least)), nl=False)


def _numbered(lines: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """Lines that are not empty."""
    return ((number, line) for number, line in enumerate(lines, 1) if line.strip())


def _show(gate: Gate, raw: RawEvent, leaving: list[Event]) -> None:
    from consumers.trace.gate import Dropped

    notes: list[Note] = []
    found = gate.judge(raw, notes=notes)
    if isinstance(found, Dropped):
        click.echo(printable(f"  {gate.vendor:10} dropped, {found.reason}: {found.detail}"))
        return
    leaving.append(found)
    click.echo(f"  {gate.vendor:10} {json.dumps(found.name)} {_brief(dict(found.properties))}")
    for note in notes:
        done = "left out" if note.after is None else f"now {_brief(note.after)}"
        where = printable(note.where)
        click.echo(f"  {'':10}   {where}: {note.reason}: {_brief(note.before)} {done}")


def _show_requests(name: str, vendor: Vendor | None, events: Sequence[Event], now_us: int) -> None:
    from consumers.vendors import Sending, Validating

    if vendor is None:
        click.echo(f"  its requests depend on its settings: configure [vendors.{name}] to see them")
        return
    outgoing = vendor.requests(events, Sending(now_us))
    for refused in outgoing.refused:
        click.echo(printable(f"  not sent: {refused.event.event_id}: {refused.reason.text}"))
    for request in outgoing.requests:
        shown = request.shown()
        click.echo(printable(f"  {shown.method} {shown.url}"))
        for header, value in shown.headers.items():
            click.echo(printable(f"  {header}: {value}"))
        click.echo(f"\n  {printable_lines(shown.body)}\n")
        if isinstance(vendor, Validating) and vendor.validate_share:
            url = vendor.validation(request).shown().url
            click.echo(f"  a share of {vendor.validate_share} of requests also to {url}\n")


def _vendors(config: Config, chosen: Sequence[str]) -> dict[str, Vendor | None]:
    """Those to show, by name: configured ones, else as their defaults make them, if they do."""
    from consumers.vendors import VENDORS
    from headrace.config import ConfigError

    known = {**dict.fromkeys(config.vendors), **dict.fromkeys(VENDORS)}
    for name in chosen:
        if name not in known:
            raise ConfigError(f"there is no vendor {name!r}; there are: {', '.join(known)}")
    wanted = dict.fromkeys(chosen) or config.vendors or VENDORS
    return {
        name: _configured(config, name) if name in config.vendors else _by_default(name)
        for name in wanted
    }


def _configured(config: Config, name: str) -> Vendor:
    """As `headrace forward` makes it; its credentials need not be set. Raises VendorError."""
    from dataclasses import replace

    found = config.vendors[name]
    named = {v for k, v in found.table.items() if k.endswith("_env") and isinstance(v, str)}
    credentials = {**dict.fromkeys(named, _CREDENTIAL), **found.credentials}
    return replace(found, credentials=credentials).vendor()


def _by_default(name: str) -> Vendor | None:
    """A vendor that is not configured; None where it has settings without a default."""
    from dataclasses import MISSING, fields
    from importlib import import_module

    from consumers.vendors import VENDORS, VendorError, vendor

    kind: Any = getattr(import_module(f"consumers.vendors.{name}"), VENDORS[name])
    secrets = {
        f"{f.name}_env": "SHOWN"
        for f in fields(kind)
        if str(f.type) == "Secret" and f.default is MISSING
    }
    try:
        return vendor(name, secrets | _SETTINGS.get(name, {}), {"SHOWN": _CREDENTIAL})
    except VendorError:
        return None


def _brief(value: object) -> str:
    text = json_line(value)
    return text if len(text) <= _MOST else f"{text[:_MOST]}…"
