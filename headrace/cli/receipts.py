"""`headrace receipts`: what became of events at the vendors."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from headrace.cli.options import config_options, require_topics
from headrace.cli.when import TIME, check_range, rfc3339
from headrace.config import Config, load
from headrace.words import json_line, printable

if TYPE_CHECKING:
    from ingest.gen.headrace.v1.receipt_pb2 import Receipt

__all__ = ["receipts"]


@click.command()
@click.option("--vendor", metavar="NAME", help="Only of this vendor.")
@click.option("--failed", is_flag=True, help="Only what is not accepted: rejected or expired.")
@click.option("--event-id", metavar="ID", help="Only of this event.")
@click.option("--from", "begin_us", type=TIME, default="-1h", show_default=True, metavar="TIME",
              help="Since when they were answered.")  # fmt: skip
@click.option("--until", "end_us", type=TIME, default="now", show_default=True, metavar="TIME",
              help="Until when.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="A JSON object a line, with all fields.")
@config_options
def receipts(
    vendor: str | None,
    failed: bool,
    event_id: str | None,
    begin_us: int,
    end_us: int,
    as_json: bool,
    config_path: Path | None,
    kafka: str | None,
) -> None:
    """Show the receipts of `headrace forward`: for each event and vendor what became of it.

    They are read from Kafka, in no order between events. Of two for the same event and vendor the
    later one counts, unless one is accepted: then that does. With --failed those are left out that
    [trace] did not let leave: they are dropped, not failed. The last line, on standard error, has
    the sums: of receipts, so an event that was replayed is in them as often as it was sent.

    \b
    Examples:
      headrace receipts --vendor amplitude --failed --from -2h
      headrace receipts --event-id 0197a2b4-7c1e-7cc3-98c4-dc0c0c07398f --from -7d --json
    """
    from consumers.forward.look import receipts_between

    check_range(begin_us, end_us)
    config = load(config_path, kafka=kafka)
    stream = config.stream("receipts")
    require_topics(config, [stream])
    sums: dict[tuple[str, str], int] = {}
    for one in receipts_between(config.kafka, stream.topic, begin_us, end_us):
        if (
            (vendor and one.vendor != vendor)
            or (event_id and one.event_id != event_id)
            or (failed and one.status not in ("rejected", "expired"))
        ):
            continue
        if not sums and not as_json:
            click.echo(_row("answered", "vendor", "status", "reason", "tries", "event", "detail"))
        at = (one.vendor, one.status)
        sums[at] = sums.get(at, 0) + 1
        if as_json:
            click.echo(json_line(_document(one)))
        else:
            tries = f"{one.attempts}{'+' if one.repeated else ''}"
            click.echo(
                _row(
                    rfc3339(one.answered_at.ToMicroseconds())[:19], one.vendor, one.status,
                    one.reason, tries, one.event_id, one.detail,
                )
            )  # fmt: skip
    found = ", ".join(f"{v} {status} {n:,}" for (v, status), n in sorted(sums.items()))
    click.echo(printable(found or _none(config, vendor)), err=True)
    sys.stdout.flush()


def _none(config: Config, vendor: str | None) -> str:
    """That there are none; a name that is mistyped is not to be read as that nothing failed."""
    if vendor is None or vendor in config.vendors:
        return "no such receipts"
    known = ", ".join(config.vendors) or "none"
    return f"no such receipts, and no [vendors.{vendor}] in {config.file}; there are: {known}"


def _row(
    answered: str, vendor: str, status: str, reason: str, tries: str, event: str, detail: str
) -> str:
    return printable(
        f"{answered:19}  {vendor:10}  {status:8}  {reason:18}  {tries:>5}  {event:36}  {detail}"
    ).rstrip()


def _document(one: Receipt) -> dict[str, object]:
    sent = one.sent_at.ToMicroseconds() if one.HasField("sent_at") else None
    return {
        "vendor": one.vendor,
        "event_id": one.event_id,
        "status": one.status,
        "reason": one.reason or None,
        "detail": one.detail or None,
        "attempts": one.attempts,
        "repeated": one.repeated,
        "sent_at": None if sent is None else rfc3339(sent, "microseconds"),
        "answered_at": rfc3339(one.answered_at.ToMicroseconds(), "microseconds"),
        "source_topic": one.source_topic,
        "source_partition": one.source_partition,
        "source_offset": one.source_offset,
    }
