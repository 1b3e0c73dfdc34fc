"""Headrace: a durable streaming ingest built on Kafka.

>>> from headrace import Publisher
>>> with Publisher("localhost:9092") as publisher:      # doctest: +SKIP
...     publisher.publish("device_state", {"deviceId": "…", "accountId": "…", "timestamp": "…"})
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ingest.publisher import Publisher
    from ingest.sparrow import Sparrow
    from ingest.streams import Stream

__all__ = ["Publisher", "Sparrow", "Stream"]


def __getattr__(name: str) -> Any:
    # Loaded when asked for: `headrace --help` needs neither Kafka nor protobuf.
    if name == "Publisher":
        from ingest.publisher import Publisher

        return Publisher
    if name == "Sparrow":
        from ingest.sparrow import Sparrow

        return Sparrow
    if name == "Stream":
        from ingest.streams import Stream

        return Stream
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
