"""The first half: published at a pace, landed at the same time, and two inserters killed in it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from headrace.demo.chdb_look import look
from headrace.demo.crew import Crew, Inserter
from headrace.demo.model import CLICKHOUSE, POSTGRES, DemoError, Kill
from headrace.demo.place import Place
from headrace.demo.story import Meter, Story
from headrace.demo.traffic import Background, Traffic
from headrace.demo.watch import Watch

__all__ = ["Stage", "live", "wait"]

_TABLE = "device_state"
# Shares of the first half that have landed when the kills come; the second waits for the first.
_KILL_POSTGRES_AT, _KILL_CLICKHOUSE_AT = 0.25, 0.45
_POLL_S = 0.1
# A killed inserter's partitions come back within some 10 s; a minute without progress is a failure.
_PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True)
class Stage:
    """What the acts play with."""

    story: Story
    place: Place
    crew: Crew
    traffic: Traffic
    watch: Watch


def live(stage: Stage) -> list[Kill]:
    """Returns when the first half has landed everywhere. Raises DemoError."""
    story, crew, traffic = stage.story, stage.crew, stage.traffic
    streams = tuple(traffic.expected)
    ones = [crew.start(f"PostgreSQL {n}", POSTGRES, streams) for n in (1, 2)]
    other = crew.start("ClickHouse", CLICKHOUSE, streams)
    story.say(
        f"Two inserters for PostgreSQL (pid {ones[0].pid}, {ones[1].pid}) and one for ClickHouse "
        f"(pid {other.pid}) start: `headrace insert`, each a process of its own."
    )
    give_up = time.monotonic() + _PATIENCE_S
    while not stage.watch.ready({POSTGRES: 2, CLICKHOUSE: 1}):
        crew.check()
        if time.monotonic() > give_up:
            raise DemoError(f"the inserters do not share the partitions:\n{other.tail()}")
        time.sleep(_POLL_S)
    story.say("They have shared out the partitions. Publishing begins, and goes on all the while.")
    publishing = Background(traffic.live)
    half = traffic.total // 2
    kills = []
    with story.meter(traffic.total) as meter:
        wait(stage, meter, publishing, lambda at: at[POSTGRES] > half * _KILL_POSTGRES_AT)
        kills.append(_kill(stage, ones[0], lambda: stage.watch.count(_TABLE)))
        crew.again(ones[0])
        story.say("It is started again at once, and takes its share back.")

        wait(stage, meter, publishing, lambda at: at[CLICKHOUSE] > half * _KILL_CLICKHOUSE_AT)
        # chDB's directory is free now, so its table can be asked.
        kills.append(_kill(stage, other, lambda: _rows(stage.place)))
        crew.again(other)
        story.say(
            "It is started again. Its partitions come back to it once Kafka has missed the dead "
            "one's heartbeat for 6 s; meanwhile its backlog grows."
        )
        wait(stage, meter, publishing, lambda _at: publishing.done)
        sent = sum(tally.count for tally in traffic.tallies.values())
        story.say(f"Published so far, and acknowledged by Kafka: {sent:,} records.")
        wait(stage, meter, publishing, lambda at: min(at.values()) >= sent)
    story.say("Both databases have caught up.")
    return kills


def wait(
    stage: Stage, meter: Meter, publishing: Background, enough: Callable[[dict[str, int]], bool]
) -> None:
    """Show how far things are until it is enough. Raises DemoError, also when nothing moves."""
    before: tuple[int, ...] = ()
    give_up = time.monotonic() + _PATIENCE_S
    while True:
        stage.crew.check()
        publishing.check()
        landed = stage.watch.landed()
        published = sum(stage.traffic.acknowledged.values())
        meter.update({"published": published, **landed})
        if enough(landed):
            return
        now = (published, *landed.values())
        if now != before:
            before, give_up = now, time.monotonic() + _PATIENCE_S
        elif time.monotonic() > give_up:
            raise DemoError(
                f"nothing has moved for {_PATIENCE_S:.0f} s: {published:,} records are published, "
                f"{landed[POSTGRES]:,} in PostgreSQL, {landed[CLICKHOUSE]:,} in ClickHouse. With "
                "--keep the inserters' logs stay."
            )
        time.sleep(_POLL_S)


def _kill(stage: Stage, inserter: Inserter, count: Callable[[], int]) -> Kill:
    published = stage.traffic.acknowledged[_TABLE]
    at_s = stage.story.elapsed_s
    stage.crew.kill(inserter)
    stage.story.say(f"SIGKILL to the inserter {inserter.name} (pid {inserter.pid}).", "bold red")
    kill = Kill(
        inserter.name, inserter.pid, at_s, count(), published, stage.traffic.expected[_TABLE]
    )
    stage.story.say(
        f"In the middle: {kill.landed:,} device logs are in {inserter.to}'s table, of "
        f"{published:,} published and {kill.total:,} in all."
    )
    return kill


def _rows(place: Place) -> int:
    [[count]] = look(place.endpoints.chdb, [f"SELECT count() FROM {_TABLE}"])[0]  # noqa: S608 - ours
    return int(count)
