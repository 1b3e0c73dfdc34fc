"""Live forwarding: one vendor's run loop, from its consumer group to its receipts.

A replay is the same sink and engine with other `Terms`, and a range of offsets as its source.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from consumers.client import Settings
from consumers.deadletters import Letters
from consumers.forward.budget import Budget
from consumers.forward.delivery import Terms
from consumers.forward.forgotten import sent_before
from consumers.forward.gap import Gap, Gaps
from consumers.forward.host import VendorLag
from consumers.forward.receipts import Receipts
from consumers.forward.settings import VendorSettings
from consumers.forward.tell import Teller
from consumers.group import GroupSource
from consumers.limits import Limits
from consumers.run import Runner
from consumers.sinks import Log
from consumers.source import Source
from consumers.trace.allowlist import TraceSettings
from consumers.trace.scrub import Scrubber
from consumers.vendors import Vendor
from ingest.streams import Stream

if TYPE_CHECKING:
    from consumers.forward.sink import VendorSink

__all__ = ["allowed", "forwarder_group", "limits_of", "open_sink", "runner"]

# A batch is done when the last of its events is: small enough for seconds at a vendor's own rate.
_MAX_ROWS, _SECONDS = 10_000, 2.0


def forwarder_group(name: str) -> str:
    """The consumer group of a vendor's forwarders."""
    return f"headrace-forward-{name}"


def allowed(trace: TraceSettings, name: str) -> bool:
    """Whether [trace] lets any event leave for this vendor."""
    return any(event.goes_to(name) for event in trace.events.values())


def limits_of(vendor: Vendor) -> Limits:
    """What bounds a batch for this vendor."""
    rows = _MAX_ROWS
    for rate in vendor.limits(backfill=False).rates:
        if rate.scope == "project":
            rows = min(rows, max(100, int(rate.events / rate.seconds * _SECONDS)))
    # Each partition is in the metadata of an offset, see consumers/intent.py.
    return Limits(max_rows=rows, max_age_s=0.5, max_partitions=60, max_backoff_s=1.0)


def open_sink(
    kafka: Settings,
    streams: Mapping[str, Stream],
    trace: TraceSettings,
    settings: VendorSettings,
    vendor: Vendor,
    log: Log,
    terms: Terms,
    budget: Budget | None = None,
    gaps: Gaps | None = None,
) -> VendorSink:
    """A sink of its own, for one lane."""
    # Not at the top: httpx and msgspec come with vendors, and lag and doctor ask for their groups.
    from consumers.forward.engine import Engine
    from consumers.forward.sink import VendorSink
    from consumers.trace.gate import Gate

    scrubber = Scrubber(trace.scrub, trace.patterns, trace.url_parameters)
    name = settings.name
    engine = Engine(
        name, vendor, settings.engine, Teller(name, scrubber),
        backfill=terms.backfill, unjudged=terms.unjudged, budget=budget,
    )  # fmt: skip
    receipts = Receipts(kafka, streams["receipts"])
    return VendorSink(name, Gate(trace, name), engine, receipts, log, terms=terms, gaps=gaps)


def runner(
    kafka: Settings,
    streams: Mapping[str, Stream],
    trace: TraceSettings,
    settings: VendorSettings,
    letters: Letters,
    *,
    skip_lost: bool = False,
    budget: Budget | None = None,
    keep: Callable[[Gap], None] | None = None,
) -> Runner:
    """Forwards `raw_events` to one vendor. Raises VendorError, TraceError.

    `keep` notes what is left out after an outage, or because Kafka has forgotten the position;
    without it nothing is.
    """
    from consumers.trace.gate import Gate

    vendor, name, stream = settings.vendor(), settings.name, streams["raw_events"]
    Gate(trace, name)  # what is wrong with it is said before a group is joined

    def sink(source: Source) -> VendorSink:
        gaps = None
        if keep is not None:
            sent = partial(sent_before, kafka, streams["receipts"].topic, name)
            gaps = Gaps(source, settings.outage_s, keep, sent=sent)
        return open_sink(kafka, streams, trace, settings, vendor, source, Terms(), budget, gaps)

    return Runner(
        lambda listener: GroupSource(kafka, forwarder_group(name), [stream.topic], listener),
        letters,
        [stream],
        sink,
        destination=name,
        limits=limits_of(vendor),
        skip_lost=skip_lost,
        lag=lambda source: VendorLag(name, source),
    )
