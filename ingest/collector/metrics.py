"""Every metric of the collector, declared once with its meaning.

Prometheus names; seconds and bytes as base units. Each worker has its own. `door` is the kind of
door (logs, sparrow, segment, socket), `reason` one of the words in an answer's `code`.
"""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

__all__ = [
    "ACCEPTED", "BODY_BYTES", "COMMIT_SECONDS", "FSYNC_SECONDS", "INFLIGHT_BYTES", "KAFKA_SECONDS",
    "REFUSED", "REFUSED_REQUESTS", "SPOOL_BYTES", "SPOOL_LIMIT_BYTES", "SPOOL_OLDEST_SECONDS",
    "SPOOL_RECORDS", "STALLED", "STORED", "WAIT_SECONDS",
]  # fmt: skip

_SECONDS = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10)
_LONG_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3600, 36000)

ACCEPTED = Counter(
    "headrace_collect_accepted", "Records acknowledged: safe, or known from before", ["door"]
)
STORED = Counter("headrace_collect_stored", "Records written to the spool, repeated ids left out")
REFUSED = Counter(
    "headrace_collect_refused", "Records refused with their index", ["door", "reason"]
)
REFUSED_REQUESTS = Counter(
    "headrace_collect_refused_requests", "Requests refused as a whole", ["reason"]
)
for _reason in ("full", "busy", "spool", "relay_stopped"):
    # A counter that begins with what it should tell of has no increase for Prometheus.
    REFUSED_REQUESTS.labels(_reason)
BODY_BYTES = Counter("headrace_collect_body_bytes", "Bodies as they came, packed or not")
INFLIGHT_BYTES = Gauge(
    "headrace_collect_inflight_bytes", "Bodies that are being read or wait for the disk"
)
WAIT_SECONDS = Histogram(
    "headrace_collect_wait_seconds",
    "From records judged good to records on disk, for what was committed together",
    buckets=_SECONDS,
)
COMMIT_SECONDS = Histogram(
    "headrace_collect_commit_seconds",
    "Writing and fsync of one transaction of the spool",
    buckets=_SECONDS,
)
FSYNC_SECONDS = Histogram(
    "headrace_collect_fsync_seconds",
    "fsync of a page beside the spool, every 10 s: SQLite does not tell its own from its commit",
    buckets=_SECONDS,
)
KAFKA_SECONDS = Histogram(
    "headrace_collect_kafka_seconds",
    "From on disk to committed in Kafka, sampled",
    buckets=_LONG_SECONDS,
)
SPOOL_RECORDS = Gauge("headrace_spool_records", "Records that wait for Kafka")
SPOOL_BYTES = Gauge("headrace_spool_bytes", "Their bytes, and those not yet deleted")
SPOOL_LIMIT_BYTES = Gauge("headrace_spool_limit_bytes", "Where the spool says 503")
SPOOL_OLDEST_SECONDS = Gauge(
    "headrace_spool_oldest_seconds", "Age of the oldest record that waits for Kafka, 0 without one"
)
STALLED = Gauge("headrace_spool_stalled", "1 while nothing can be sent to Kafka; /readyz says why")
