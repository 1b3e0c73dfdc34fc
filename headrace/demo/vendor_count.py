"""What each vendor holds, against what was sent: a line of the closing table for each.

The witness is the stand-in itself: the key and the time of every event that it stored. Receipts
have to say the same, and what may not leave has to have one that says so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["Delivered", "ForwarderKill", "Outage", "Sent", "Stored", "VendorLine", "settle"]


class Sent(NamedTuple):
    """An event that the collector has acknowledged; microseconds since 1970."""

    event_id: str
    name: str
    at_us: int


class Stored(NamedTuple):
    """An event in a vendor; microseconds since 1970."""

    event_id: str
    name: str
    came_us: int


@dataclass(frozen=True, slots=True)
class Outage:
    """When a vendor was down, in microseconds since 1970, and how many requests it cut off.

    What is sent to the others before `half_us` must come to them while it is down. `replay` is what
    it has missed.
    """

    vendor: str
    down_us: int
    half_us: int
    up_us: int
    cut: int
    replay: str

    @property
    def seconds(self) -> float:
        """How long it took."""
        return (self.up_us - self.down_us) / 1e6


@dataclass(frozen=True, slots=True)
class ForwarderKill:
    """SIGKILL to the forwarder. `stored` was counted in the vendors right after it."""

    pid: int
    at_s: float
    # Requests that had left and were not answered.
    under_way: int
    stored: int
    total: int

    @property
    def in_the_middle(self) -> bool:
        """Some had come, not all, and more were on their way."""
        return 0 < self.stored < self.total and self.under_way > 0


@dataclass(frozen=True, slots=True)
class VendorLine:
    """One vendor in the closing table."""

    vendor: str
    # That may leave for it.
    sent: int
    accepted: int
    dropped: int
    missing: int
    duplicated: int
    # Copies that the vendor knew by their key, and did not store.
    copies: int = 0
    # Only of the vendor that was down: from its recovery until all that it missed had come, and
    # until the first event had come that was sent after it, in seconds.
    gap_s: float | None = None
    fresh_s: float | None = None
    # Only of the others: how long the slowest event of those sent in the outage took, in seconds.
    slowest_s: float | None = None
    faults: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Delivered:
    """All that the vendors' act has found."""

    lines: tuple[VendorLine, ...]
    kill: ForwarderKill
    outage: Outage
    # Events sent in all.
    sent: int


def settle(
    vendor: str,
    names: Collection[str],
    sent: Sequence[Sent],
    stored: Sequence[Stored],
    receipts: Mapping[str, str],
    outage: Outage,
    copies: int = 0,
) -> VendorLine:
    """One line. `names` are the events that may leave, `receipts` the statuses by event."""
    allowed = {event.event_id: event for event in sent if event.name in names}
    came = Counter(event.event_id for event in stored)
    first: dict[str, int] = {}
    for event in stored:
        first[event.event_id] = min(event.came_us, first.get(event.event_id, event.came_us))
    missing = len(allowed.keys() - came.keys())
    duplicated = came.total() - len(came)
    strange = sum(
        event.event_id not in allowed or allowed[event.event_id].name != event.name
        for event in stored
    )
    dropped = sum(status == "dropped" for status in receipts.values())
    wanted = {e.event_id: "accepted" if e.name in names else "dropped" for e in sent}
    unlike = sum(receipts.get(event_id) != status for event_id, status in wanted.items())
    faults = [
        f"{vendor}: {count:,} {what}"
        for count, what in (
            (missing, "events are missing"),
            (duplicated, "events are there twice"),
            (strange, "events are there that may not leave, or under another name"),
            (unlike, "events have no receipt that says what became of them"),
            (len(receipts.keys() - wanted.keys()), "receipts are of events that nobody sent"),
        )
        if count
    ]
    gap_s = fresh_s = slowest_s = None
    times = [(e.at_us, first[e.event_id]) for e in allowed.values() if e.event_id in first]
    if vendor == outage.vendor:
        missed = [at for start, at in times if outage.down_us <= start < outage.up_us]
        # In the gap is all that had been sent by then, also what was sent just before.
        late = [at for start, at in times if start < outage.up_us <= at]
        fresh = [at for start, at in times if start >= outage.up_us]
        gap_s = (max(late) - outage.up_us) / 1e6 if late else None
        fresh_s = (min(fresh) - outage.up_us) / 1e6 if fresh else None
        if not missed or not fresh or not outage.cut:
            faults.append(f"{vendor}: nothing was sent to it while it was down, or afterwards")
        if any(outage.down_us <= at < outage.up_us for at in first.values()):
            faults.append(f"{vendor}: events came while it was down")
    else:
        meanwhile = [(s, at) for s, at in times if outage.down_us <= s < outage.up_us]
        early = [at for start, at in meanwhile if start < outage.half_us]
        slowest_s = max(((at - start) / 1e6 for start, at in meanwhile), default=None)
        waited = sum(at >= outage.up_us for at in early)
        if not early:
            faults.append(f"{vendor}: nothing was sent to it while {outage.vendor} was down")
        elif waited:
            faults.append(f"{vendor}: {waited:,} events waited until {outage.vendor} was back")
    return VendorLine(
        vendor, len(allowed), came.total(), dropped, missing, duplicated, copies,
        gap_s, fresh_s, slowest_s, tuple(faults),
    )  # fmt: skip
