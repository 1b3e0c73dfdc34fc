"""Every metric of the consumers, declared once with its meaning.

Prometheus names; seconds and bytes as base units. `destination` is the sink's kind (postgres,
clickhouse, chdb), never its address.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from prometheus_client import Counter, Gauge, Histogram

__all__ = ["Step", "step_timer"]

_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30)

ROWS = Counter("headrace_rows", "Rows landed and committed", ["stream", "destination"])
BYTES = Counter("headrace_row_bytes", "Their size in memory as Arrow", ["stream", "destination"])
BATCHES = Counter("headrace_batches", "Batches landed and committed", ["stream", "destination"])
DEAD_LETTERS = Counter(
    "headrace_dead_letters", "Records sent to a dead-letter topic", ["stream", "reason"]
)
RETRIES = Counter(
    "headrace_retries", "Attempts that found the destination or Kafka away", ["destination"]
)
FENCED = Counter(
    "headrace_fenced", "Batches dropped because another writer had moved on", ["destination"]
)
STEP_SECONDS = Histogram(
    "headrace_step_seconds",
    "Time of one step of landing a batch, in commit order: see docs/architecture.md",
    ["step"],
    buckets=_SECONDS,
)
SKIPPED = Counter(
    "headrace_skipped_offsets",
    "Offsets that retention removed before they landed, skipped by --skip-lost",
    ["topic", "partition"],
)
LAG_MESSAGES = Gauge(
    "headrace_lag_messages",
    "Offsets from what has landed to the end, transaction markers included",
    ["topic", "partition"],
)
LAG_SECONDS = Gauge(
    "headrace_lag_seconds",
    "Age of the newest record that has landed (before the first: read), 0 at the end",
    ["topic", "partition"],
)
AWAY_SECONDS = Gauge(
    "headrace_destination_away_seconds",
    "How long nothing gets through to the destination, 0 when it does",
)
LAST_ERROR = Gauge(
    "headrace_last_error_timestamp_seconds", "When the last error of this kind was", ["kind"]
)
AUDIT_DIFFERING = Gauge(
    "headrace_audit_differing_hours",
    "Hours that did not add up at the last audit of `headrace audit --watch`",
    ["stream", "destination"],
)
AUDIT_AT = Gauge("headrace_audit_timestamp_seconds", "When the last audit ended")
TRACE = Counter(
    "headrace_trace",
    "Events that may leave; events and properties that may not or were changed, with the reason",
    ["vendor", "event", "property", "reason"],
)
VENDOR_EVENTS = Counter(
    "headrace_vendor_events",
    "Events that are final for a vendor: receipts in Kafka, and offsets committed after them",
    ["vendor", "status", "reason"],
)
VENDOR_ANSWERS = Counter(
    "headrace_vendor_answers", "Requests by the status of the answer, or none", ["vendor", "status"]
)
VENDOR_SECONDS = Histogram(
    "headrace_vendor_request_seconds",
    "From a request to the end of its answer",
    ["vendor"],
    buckets=_SECONDS,
)
VENDOR_BREAKER = Gauge(
    "headrace_vendor_breaker", "0 closed, 1 half open: one request asks, 2 open", ["vendor"]
)
VENDOR_CONCURRENCY = Gauge(
    "headrace_vendor_concurrency", "Requests that may be under way at a time", ["vendor"]
)
VENDOR_VALIDATED = Counter(
    "headrace_vendor_validated",
    "Requests cloned to a vendor's validation endpoint, by what it found",
    ["vendor", "outcome"],
)
VENDOR_LAG_MESSAGES = Gauge(
    "headrace_vendor_lag_messages", "Offsets from what is final for a vendor to the end", ["vendor"]
)
VENDOR_LAG_SECONDS = Gauge(
    "headrace_vendor_lag_seconds", "Age of the newest event that is final, 0 at the end", ["vendor"]
)
VENDOR_GAP_MESSAGES = Gauge(
    "headrace_vendor_gap_messages",
    "Offsets that outages left to replays and that are not final yet, as far as is known here",
    ["vendor"],
)
VENDOR_GAP_SECONDS = Gauge(
    "headrace_vendor_gap_seconds",
    "Since the oldest outage began whose replay is not over; 0 without one",
    ["vendor"],
)

# Wraps one numbered step of a sink: `with step("copy"): …`. Tests pass one that crashes.
Step = Callable[[str], AbstractContextManager[object]]


def step_timer(name: str) -> AbstractContextManager[object]:
    """Time a step into STEP_SECONDS."""
    return STEP_SECONDS.labels(name).time()
