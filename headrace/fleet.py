"""Who is in a made-up fleet: customers, their devices, and what these run.

Only `random()` and `getrandbits()` are drawn from, everywhere in the simulator: their values are
the same in every version of Python.
"""

from __future__ import annotations

import uuid
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from random import Random
from typing import Generic, NamedTuple, TypeVar

__all__ = ["Device", "Draw", "Records", "population", "seeded"]

T = TypeVar("T")

# Data centres with their share of devices, by region: a device that moves stays in its region.
_COLOS = (
    "IAD 60 EWR 55 ORD 50 DFW 45 SJC 45 LAX 45 ATL 30 SEA 28 MIA 22 DEN 18 BOS 15 YYZ 20 PHX 12 "
    "MSP 8 SLC 6 YVR 7 YUL 6 MEX 10 QRO 3",
    "GRU 25 GIG 8 EZE 9 SCL 7 BOG 7 LIM 5",
    "LHR 55 FRA 50 AMS 40 CDG 38 MAD 20 MXP 18 ARN 14 WAW 14 VIE 10 ZRH 10 DUB 10 MAN 9 BRU 8 "
    "CPH 8 LIS 7 PRG 6 OTP 5 ATH 5 HEL 5 IST 10 TLV 7 DXB 9 JNB 8 LOS 4 NBO 3",
    "NRT 30 SIN 28 SYD 20 BOM 22 DEL 16 HKG 15 ICN 14 KIX 10 MEL 9 BKK 7 CGK 7 KUL 6 MNL 5 TPE 8 "
    "AKL 4",
)
_PLATFORMS = {"windows": 52, "mac": 27, "ios": 8, "android": 7, "linux": 5, "chromeos": 1}
_MODES = {"warp": 58, "warp+doh": 22, "doh": 9, "tunnel_only": 6, "proxy": 3, "posture_only": 2}
_VERSIONS = {
    "2025.4.943.0": 12, "2025.4.929.0": 26, "2025.2.664.0": 21, "2025.1.861.0": 14,
    "2024.12.554.0": 11, "2024.9.346.0": 7, "2024.6.497.0": 5, "2024.3.409.0": 3, "2023.9.301.0": 1,
}  # fmt: skip


class Records(NamedTuple):
    """Records of one stream, in order of time; `time_us` is the first one's second."""

    stream: str
    time_us: int
    keys: list[bytes]
    values: list[bytes]


@dataclass(slots=True)
class Device:
    """Who a device is. Ids are shaped as in the original: 32 hex digits, and a UUID."""

    account: int
    account_id: str
    device_id: str
    colo: str
    other_colo: str
    mode: str
    version: str
    platform: str
    phase_us: int


class Draw(Generic[T]):
    """Weighted choice by one `random()`."""

    def __init__(self, weights: Mapping[T, float]) -> None:
        self._items: Sequence[T] = list(weights)
        self._sums = list(accumulate(weights.values()))

    def __call__(self, random: Random) -> T:
        return self._items[bisect_right(self._sums, random.random() * self._sums[-1])]


def seeded(seed: int, purpose: str) -> Random:
    """Randomness of its own for each purpose: one stream never disturbs another."""
    return Random(f"headrace/{seed}/{purpose}")  # noqa: S311  (not for secrets)


def population(count: int, every_s: int, random: Random) -> list[Device]:
    """The population, ordered by phase. Account sizes follow Zipf's law.

    With one account for 50 devices the largest of a fleet of 300,000 has some 30,000 devices.
    """
    accounts = [f"{random.getrandbits(128):032x}" for _ in range(max(1, count // 50))]
    account = Draw({rank: 1 / (rank + 1) for rank in range(len(accounts))})
    regions = []
    for words in map(str.split, _COLOS):
        regions.append(dict(zip(words[::2], map(float, words[1::2]), strict=True)))
    region = Draw({number: sum(colos.values()) for number, colos in enumerate(regions)})
    colo = [Draw(colos) for colos in regions]
    mode, version, platform = Draw(_MODES), Draw(_VERSIONS), Draw(_PLATFORMS)
    found = []
    for _ in range(count):
        rank, where = account(random), colo[region(random)]
        found.append(
            Device(
                account=rank,
                account_id=accounts[rank],
                device_id=str(uuid.UUID(int=random.getrandbits(128), version=4)),
                colo=where(random),
                other_colo=where(random),
                mode=mode(random),
                version=version(random),
                platform=platform(random),
                # Whole milliseconds, as devices report them.
                phase_us=int(random.random() * every_s * 1000) * 1000,
            )
        )
    found.sort(key=lambda device: device.phase_us)
    return found
