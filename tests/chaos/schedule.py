"""A schedule: what happens to a running installation, and when; drawn from a seed and nothing else.

    schedule = draw(7)
    print(schedule)                     # a line for each fault
    schedule.only([0, 3])               # the same with two of its faults, for shrinking

The load is drawn too: how many devices, whose clocks are off by how much. What the machine makes of
it (which request a kill hits) is not in the seed: a schedule that failed may pass the next time.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, replace

__all__ = ["KINDS", "LINKS", "Fault", "Schedule", "draw"]

# Processes that are killed and stopped; each is started again by its supervisor.
_PROCESSES = (
    "collector", "worker", "postgres-1", "postgres-2", "clickhouse-1", "clickhouse-2",
    "forward-1", "forward-2", "replay",
)  # fmt: skip
# Connections that pass through a proxy, named by who makes them and to whom.
LINKS = (
    "clients-collector", "publisher-kafka", "collector-kafka", "postgres-kafka",
    "clickhouse-kafka", "forward-kafka", "insert-postgres", "insert-clickhouse",
    "forward-vendors",
)  # fmt: skip
_VENDORS = ("amplitude", "webhook", "posthog")
_GROUPS = ("postgres", "clickhouse", "amplitude", "webhook")
# How a vendor misbehaves; beside `down`, shares of its requests (headrace/vendors/faults.py).
_MISDEEDS: tuple[dict[str, object], ...] = (
    {"down": "reset"}, {"down": "503"}, {"slow_s": 1.5}, {"throttle": 0.5}, {"fail": 0.5},
    {"fail_after": 0.5}, {"reset_after": 0.5},
    {"throttle": 0.1, "fail": 0.1, "fail_after": 0.2, "reset_after": 0.2},
)  # fmt: skip


@dataclass(frozen=True)
class Fault:
    """At `at` seconds `kind` befalls `target`, for `seconds` where it is undone by itself."""

    number: int
    at: float
    kind: str
    target: str
    seconds: float = 0.0
    misdeeds: tuple[tuple[str, object], ...] = ()

    def __str__(self) -> str:
        how = " ".join(f"{name}={value}" for name, value in self.misdeeds)
        lasts = f" for {self.seconds:.1f} s" if self.seconds else ""
        return (
            f"{self.number:3} {self.at:5.1f} s  {self.kind:<10} {self.target}{lasts} {how}".rstrip()
        )


@dataclass(frozen=True)
class Schedule:
    seed: int
    # How long the load lasts.
    seconds: float
    workers: int
    twins: bool
    # Seconds by which each device's clock is off, and each direct publisher's.
    devices: tuple[int, ...]
    publishers: tuple[int, ...]
    faults: tuple[Fault, ...]

    def only(self, numbers: Iterable[int]) -> Schedule:
        """With these of its faults and no others."""
        kept = set(numbers)
        return replace(self, faults=tuple(f for f in self.faults if f.number in kept))

    def __str__(self) -> str:
        head = (
            f"seed {self.seed}: {self.seconds:g} s, {len(self.devices)} devices, "
            f"{len(self.publishers)} publishers, {self.workers} workers"
        )
        return "\n".join([head, *map(str, self.faults)])


# Of each kind: how often it is drawn, what it befalls, and for how long at least and at most.
KINDS = {
    "kill": (24, _PROCESSES, (0.0, 0.0)),
    # Above 6 s a consumer's place in its group is given to others: it wakes as a zombie.
    "stop": (10, (*_PROCESSES, "kafka"), (0.5, 8.0)),
    "away": (8, ("kafka", "postgres", "clickhouse"), (0.2, 4.0)),
    "cut": (14, LINKS, (0.0, 0.0)),
    "refuse": (6, LINKS, (0.5, 4.0)),
    "hold": (6, LINKS, (0.5, 6.0)),
    "slow": (6, LINKS, (1.0, 6.0)),
    "partitions": (3, ("topic",), (0.0, 0.0)),
    "storm": (6, _GROUPS, (1.0, 4.0)),
    "disk": (5, ("spool",), (0.5, 4.0)),
    "vendor": (12, _VENDORS, (1.0, 6.0)),
    "replay": (4, ("posthog",), (0.0, 0.0)),
}


def draw(seed: int, *, seconds: float = 12.0, faults: int = 14, twins: bool = True) -> Schedule:
    """The schedule of this seed with so many faults; without `twins` one process of each kind."""
    chance = random.Random(seed)
    names = list(KINDS)
    kinds = chance.choices(names, [KINDS[name][0] for name in names], k=faults)
    times = sorted(round(chance.uniform(1.0, seconds), 1) for _ in kinds)
    drawn = []
    for number, (at, kind) in enumerate(zip(times, kinds, strict=True)):
        _, targets, (least, most) = KINDS[kind]
        target = chance.choice([t for t in targets if twins or not t.endswith("-2")])
        lasts = round(chance.uniform(least, most), 1)
        misdeeds = tuple(chance.choice(_MISDEEDS).items()) if kind == "vendor" else ()
        drawn.append(Fault(number, at, kind, target, lasts, misdeeds))
    hour = 3600
    # Kafka refuses a record whose time is more than an hour ahead.
    publishers = [chance.choice([0, chance.randint(-6 * hour, hour // 2)]) for _ in range(3)]
    return Schedule(
        seed=seed,
        seconds=seconds,
        workers=chance.choice([1, 2]),
        twins=twins,
        devices=tuple(
            chance.choice([0, 0, chance.randint(-12 * hour, 12 * hour)]) for _ in range(24)
        ),
        publishers=tuple(publishers),
        faults=tuple(drawn),
    )
