"""A made-up fleet of devices, the same one every time for the same arguments.

The rules:

1. Same (devices, every_s, start_us, until_us, seed): same bytes in the same order, on any machine
   and however it is cut into batches.
2. Records of a stream are in order of their timestamps, over the whole fleet.
3. Every device reports once in each interval, at its own phase, in [start, until).
4. A device's status is a Markov chain in continuous time: outages come in runs.

It is fast because a device's report only changes when the device does: all of its bytes but the
seconds are kept ready, and devices are ordered by phase, so that everyone who reports in the same
second shares one head. What comes out is byte for byte what SerializeToString makes.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from random import Random

from headrace.fleet import Device, Draw, Records, population, seeded
from headrace.synthetic import Tests
from ingest.units import SECOND_US
from ingest.varint import varint

__all__ = ["STREAMS", "Fleet"]

STREAMS = ("device_state", "http_test", "traceroute_test")


_NEWEST = "2025.5.893.0"
_UPGRADES = 0.15  # share of the fleet that moves to the newest version within the time simulated

# Mean stay in a status, in seconds, and its share of all time.
_STAY_S = {"connected": 6 * 3600.0, "disconnected": 1800.0, "paused": 5400.0}
_SHARE = {"connected": 89, "disconnected": 8, "paused": 3}
_MOVES = 0.2  # share of reconnects that come up in the device's other data centre


class Fleet:
    """The fleet and its records. Iterating again gives the same again.

    `every_s` is a whole number of seconds, times are microseconds since 1970, `until_us` is
    exclusive. Raises ValueError.
    """

    def __init__(
        self, devices: int, every_s: int, start_us: int, until_us: int, seed: int = 1
    ) -> None:
        if devices < 1 or every_s < 1:
            raise ValueError("a fleet needs one device and one second between reports at least")
        if not SECOND_US <= start_us <= until_us:
            raise ValueError(
                "the time simulated must start after 1970 and not end before it starts"
            )
        self.every_s, self.start_us, self.until_us, self.seed = every_s, start_us, until_us, seed
        self.devices = population(devices, every_s, seeded(seed, "devices"))
        self._phases = [device.phase_us for device in self.devices]
        self._sources: dict[str, Callable[[], Iterator[Records]]] = {
            "device_state": self.device_states,
            "http_test": self.http_tests,
            "traceroute_test": self.traceroute_tests,
        }

    def expected(self, stream: str) -> int:
        """How many records the stream will have; cheap."""
        if stream == "device_state":
            whole, rest = divmod(self.until_us - self.start_us, self.every_s * SECOND_US)
            return whole * len(self.devices) + bisect_left(self._phases, rest)
        return self._tests(stream).expected()

    def device_states(self) -> Iterator[Records]:
        """What the devices say about themselves, a second at a time."""
        random = seeded(self.seed, "states")
        every_us = self.every_s * SECOND_US
        ticks = -(-(self.until_us - self.start_us) // every_us)
        keys = [device.device_id.encode() for device in self.devices]
        fronts, colos, backs = [], [], []
        for device in self.devices:
            nanos = (self.start_us + device.phase_us) % SECOND_US * 1000
            account, device_id = text(2, device.account_id), text(3, device.device_id)
            fronts.append((b"\x10" + varint(nanos) if nanos else b"") + account + device_id)
            colos.append(device.colo)
            backs.append(_back(device, device.version))
        statuses = [_status(random) for _ in self.devices]
        tails = [
            front + text(4, colo) + text(5, status) + back
            for front, colo, status, back in zip(fronts, colos, statuses, backs, strict=True)
        ]
        changes: dict[int, list[int]] = defaultdict(list)
        upgrades: dict[int, list[int]] = defaultdict(list)
        for d, status in enumerate(statuses):
            changes[self._stay(random, status)].append(d)
            if random.random() < _UPGRADES:
                upgrades[int(random.random() * ticks)].append(d)

        groups = self._groups()
        for tick in range(ticks):
            touched = upgrades.pop(tick, [])
            for d in touched:
                backs[d] = _back(self.devices[d], _NEWEST)
            for d in changes.pop(tick, []):
                statuses[d] = _next_status(random, statuses[d])
                if statuses[d] == "connected" and random.random() < _MOVES:
                    device = self.devices[d]
                    colos[d] = device.other_colo if colos[d] == device.colo else device.colo
                changes[tick + self._stay(random, statuses[d])].append(d)
                touched.append(d)
            for d in touched:
                tails[d] = fronts[d] + text(4, colos[d]) + text(5, statuses[d]) + backs[d]
            begin_us = self.start_us + tick * every_us
            end = bisect_left(self._phases, self.until_us - begin_us)
            for second, nanos_length, low, high in groups:
                if low >= end:
                    break
                seconds = second + tick * self.every_s
                body = b"\x08" + varint(seconds)
                head = b"\x0a" + varint(len(body) + nanos_length) + body
                stop = min(high, end)
                yield Records(
                    "device_state",
                    seconds * SECOND_US,
                    keys[low:stop],
                    [head + tail for tail in tails[low:stop]],
                )

    def http_tests(self) -> Iterator[Records]:
        """Results of the HTTP tests that some customers run, a second at a time."""
        return self._tests("http_test").records()

    def traceroute_tests(self) -> Iterator[Records]:
        """Results of the traceroutes that some customers run, a second at a time."""
        return self._tests("traceroute_test").records()

    def batches(self, size: int, streams: Sequence[str] = ("device_state",)) -> Iterator[Records]:
        """The streams side by side in batches of `size`; the last of each stream may be smaller.

        Within a stream the order is by time; between streams it is by time to within a batch.
        """
        held = {name: Records(name, 0, [], []) for name in streams}
        sources = [self._sources[name]() for name in streams]
        for some in heapq.merge(*sources, key=lambda records: records.time_us):
            have = held[some.stream]
            have.keys.extend(some.keys)
            have.values.extend(some.values)
            while len(have.values) >= size:
                yield have._replace(keys=have.keys[:size], values=have.values[:size])
                del have.keys[:size], have.values[:size]
        yield from (records for records in held.values() if records.values)

    def _tests(self, stream: str) -> Tests:
        return Tests(self.devices, self.start_us, self.until_us, self.seed, stream)

    def _stay(self, random: Random, status: str) -> int:
        """Ticks until the status changes; exponential, so the chain is memoryless."""
        stay_s = -_STAY_S[status] * math.log(1.0 - random.random())
        return 1 + int(stay_s / self.every_s)

    def _groups(self) -> list[tuple[int, int, int, int]]:
        """Runs of devices with one head: (second, bytes of the nanos field, low, high)."""
        found, low = [], 0

        def head(phase_us: int) -> tuple[int, int]:
            second, us = divmod(self.start_us + phase_us, SECOND_US)
            return second, 1 + len(varint(us * 1000)) if us else 0

        for (second, nanos_length), run in groupby(self._phases, head):
            high = low + len(list(run))
            found.append((second, nanos_length, low, high))
            low = high
        return found


def text(number: int, value: str) -> bytes:
    """A protobuf string field (number below 16), left out when empty as proto3 does."""
    encoded = value.encode()
    return bytes((number << 3 | 2,)) + varint(len(encoded)) + encoded if encoded else b""


def _back(device: Device, version: str) -> bytes:
    return text(6, device.mode) + text(7, version) + text(8, device.platform)


_status = Draw(_SHARE)


def _next_status(random: Random, status: str) -> str:
    """Both ways out of "connected" are weighted so that the long-run shares are `_SHARE`."""
    if status != "connected":
        return "connected"
    rates = {name: _SHARE[name] / _STAY_S[name] for name in ("disconnected", "paused")}
    lost = rates["disconnected"] / sum(rates.values())
    return "disconnected" if random.random() < lost else "paused"
