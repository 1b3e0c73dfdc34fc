"""Headrace: a durable streaming ingest built on Kafka.

>>> from headrace import Publisher
>>> with Publisher("localhost:9092") as publisher:      # doctest: +SKIP
...     publisher.publish("device_state", {"deviceId": "…", "accountId": "…", "timestamp": "…"})
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ingest.admission import Refused
    from ingest.delivery import Coordinates, Delivery, PublishError
    from ingest.publisher import Publisher
    from ingest.scalars import RecordError
    from ingest.settings import SettingError
    from ingest.sparrow import Sparrow, Stats
    from ingest.spool import SpoolError, SpoolFull
    from ingest.streams import Stream

__all__ = [
    "Coordinates", "Delivery", "PublishError", "Publisher", "RecordError", "Refused",
    "SettingError", "Sparrow", "SpoolError", "SpoolFull", "Stats", "Stream",
]  # fmt: skip

# Who has it. Loaded when asked for: `headrace --help` needs neither Kafka nor protobuf.
_HOMES = {
    "Coordinates": "ingest.delivery",
    "Delivery": "ingest.delivery",
    "PublishError": "ingest.delivery",
    "Publisher": "ingest.publisher",
    "RecordError": "ingest.scalars",
    "Refused": "ingest.admission",
    "SettingError": "ingest.settings",
    "Sparrow": "ingest.sparrow",
    "SpoolError": "ingest.spool",
    "SpoolFull": "ingest.spool",
    "Stats": "ingest.sparrow",
    "Stream": "ingest.streams",
}

# A type checker would believe any name.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(_HOMES[name]), name)
