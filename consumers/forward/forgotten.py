"""Positions that Kafka has forgotten: whether the vendor has had events of such a partition.

Kafka keeps a group's position for 7 days (offsets.retention.minutes) once nobody reads there. Without it a vendor
that was left out for a week looks like a new one, and what is still in the log would go out as though for the
first time. Its receipts know better: then all of it is left to a replay of what has no accepted receipt (gap.py).
"""  # noqa: E501

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress

from google.protobuf.message import DecodeError

from consumers.batch import Partition, Span
from consumers.bounds import bounds, firsts, read
from consumers.client import Settings
from consumers.errors import Systemic
from consumers.forward.delivery import Status
from ingest.gen.headrace.v1.receipt_pb2 import Receipt
from ingest.units import HOUR_MS

__all__ = ["sent_before"]

log = logging.getLogger(__name__)

# How far clocks may differ: Kafka takes no record from more than an hour ahead (since 3.6).
_AHEAD_MS = 2 * HOUR_MS


def sent_before(
    kafka: Settings, topic: str, vendor: str, spans: Mapping[Partition, Span]
) -> set[Partition]:
    """Of which of these partitions the vendor has accepted an event, by the receipts in `topic`.

    Receipts are read from when the first of these events was published. For a vendor that is new
    that is all there are of the others, which takes a few seconds for a million; for a partition
    that was just added it is next to nothing. Raises Unavailable, Systemic.
    """
    events = next(iter(spans)).topic
    published_ms = firsts(kafka, events, {p.number: span for p, span in spans.items()})
    if not published_ms:
        return set()
    log.info("Kafka has no position of %s: its receipts are read to see whether it is new", vendor)
    found: set[Partition] = set()
    name = vendor.encode()
    since_ms = min(published_ms.values()) - _AHEAD_MS
    try:
        for _, run in read(kafka, topic, bounds(kafka, topic, since_ms).spans):
            for message in run:
                value = message.value() or b""
                if name not in value:  # which takes a tenth of decoding it
                    continue
                with suppress(DecodeError):
                    found |= _accepted(Receipt.FromString(value), vendor, spans)
            if len(found) == len(spans):
                break
    except Systemic as error:
        raise Systemic(
            f"without receipts nobody knows what {vendor} has had already: {error}"
        ) from error
    return found


def _accepted(one: Receipt, vendor: str, spans: Mapping[Partition, Span]) -> set[Partition]:
    """The partition of its event, if it is one of these and the event is still there."""
    partition = Partition(one.source_topic, one.source_partition)
    span = spans.get(partition)
    if one.vendor != vendor or one.status != Status.ACCEPTED or span is None:
        return set()
    return {partition} if span.start <= one.source_offset < span.end else set()
