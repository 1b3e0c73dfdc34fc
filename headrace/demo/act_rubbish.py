"""A stream of which one record in a hundred is rubbish: the good ones land, the others are kept."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from headrace.demo.crew import Crew
from headrace.demo.model import CLICKHOUSE, EVERY_S, NOISY, POSTGRES, Settings
from headrace.demo.place import Place
from headrace.demo.story import Story
from headrace.demo.traffic import Tally
from headrace.fleet import seeded
from headrace.simulate import Fleet
from ingest.gen.headrace.v1.device_state_pb2 import DeviceState
from ingest.publisher import Publisher

__all__ = ["KINDS", "Noisy", "rubbish", "spoil"]

# One in so many records.
_ONE_IN = 100
# Of the main run's size.
_SHARE = 9
_BATCH = 5_000


@dataclass(frozen=True, slots=True)
class Noisy:
    """What was published: the acknowledged count, its tally, and the values that are rubbish."""

    acknowledged: int
    tally: Tally
    rubbish: frozenset[bytes]


def _noise(_good: bytes, random: Random) -> bytes:
    # No field has wire type 7, so that this is never a message by chance.
    noise = random.getrandbits(8 * 60).to_bytes(60, "little")
    return bytes((noise[0] | 7,)) + noise[1:]


def _cut(good: bytes, _random: Random) -> bytes:
    return good[:-1]


def _not_utf8(good: bytes, _random: Random) -> bytes:
    return good[:-1] + b"\xff"


def _json(good: bytes, _random: Random) -> bytes:
    message = DeviceState.FromString(good)
    return f'{{"deviceId":"{message.device_id}","at":{message.timestamp.seconds}}}'.encode()


def _no_device(good: bytes, _random: Random) -> bytes:
    message = DeviceState.FromString(good)
    message.ClearField("device_id")
    return message.SerializeToString(deterministic=True)


KINDS = {
    "noise": _noise,
    "cut short": _cut,
    "text that is not UTF-8": _not_utf8,
    "JSON instead of protobuf": _json,
    "a report without its device": _no_device,
}


def spoil(values: list[bytes], random: Random) -> tuple[list[bytes], list[bytes]]:
    """The values with every hundredth made rubbish, of all kinds in turn; and that rubbish."""
    mixed, spoilt = list(values), []
    kinds = list(KINDS.values())
    for turn, i in enumerate(range(_ONE_IN // 2, len(values), _ONE_IN)):
        mixed[i] = kinds[turn % len(kinds)](values[i], random)
        spoilt.append(mixed[i])
    return mixed, spoilt


def rubbish(story: Story, place: Place, crew: Crew, settings: Settings) -> Noisy:
    """Publish it, land it in both databases. Raises DemoError, PublishError."""
    span_us = settings.hours * 3600 * 1_000_000
    start_us = 1_750_032_000_000_000  # 2025-06-16, as in the original's example
    fleet = Fleet(max(settings.devices // _SHARE, 1), EVERY_S, start_us, start_us + span_us, seed=3)
    random, tally = seeded(1, "rubbish"), Tally()
    found: set[bytes] = set()
    with Publisher(place.bootstrap, streams=place.config.streams) as publisher:
        for records in fleet.batches(_BATCH):
            mixed, spoilt = spoil(records.values, random)
            # Ready bytes are not looked at: this is what a broken program would send.
            publisher.publish_many(NOISY, mixed, records.keys)
            tally.add(mixed)
            found.update(spoilt)
        publisher.flush(60)
        acknowledged = publisher.acknowledged
    story.say(
        f"Published to the topic {NOISY}: {acknowledged:,} records, of which {len(found):,} are "
        f"rubbish ({', '.join(KINDS)})."
    )
    drained = [crew.start(to, to, [NOISY], "--drain") for to in (POSTGRES, CLICKHOUSE)]
    for inserter, line in zip(drained, crew.drain(drained), strict=True):
        story.say(f"`headrace insert --drain` to {inserter.to} says: {line}.")
    return Noisy(acknowledged, tally, frozenset(found))
