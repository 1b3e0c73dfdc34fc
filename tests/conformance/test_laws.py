"""What every sink keeps: the contract of consumers/sinks/__init__.py, law by law."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import pytest
from scene import Scene

from consumers.errors import Fenced, Rejected, Unavailable

NewScene = Callable[..., Scene]


def test_an_unknown_partition_begins_at_the_oldest_offset_that_is_there(scene: Scene) -> None:
    scene.fill(0, 9)
    scene.kafka.expire(scene.partitions[0], 7)
    writer = scene.writer()
    assert writer.resume() == {0: 7, 1: 0}
    writer.write((0, 7, 9))
    assert writer.resume() == {0: 9, 1: 0}
    scene.check((0, 7, 9))


def test_rows_land_once_and_every_later_writer_goes_on_behind_them(scene: Scene) -> None:
    scene.fill(0, 7)
    first = scene.writer()
    first.resume()
    first.write((0, 0, 3))
    assert scene.writer().resume() == {0: 3, 1: 0}
    first.write((0, 3, 7))
    assert scene.writer().resume() == {0: 7, 1: 0}
    scene.check()


def test_a_span_with_gaps_moves_the_position_over_them(scene: Scene) -> None:
    scene.gap(0, 2)
    scene.fill(0, 2)
    scene.gap(0)
    scene.fill(0, 1)
    scene.gap(0, 3)
    writer = scene.writer()
    writer.resume()
    writer.write((0, 0, 9))
    assert scene.writer().resume() == {0: 9, 1: 0}
    scene.check()


def test_a_batch_without_rows_moves_positions(scene: Scene) -> None:
    scene.fill(0, 2)
    scene.gap(0, 3)
    scene.gap(1)
    scene.fill(0, 1)
    writer = scene.writer()
    writer.resume()
    writer.write((0, 0, 2))
    writer.write((0, 2, 5), (1, 0, 1))
    assert scene.writer().resume() == {0: 5, 1: 1}
    writer.write((0, 5, 6))
    scene.check()


def test_one_batch_moves_several_partitions_together(new_scene: NewScene) -> None:
    scene = new_scene(partitions=5)
    for number in range(5):
        scene.fill(number, number + 2)
    writer = scene.writer()
    writer.resume()
    writer.write((0, 0, 2), (1, 0, 3), (2, 0, 4), (4, 0, 3))
    assert writer.resume() == {0: 2, 1: 3, 2: 4, 3: 0, 4: 3}
    writer.write((3, 0, 5), (4, 3, 6))
    assert scene.writer().resume() == {0: 2, 1: 3, 2: 4, 3: 5, 4: 6}
    scene.check()


def test_a_writer_whose_start_is_not_the_position_lands_nothing(scene: Scene) -> None:
    """For ClickHouse Kafka fences, not the table; it is the group that has to be left behind."""
    scene.fill(0, 6)
    scene.fill(1, 2)
    slow, fast = scene.writer(), scene.writer()
    slow.resume()
    slow.expel()
    fast.resume()
    fast.write((0, 0, 4), (1, 0, 2))
    for spans in ([(0, 0, 2)], [(0, 0, 4), (1, 0, 2)], [(0, 0, 6)]):
        with pytest.raises(Fenced):
            slow.write(*spans)
    scene.check((0, 0, 4), (1, 0, 2))
    fast.write((0, 4, 6))
    scene.check()


def test_the_destination_remembers_when_the_group_has_forgotten(scene: Scene) -> None:
    """Kafka forgets the positions of a group a week after its last member has left."""
    scene.fill(0, 6)
    scene.fill(1, 3)
    writer = scene.writer()
    writer.resume()
    writer.write((0, 0, 4), (1, 0, 3))
    writer.crash()
    scene.kafka.committed.clear()
    scene.finish()
    scene.check()


def test_a_topic_made_anew_begins_at_its_start(scene: Scene) -> None:
    scene.fill(0, 6)
    before = scene.expected()
    scene.finish()
    scene.kafka.create(scene.stream.topic, 2)
    scene.fill(0, 4)
    scene.fill(1, 1)
    writer = scene.writer()
    assert writer.resume() == {0: 0, 1: 0}
    writer.write((0, 0, 4), (1, 0, 1))
    assert scene.subject.landed(scene.stream) == sorted(before + scene.expected())


def test_a_topic_made_anew_begins_at_its_start_though_an_old_writer_committed_late(
    scene: Scene,
) -> None:
    """Kafka takes commits by the topic's name: a batch that was under way leaves its position."""
    scene.fill(0, 6)
    before = scene.expected()
    old = scene.writer()
    old.resume()
    batch = old.batch((0, 0, 6))
    scene.kafka.create(scene.stream.topic, 2)
    scene.fill(0, 8)
    old.sink.write(batch)
    old.crash()
    scene.finish()
    assert scene.subject.landed(scene.stream) == sorted(before + scene.expected())


def test_what_kafka_said_of_an_older_topic_takes_no_position_back(scene: Scene) -> None:
    """Who asked Kafka stands still; the topic is made anew and lands; then the sink is asked."""
    scene.fill(0, 6)
    scene.finish()
    before = scene.expected()
    late = scene.writer()
    said = late.log.known(scene.partitions)
    scene.kafka.create(scene.stream.topic, 2)
    scene.fill(0, 8)
    scene.finish()
    with suppress(Unavailable, Fenced):
        late.sink.resume(said)
    late.crash()
    scene.finish()
    assert scene.subject.landed(scene.stream) == sorted(before + scene.expected())


def test_refused_rows_are_named_or_not_and_nothing_of_their_batch_lands(
    new_scene: NewScene,
) -> None:
    scene = new_scene()
    for fields, named in scene.subject.poisons:
        scene = new_scene()
        scene.fill(0, 4)
        scene.fill(1, 1)
        scene.fill(1, 1, **fields)
        scene.fill(1, 1)
        writer = scene.writer()
        writer.resume()
        batch = writer.batch((0, 0, 4), (1, 0, 3))
        with pytest.raises(Rejected) as refused:
            writer.sink.write(batch)
        assert list(refused.value.rows) == ([5] if named else [])
        assert refused.value.reason
        assert scene.subject.landed(scene.stream) == []
        assert writer.resume() == {0: 0, 1: 0}
        writer.sink.write(batch.without([5]))
        assert scene.writer().resume() == {0: 4, 1: 3}
        scene.check((0, 0, 4), (1, 0, 1), (1, 2, 3))


def test_what_clients_sent_twice_is_there_once_where_the_stream_says_so(
    new_scene: NewScene,
) -> None:
    """Within a batch, across batches and partitions, and beside a crash; positions move on."""
    scene = new_scene(dedupe=("id", "at"))
    if not scene.subject.dedupes:
        pytest.skip("a Store keeps all rows: it has no unique index")
    scene.fill(0, 6)
    first = scene.kafka.records[scene.partitions[0]].messages[0]
    assert first is not None
    for number in (0, 0, 1):
        scene.kafka.produce(scene.partitions[number], first.value())
    writer = scene.writer()
    writer.resume()
    writer.write((0, 0, 7))
    writer.write((0, 7, 8), (1, 0, 1))
    assert scene.writer().resume() == {0: 8, 1: 1}
    scene.check((0, 0, 6))


def test_another_streams_rows_and_positions_stay_as_they_are(new_scene: NewScene) -> None:
    """Two topics may share a table."""
    one, two = new_scene(), new_scene()
    for scene in (one, two):
        scene.fill(0, 4)
    writer = one.writer()
    writer.resume()
    other = two.writer()
    other.resume()
    writer.write((0, 0, 3))
    other.write((0, 0, 2))
    writer.write((0, 3, 4))
    assert two.writer().resume() == {0: 2, 1: 0}
    two.finish()
    for scene in (one, two):
        scene.check()
