"""What leaves: an event that the allowlist let through, as one vendor is to see it.

It holds nothing but what `[trace]` lists for this vendor, scrubbed, under the names that the vendor
knows it by. A vendor's functions take Events and may send every field of theirs but `event_id`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

__all__ = ["Event", "Value", "make"]

# A finite float; an int of any size; text without surrogates. None is a null that was sent.
Value = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Event:
    """One event for one vendor."""

    # Ours: the id in `raw_events` and in receipts, 1 to 200 characters. The sender chose it and may
    # have put personal data into it, so vendors are given `key`.
    event_id: str
    # What a vendor is given as the event's identity (insert_id, idempotency_key, …): `event_id`, or
    # a UUID made from it where personal data was found in it. The same whenever it is sent again.
    key: str
    # As the vendor is to call it: after its renames, not empty.
    name: str
    # When it happened by its sender's clock (any time, also in the future), else `received_us`.
    # Microseconds since 1970, like `received_us`: when the collector took it.
    time_us: int
    received_us: int
    user_id: str | None
    device_id: str | None
    # By the names that the vendor is to see. Flat: nested values never leave.
    properties: Mapping[str, Value]
    # Where it stands in Kafka; the default for an event that is from elsewhere.
    topic: str = ""
    partition: int = -1
    offset: int = -1
    # Properties whose text the scrubber has changed: others may leave as the same text.
    scrubbed: tuple[str, ...] = ()


class _Open:
    """An Event that can still be written: the same slots, so that it can become one.

    The dataclass, being frozen, looks up how to set each of its twelve fields: 1.5 µs. This takes
    0.2 (the setters of its slots, kept in variables and called one by one, took 0.9).
    """

    __slots__ = Event.__slots__

    def __init__(
        self,
        event_id: str,
        key: str,
        name: str,
        time_us: int,
        received_us: int,
        user_id: str | None,
        device_id: str | None,
        properties: Mapping[str, Value],
        topic: str,
        partition: int,
        offset: int,
        scrubbed: tuple[str, ...],
    ) -> None:
        self.event_id = event_id
        self.key = key
        self.name = name
        self.time_us = time_us
        self.received_us = received_us
        self.user_id = user_id
        self.device_id = device_id
        self.properties = properties
        self.topic = topic
        self.partition = partition
        self.offset = offset
        self.scrubbed = scrubbed
        # mypy knows of no such change; Python checks that the slots are the same.
        self.__class__ = Event  # type: ignore[assignment]


_Make = Callable[
    [
        str, str, str, int, int, str | None, str | None, Mapping[str, Value], str, int, int,
        tuple[str, ...],
    ],
    Event,
]  # fmt: skip
# An Event of all its fields, in their order.
make = cast("_Make", _Open)
