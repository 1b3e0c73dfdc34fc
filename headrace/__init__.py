"""Headrace: a durable streaming ingest built on Kafka.

>>> from headrace import Publisher
>>> with Publisher("localhost:9092") as publisher:      # doctest: +SKIP
...     publisher.publish("device_state", {"deviceId": "…", "accountId": "…", "timestamp": "…"})
"""

from ingest.publisher import Publisher
from ingest.streams import Stream

__all__ = ["Publisher", "Stream"]
