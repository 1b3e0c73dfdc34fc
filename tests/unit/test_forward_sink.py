"""The sink of a vendor: receipts before the commit; after a crash it is known what was begun."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import suppress
from unittest.mock import Mock

import pytest
from forward_world import AT, STREAM, Crash, World, crashing

from consumers.batch import Batch, Chunk, Partition, Span
from consumers.decode import Decoder
from consumers.errors import Fenced, Unavailable
from consumers.forward.delivery import Delivery, Final, Status
from consumers.forward.lines import Unit
from consumers.sinks import Known
from consumers.trace.event import Event
from ingest.gen.headrace.v1.raw_event_pb2 import RawEvent

STEPS = ("gate", "intent", "send", "receipts", "commit")


def batch(start: int, end: int, name: str = "seen") -> Batch:
    """Events of these offsets; their ids are the offsets."""
    payloads = []
    for offset in range(start, end):
        data = json.dumps({"event": name, "userId": "u"})
        raw = RawEvent(event_id=f"{offset:036}", content_type="application/json", data=data)
        raw.received_at.FromMicroseconds(1_700_000_000_000_000 - offset)
        payloads.append(raw.SerializeToString())
    rows, bad = Decoder(STREAM).decode(payloads)
    assert not bad
    return Batch(STREAM, {AT: Span(start, end)}, (Chunk(AT, range(start, end), rows),))


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("at", STEPS)
def test_a_crash_at_any_step_loses_nothing_and_what_may_be_there_twice_is_marked(
    at: str, after: bool
) -> None:
    world = World()
    world.sink().write(batch(0, 3))
    with pytest.raises(Crash):
        world.sink(crashing(at, after=after)).write(batch(3, 6))
    before = list(world.sent)
    sink = world.sink()
    position = world.committed[AT][0]
    assert position == (6 if (at, after) == ("commit", True) else 3)
    if position == 3:
        # Now with more behind it, which nobody has begun.
        sink.write(batch(3, 8))
        sink.write(batch(8, 9))
    begun = at in ("send", "receipts", "commit") or (at, after) == ("intent", True)
    marked = {event_id for event_id, repeated in world.sent[len(before) :] if repeated}
    if position == 3:
        assert marked == ({f"{n:036}" for n in (3, 4, 5)} if begun else set())
    sent_before = {event_id for event_id, _ in before if int(event_id) >= 3}
    assert sent_before <= marked or position == 6
    final = {r.event_id: r for r in world.receipts}
    assert set(final) == {f"{n:036}" for n in range(6 if position == 6 else 9)}
    assert {e for e, r in final.items() if r.repeated} == marked
    assert all(r.status == "accepted" for r in final.values())


def test_what_was_begun_in_a_larger_batch_stays_marked_behind_a_smaller_one() -> None:
    """Whoever takes over may take less at once, and die in its turn."""
    for dies_at in ("send", "receipts", ""):
        world = World()
        with pytest.raises(Crash):
            world.sink(crashing("send", after=True)).write(batch(0, 6))
        with suppress(Crash):
            world.sink(crashing(dies_at, after=True)).write(batch(0, 2))
        world.sink().write(batch(world.committed[AT][0], 8))
        unmarked = [event_id for event_id, repeated in world.sent if not repeated]
        assert sorted(unmarked) == [f"{n:036}" for n in range(8)], "each once"


def test_receipts_are_there_before_the_commit() -> None:
    world = World()
    with pytest.raises(Crash):
        world.sink(crashing("commit", after=False)).write(batch(0, 2))
    assert [r.event_id for r in world.receipts] == [f"{1:036}", f"{0:036}"], "as they were taken"
    assert world.committed[AT][0] == 0


def test_what_may_not_leave_is_dropped_with_its_reason_and_a_receipt() -> None:
    world = World()
    world.sink().write(batch(0, 2, name="secret"))
    assert not world.sent
    assert [(r.status, r.reason, r.attempts) for r in world.receipts] == [
        ("dropped", "not_listed", 0)
    ] * 2
    assert [(r.source_topic, r.source_partition, r.source_offset) for r in world.receipts] == [
        ("raw_events", 0, 0), ("raw_events", 0, 1),
    ]  # fmt: skip
    assert all(not r.HasField("sent_at") and r.HasField("answered_at") for r in world.receipts)
    assert world.committed[AT][0] == 2


def test_while_the_vendor_is_away_nothing_is_committed_and_the_same_batch_goes_on() -> None:
    world = World()
    sink = world.sink()
    world.away = True
    for _ in range(3):
        with pytest.raises(Unavailable):
            sink.write(batch(0, 4))
    assert (world.committed[AT][0], world.receipts) == (0, [])
    world.away = False
    sink.write(batch(0, 4))
    assert len(world.sent) == len(world.receipts) == 4
    assert world.committed[AT][0] == 4


def test_a_batch_that_ends_in_its_middle_has_receipts_of_what_was_accepted_and_of_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The rest of it is not final: also what was refused may be a wrong setting."""
    world = World()

    def deliver(delivery: Delivery) -> None:
        delivery.begun = True
        first, second, *_ = delivery.fresh
        delivery.lines.add(Unit(delivery.fresh[2:], Counter()))
        for event, status in ((first, Status.ACCEPTED), (second, Status.REJECTED)):
            delivery.finals.append(Final(event, status, None, 1, 5, 6, repeated=False))
        raise Fenced("it was told to stop")

    monkeypatch.setattr(world, "deliver", deliver)
    sink = world.sink()
    with pytest.raises(Fenced):
        sink.write(batch(0, 4))
    assert not world.receipts
    stopped = Mock()
    monkeypatch.setattr(world, "stop", stopped)
    sink.stop()
    stopped.assert_called_once_with()
    sink.close()
    assert [(r.event_id, r.status) for r in world.receipts] == [(f"{3:036}", "accepted")]
    assert world.committed[AT][0] == 0


def test_a_batch_without_rows_moves_the_position() -> None:
    world = World()
    world.sink().write(Batch(STREAM, {AT: Span(0, 7)}, ()))
    assert world.committed[AT][0] == 7
    assert not world.receipts


def test_a_topic_made_anew_is_read_from_its_start() -> None:
    world = World()
    world.sink().write(batch(0, 3))
    world.id = "topic-2"
    assert world.sink().resume(world.known()) == {AT: 0}


def test_the_first_time_it_begins_where_the_topic_does() -> None:
    assert World().sink().resume({AT: Known("t", 17, 100, None, "")}) == {AT: 17}


def test_events_are_sent_under_their_ids_and_know_where_they_stand() -> None:
    """So that a receipt leads back to the record."""
    seen: list[Event] = []
    world = World()
    deliver = world.deliver

    def looking(delivery: Delivery) -> None:
        seen.extend(delivery.fresh)
        deliver(delivery)

    world.deliver = looking  # type: ignore[method-assign] # to look at what is sent
    world.sink().write(batch(4, 6))
    assert [(e.key, e.name, e.offset) for e in seen] == [
        (f"{5:036}", "seen", 5), (f"{4:036}", "seen", 4),
    ]  # fmt: skip


def test_a_batch_after_one_that_was_dropped_is_judged_anew() -> None:
    """The vendor was away, its partition went elsewhere; what waited behind it is another's."""
    world, other = World(), Partition("raw_events", 1)
    sink = world.sink()
    sink.resume({other: Known(world.id, 0, 100, None, "")})
    world.away = True
    with pytest.raises(Unavailable):
        sink.write(batch(0, 4))
    world.away = False
    (chunk,) = batch(10, 12).chunks
    sink.write(Batch(STREAM, {other: Span(10, 12)}, (Chunk(other, chunk.offsets, chunk.rows),)))
    assert [(r.source_partition, r.source_offset) for r in world.receipts] == [(1, 11), (1, 10)]
