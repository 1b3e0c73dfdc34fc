"""What a vendor's account says of events without a receipt, and of those that have expired."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace

import pytest
from confluent_kafka import Message
from ledger_truth import hash_of

from consumers.batch import Partition, Span
from consumers.bounds import Bounds
from consumers.client import Settings
from consumers.forward.gap import Gap
from consumers.forward.live import forwarder_group
from consumers.intent import Intent
from consumers.ledger import coming, scan, vendor
from consumers.ledger.accepted import Read
from consumers.ledger.account import PlaceUnknown
from consumers.ledger.audit import equation
from consumers.ledger.tally import Bucket, Sum
from consumers.ledger.vendor import Receipted
from consumers.replay.job import Job, Origin, State
from consumers.replay.table import number_at
from consumers.sinks import Known
from ingest.gen.headrace.v1.raw_event_pb2 import RawEvent
from ingest.gen.headrace.v1.receipt_pb2 import Receipt
from ingest.streams import BUILT_IN, Stream
from ingest.units import HOUR_US

RAW = BUILT_IN["raw_events"]
P, OTHER = Partition(RAW.topic, 0), Partition(RAW.topic, 1)
RECEIPTS = Partition(BUILT_IN["receipts"].topic, 0)
AT_US = 486_120 * HOUR_US
ID = "0123"


@dataclass
class World:
    """Kafka as an audit sees it; behind each of its answers, it `goes_on`."""

    records: dict[Partition, list[Message]] = field(default_factory=dict)
    low: dict[Partition, int] = field(default_factory=dict)
    # What forwarders have committed, and with which metadata.
    at: dict[Partition, tuple[int, str]] = field(default_factory=dict)
    # Of each other group.
    positions: dict[str, dict[Partition, int]] = field(default_factory=dict)
    jobs: dict[str, Job] = field(default_factory=dict)
    goes_on: Callable[[], None] = lambda: None

    def event(self, minute: int = 0, name: str = "checkout", partition: Partition = P) -> int:
        """Publish one; answers its offset."""
        offset = len(self.records[partition])
        event = RawEvent(
            event_id=f"e{partition.number}-{offset}", content_type="application/json",
            data=f'{{"event": "{name}"}}',
        )  # fmt: skip
        event.received_at.FromMicroseconds(AT_US + minute * 60_000_000)
        self._append(partition, event.SerializeToString(), minute)
        return offset

    def receipt(
        self, offset: int, partition: Partition = P, status: str = "accepted",
        row: int | None = None, minute: int = 0,
    ) -> None:  # fmt: skip
        """The vendor has accepted an event; or it came as this row of the table."""
        one = Receipt(
            vendor="heap", status=status, event_id=f"e{partition.number}-{offset}",
            source_topic=partition.topic,
            source_partition=partition.number if row is None else 0,
            source_offset=offset if row is None else row,
        )  # fmt: skip
        one.answered_at.FromMicroseconds(AT_US)
        self._append(RECEIPTS, one.SerializeToString(), minute)

    def _append(self, partition: Partition, value: bytes, minute: int = 0) -> None:
        offset = len(self.records[partition])
        at = (1, AT_US // 1000 + minute * 60_000)
        self.records[partition].append(Message(
            topic=partition.topic, partition=partition.number, offset=offset, value=value,
            timestamp=at,
        ))  # fmt: skip

    # -- what is asked

    def bounds(self, _kafka: Settings, topic: str) -> Bounds:
        found = {
            p.number: Span(self.low.get(p, 0), len(messages))
            for p, messages in self.records.items()
            if p.topic == topic
        }
        self.goes_on()
        return Bounds(found, tuple(n for n, span in found.items() if span.start > 0))

    def firsts(self, _kafka: Settings, topic: str, spans: Mapping[int, Span]) -> dict[int, int]:
        return {
            n: int(self.records[Partition(topic, n)][start].timestamp()[1])
            for n, (start, end) in spans.items()
            if start < end
        }

    def pieces(
        self, _kafka: Settings, topic: str, spans: Mapping[int, Span]
    ) -> Iterator[tuple[Partition, list[Message], Span]]:
        for number, span in spans.items():
            partition = Partition(topic, number)
            first = max(span.start, self.low.get(partition, 0))
            for offset in range(first, span.end):
                covered = Span(offset, offset + 1)
                yield partition, self.records[partition][offset : offset + 1], covered

    def known_of(
        self, _kafka: Settings, group: str, _stream: Stream, topic_id: str
    ) -> dict[Partition, Known]:
        assert group == forwarder_group("heap")
        found = {
            p: Known(topic_id, self.low.get(p, 0), len(self.records[p]), *at)
            for p, at in self.at.items()
        }
        self.goes_on()
        return found

    def positions_of(
        self, _kafka: Settings, group: str, _stream: Stream, _topic_id: str
    ) -> dict[Partition, int]:
        found = dict(self.positions.get(group, {}))
        self.goes_on()
        return found

    def all_jobs(self) -> dict[str, Job]:
        found = dict(self.jobs)
        self.goes_on()
        return found

    def receipted(self) -> Receipted:
        found = Receipted.read({}, BUILT_IN, "heap", ID, self.all_jobs)
        assert found is not None
        return found


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """Two partitions without a record, of which forwarders are through with all that will come."""
    world = World(
        {P: [], OTHER: [], RECEIPTS: []}, at={P: (100, Intent.at_rest(ID).note()), OTHER: (100, "")}
    )
    monkeypatch.setattr(scan, "bounds", world.bounds)
    monkeypatch.setattr(scan, "pieces", world.pieces)
    monkeypatch.setattr(scan, "firsts", world.firsts)
    monkeypatch.setattr(vendor, "known_of", world.known_of)
    monkeypatch.setattr(coming, "positions_of", world.positions_of)
    monkeypatch.setattr(vendor, "topic_ids", lambda _kafka, topics: dict.fromkeys(topics, ID))
    return world


def through(world: World) -> None:
    """The forwarders are at the end of what there is."""
    for partition, (_, note) in world.at.items():
        world.at[partition] = (len(world.records[partition]), note)


def job(**changes: object) -> Job:
    """A paused replay of an hour, whose range of offsets is wider."""
    one = Job(
        "3f9c01d2", "heap", "raw_events", ID, AT_US, AT_US + HOUR_US, 3600.0,
        {0: Span(0, 100), 1: Span(0, 0)}, 1, state=State.PAUSED,
    )  # fmt: skip
    return replace(one, **changes)  # type: ignore[arg-type]


def split(world: World) -> tuple[list[str], list[str]]:
    """Events without a receipt: those in flight (their sums are compared), and the missing ones."""
    through(world)
    receipted = world.receipted()
    missing = [one.name.split()[1] for one in receipted.missing(0, AT_US + 99 * HOUR_US)]
    every = [
        f"e{p.number}-{offset}"
        for p in (P, OTHER)
        for offset in range(world.low.get(p, 0), len(world.records[p]))
    ]
    waiting = [name for name in every if name not in missing]
    account = receipted.account()
    assert sum(one.records for one in account.waiting.values()) == len(waiting)
    assert not account.entries
    return waiting, missing


def test_accepted_once_is_accepted_and_only_by_this_vendor(world: World) -> None:
    """A replay's receipts come behind: of an event that was accepted they change nothing."""
    for _ in range(6):
        world.event()

    def say(offset: int, status: str, name: str = "heap", event_id: str = "") -> None:
        one = Receipt(
            vendor=name, status=status, event_id=event_id or f"e0-{offset}",
            source_topic=P.topic, source_partition=0, source_offset=offset,
        )  # fmt: skip
        one.answered_at.FromMicroseconds(AT_US)
        world._append(RECEIPTS, one.SerializeToString())

    say(0, "accepted")
    say(0, "rejected")
    say(1, "rejected")
    say(1, "expired")
    say(2, "accepted", "ga4")
    say(3, "accepted", event_id="of an older topic")
    # Neither does it hide the one of this topic's event, whichever is read first.
    say(4, "accepted", event_id="of an older topic")
    say(4, "rejected")
    say(4, "accepted")
    say(5, "rejected")
    say(5, "accepted", event_id="of an older topic")
    through(world)
    found = world.receipted()
    (entry,) = found.account().entries.values()
    assert (entry.landed, entry.dropped, entry.dead) == (2, 0, Sum(2, hash_of([1, 5])))
    assert [one.place for one in found.missing(0, AT_US + HOUR_US)] == [(P, 2), (P, 3)]


def test_what_the_table_gave_of_what_kafka_still_has_is_accounted_for_by_its_id(
    world: World,
) -> None:
    """A row's number is no offset: an outage by way of the table was missing after its end."""
    for _ in range(6):
        world.event(partition=OTHER)
    row = number_at(AT_US)
    world.receipt(0, OTHER, row=row)
    world.receipt(1, OTHER, "rejected", row=row + 1)
    world.receipt(2, OTHER, "dropped", row=row + 2)
    world.receipt(3, OTHER, "rejected")
    world.receipt(3, OTHER, row=row + 3)
    world.receipt(4, OTHER)
    world.receipt(4, OTHER, "expired", row=row + 4)
    through(world)
    found = world.receipted()
    (entry,) = found.account().entries.values()
    assert (entry.landed, entry.dropped, entry.dead.records) == (3, 1, 1)
    assert [one.place for one in found.missing(0, AT_US + HOUR_US)] == [(OTHER, 5)]
    accepted = found.acknowledged(0, AT_US + HOUR_US)
    assert [one.place for one in accepted] == [(OTHER, 0), (OTHER, 3), (OTHER, 4)]


# -- what a replay will never send is not in flight ------------------------------------------------


def test_only_events_that_a_replay_means_are_in_flight(world: World) -> None:
    world.jobs["3f9c01d2"] = job(event="checkout")
    for minute, name in ((-1, "checkout"), (0, "checkout"), (5, "other"), (59, "checkout")):
        world.event(minute, name)
    world.event(60)
    assert split(world) == (["e0-1", "e0-3"], ["e0-0", "e0-2", "e0-4"])


@pytest.mark.parametrize("state", [State.OPEN, State.PAUSED])
def test_what_a_replay_has_passed_without_a_receipt_is_missing(world: World, state: State) -> None:
    """Of a partition without a position nothing is passed: it begins where its range does."""
    world.jobs["3f9c01d2"] = job(state=state, spans={0: Span(1, 5), 1: Span(1, 3)})
    for _ in range(6):
        world.event()
    for _ in range(3):
        world.event(partition=OTHER)
    world.positions["headrace-replay-3f9c01d2"] = {P: 3}
    assert split(world) == (
        ["e0-3", "e0-4", "e1-1", "e1-2"], ["e0-0", "e0-1", "e0-2", "e0-5", "e1-0"],
    )  # fmt: skip


def test_a_replay_of_what_is_missing_by_receipts_has_it_in_flight(world: World) -> None:
    world.jobs["3f9c01d2"] = job(only_missing=True)
    world.event()
    assert split(world) == (["e0-0"], [])


@pytest.mark.parametrize(
    "other",
    [
        job(only_missing=True, against="/export.json"),  # what it sends only that file says
        job(state=State.CANCELLED),
        job(state=State.DONE),
        job(to="ga4"),
        job(topic_id="another"),
    ],
    ids=["against an export", "cancelled", "done", "another vendor", "another topic"],
)
def test_a_replay_that_nobody_can_say_it_of_has_nothing_in_flight(world: World, other: Job) -> None:
    world.jobs["3f9c01d2"] = other
    world.event()
    assert split(world) == ([], ["e0-0"])


def test_a_replay_of_some_events_does_not_hide_what_one_after_an_outage_was_to_send(
    world: World,
) -> None:
    """All of an outage's range is meant, whenever its events were taken; until it is cancelled."""
    outage = job(id="outage", origin=Origin.OUTAGE, end_us=AT_US + 1, spans={0: Span(1, 4)})
    world.jobs["outage"] = outage
    for minute in (0, -90, 5, 200):
        world.event(minute, "other")
    assert split(world) == (["e0-1", "e0-2", "e0-3"], ["e0-0"])
    world.jobs["outage"] = outage.moved(State.CANCELLED)
    world.jobs["3f9c01d2"] = job(event="checkout")
    assert split(world) == ([], ["e0-0", "e0-1", "e0-2", "e0-3"])


def test_all_of_a_gap_is_in_flight_until_its_replay_is_noted(world: World) -> None:
    gap = Gap("outage", ID, {P: Span(0, 2)}, 1, 2, begun=False)
    world.at[P] = (0, gap.note())
    for minute in (-90, 200, 5):
        world.event(minute)
    assert split(world) == (["e0-0", "e0-1"], ["e0-2"])
    world.jobs["outage"] = job(
        id="outage", origin=Origin.OUTAGE, spans={0: Span(0, 2)}, state=State.CANCELLED
    )
    assert split(world) == ([], ["e0-0", "e0-1", "e0-2"])


def test_what_comes_from_the_table_is_in_flight_by_its_time_and_kafkas_part_by_its_offsets(
    world: World,
) -> None:
    """Positions in the table are numbers of rows, which are no offsets."""
    line_us = AT_US + 30 * 60_000_000
    world.jobs["3f9c01d2"] = job(table_until_us=line_us, spans={0: Span(6, 100), 1: Span(0, 0)})
    for minute in (-1, 0, 10, 29, 30, 31, 10, 31):
        world.event(minute)
    world.event(20, partition=OTHER)
    # Neither of the table, for it was taken too late, nor in Kafka's range: 4 and 5.
    missing = ["e0-0", "e0-4", "e0-5"]
    assert split(world) == (["e0-1", "e0-2", "e0-3", "e0-6", "e0-7", "e1-0"], missing)
    number = number_at(AT_US + 15 * 60_000_000) + 7
    world.positions["headrace-replay-3f9c01d2-table"] = {P: number}
    missing = ["e0-0", "e0-1", "e0-2", "e0-4", "e0-5", "e0-6"]
    assert split(world) == (["e0-3", "e0-7", "e1-0"], missing)
    world.positions["headrace-replay-3f9c01d2-table"] = {P: number_at(line_us)}
    assert split(world)[0] == ["e0-7"]
    world.positions["headrace-replay-3f9c01d2"] = {P: 8}
    assert split(world)[0] == []


def test_after_an_outage_the_table_gives_what_was_taken_before_its_end(world: World) -> None:
    world.jobs["outage"] = job(
        id="outage", origin=Origin.OUTAGE, spans={0: Span(2, 9)}, table_until_us=AT_US + HOUR_US
    )
    for minute in (59, 60, 59, 60, 200):
        world.event(minute)
    assert split(world) == (["e0-0", "e0-2", "e0-3", "e0-4"], ["e0-1"])
    world.positions["headrace-replay-outage-table"] = {P: number_at(AT_US + HOUR_US)}
    assert split(world) == (["e0-3", "e0-4"], ["e0-0", "e0-1", "e0-2"])


# -- what goes on while an audit looks -------------------------------------------------------------


@pytest.mark.parametrize("before", range(9))
def test_an_event_that_a_running_replay_has_just_sent_is_not_missing(
    world: World, before: int
) -> None:
    """Its receipt is written, then the position moves over it; at any moment of an audit."""
    world.jobs["3f9c01d2"] = job(state=State.OPEN)
    for _ in range(3):
        world.event()
    through(world)
    asked = sent = 0

    def goes_on() -> None:
        nonlocal asked, sent
        asked += 1
        if asked > before and sent < 3:
            world.receipt(sent)
            sent += 1
            world.positions["headrace-replay-3f9c01d2"] = {P: sent}

    world.goes_on = goes_on
    assert list(world.receipted().missing(0, AT_US + HOUR_US)) == []


@pytest.mark.parametrize("before", range(5))
@pytest.mark.parametrize("at_once", [False, True])
def test_an_event_that_a_forwarder_leaps_over_just_now_is_not_missing(
    world: World, before: int, at_once: bool
) -> None:
    """The leap with its note, the job, and what is committed behind it; at any moment."""
    world.event()
    world.at[P] = (0, Intent.at_rest(ID).note())
    gap = Gap("outage", ID, {P: Span(0, 1)}, 1, 2, begun=False)
    asked = 0

    def goes_on() -> None:
        nonlocal asked
        asked += 1
        done = 3 if at_once and asked > before else asked - before
        if done > 0:
            world.at[P] = (1, gap.note() if done < 3 else Intent.at_rest(ID).note())
        if done > 1:
            world.jobs["outage"] = job(id="outage", origin=Origin.OUTAGE, spans={0: Span(0, 1)})

    world.goes_on = goes_on
    assert list(world.receipted().missing(0, AT_US + HOUR_US)) == []


# -- what has expired ------------------------------------------------------------------------------


def judged(
    world: World, minutes: list[int], without: Collection[int] = ()
) -> list[tuple[int, bool, bool]]:
    """Of each hour the difference, whether it holds, and whether it is partial.

    Events of these minutes were published to the first partition; these offsets got no receipt.
    """
    hours: dict[int, list[int]] = {}
    for offset, minute in enumerate(minutes):
        world.event(minute)
        if offset not in without:
            world.receipt(offset, minute=minute)
        hours.setdefault((AT_US + minute * 60_000_000) // HOUR_US, []).append(offset)
    through(world)
    totals = {Bucket(P, h): Sum(len(some), hash_of(some)) for h, some in hours.items()}
    account = world.receipted().account()
    lines = equation(RAW, "heap", account, totals, {}, {P: Read(len(minutes), 0)})
    return [(o.difference, o.holds, o.partial) for o in sorted(lines, key=lambda o: o.hour)]


def test_where_all_has_expired_no_hour_is_judged(world: World) -> None:
    """A stream that rests for longer than its retention: all was delivered, nothing can be read."""
    world.low[P] = 4
    now_us = time.time_ns() // 1000
    assert judged(world, [0, 1, 60, 61]) == [(2, True, True), (2, True, True)]
    since_us = world.receipted().account().since_us
    assert now_us <= since_us[P] <= time.time_ns() // 1000
    assert OTHER not in since_us, "of it nothing has expired"


def test_hours_are_judged_from_the_first_record_on_that_is_still_there(world: World) -> None:
    world.low[P] = 2
    assert judged(world, [0, 60, 61, 120]) == [(1, True, True), (1, True, True), (0, True, False)]
    assert world.receipted().account().since_us == {P: AT_US + 61 * 60_000_000}


def test_an_end_of_a_transaction_before_the_first_record_does_not_say_since_when(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.low[P] = 1

    def pieces(
        kafka: Settings, topic: str, spans: Mapping[int, Span]
    ) -> Iterator[tuple[Partition, list[Message], Span]]:
        if topic == RAW.topic:
            yield P, [], Span(1, 2)
        yield from world.pieces(kafka, topic, spans)

    monkeypatch.setattr(scan, "pieces", pieces)
    assert judged(world, [0, 60]) == [(1, True, True), (0, True, False)]


def test_hours_that_are_there_as_a_whole_are_judged(world: World) -> None:
    assert judged(world, [0, 60], without=[0]) == [(1, False, False), (0, True, False)]


def test_an_hour_behind_what_has_expired_is_judged_too(world: World) -> None:
    world.low[P] = 1
    assert judged(world, [0, 59, 60], without=[2]) == [(1, True, True), (1, False, False)]


@pytest.mark.parametrize(("left", "since"), [(2, 61), (4, None)])
def test_hours_whose_receipts_have_expired_are_not_judged(
    world: World, left: int, since: int | None
) -> None:
    """Events that are kept for longer than their receipts are not missing: nobody can tell."""
    world.low[RECEIPTS] = left
    now_us = time.time_ns() // 1000
    found = judged(world, [0, 60, 61, 125], without=[])
    assert found[:2] == [(1, True, True), (1 if since else 2, True, True)]
    assert found[2] == ((0, True, False) if since else (1, True, True))
    receipted = world.receipted()
    if since:
        assert receipted.receipts == (AT_US + 61 * 60_000_000, False)
        assert not list(receipted.missing(0, AT_US + 99 * HOUR_US)), "nothing to send again"
        world.event(240)
        through(world)
        (lost,) = world.receipted().missing(0, AT_US + 99 * HOUR_US)
        assert lost.place == (P, 4), "what came later is judged"
    else:
        assert receipted.receipts.emptied
        assert now_us <= receipted.receipts.since_us <= time.time_ns() // 1000


def test_receipts_without_a_position_are_no_account_of_nothing(world: World) -> None:
    """Kafka forgets the forwarders' group a week after the last of them has left."""
    for offset in range(3):
        world.event()
        world.receipt(offset)
    world.at.clear()
    with pytest.raises(PlaceUnknown, match="headrace-forward-heap no position"):
        world.receipted()


def test_a_replay_of_before_does_not_excuse_receipts_without_a_position(world: World) -> None:
    """Each outage leaves one; and what only replays have sent can't be judged either."""
    world.event()
    world.receipt(0)
    world.at.clear()
    for state in State:
        world.jobs["j"] = job(state=state)
        with pytest.raises(PlaceUnknown, match="headrace forward --vendor heap"):
            world.receipted()


def test_receipts_of_an_older_topic_are_no_account(world: World) -> None:
    world.event()
    world.receipt(0)
    world.at.clear()
    world.records[P].clear()
    world.event(partition=OTHER)
    assert Receipted.read({}, BUILT_IN, "heap", ID, world.all_jobs) is None


def test_what_retention_took_before_it_was_sent_is_missing(world: World) -> None:
    """A forwarder stood still for too long: that is a loss, and no hour that has just expired."""
    for offset in range(4):
        world.event()
        if offset < 2:
            world.receipt(offset)
    world.at = {P: (2, Intent.at_rest(ID).note())}
    world.low[P] = 4
    account = world.receipted().account()
    assert account.since_us == {}
