"""Bad records beside good ones, through a run loop and its lanes, into every sink."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from fake_log import LOOP, At, FakeLetters, FakeSource, nothing, steps
from scene import Scene

from consumers import collect, decode
from consumers.deadletters import DeadLetter
from consumers.destinations import destination
from consumers.errors import Lost, Systemic, Unavailable
from consumers.lanes import Totals
from consumers.limits import Limits
from consumers.run import Runner
from consumers.source import Listener
from ingest.streams import Stream

NewScene = Callable[..., Scene]


def drain(scene: Scene, letters: FakeLetters, limits: Limits, *, skip_lost: bool = False) -> Totals:
    """Run an inserter until all has landed; raises what it raises."""
    sim = scene.kafka.sim
    sources: list[FakeSource] = []

    def main() -> Totals:
        def join(listener: Listener) -> FakeSource:
            sources.append(scene.kafka.join(listener))
            return sources[0]

        runner = Runner(
            join,
            letters,
            [scene.stream],
            lambda log: scene.subject.open([scene.stream], log, steps(nothing)),
            destination=scene.subject.name,
            limits=limits,
            skip_lost=skip_lost,
        )
        return runner.run(drain=True)

    with sim.patched(*LOOP):
        process = sim.process("inserter", main)
        sim.run(lambda: process.ended, 600)
    if process.error is not None:
        raise process.error
    totals: Totals = process.result
    return totals


def expected_without(scene: Scene, bad: set[tuple[int, int]]) -> list[str]:
    names = {scene.name(number, offset) for number, offset in bad}
    return [name for name in scene.expected() if name not in names]


@pytest.mark.parametrize("lanes", [1, 2])
def test_bad_records_are_dead_letters_whole_and_with_the_reason_and_the_rest_lands(
    new_scene: NewScene, lanes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = new_scene()
    bad: dict[tuple[int, int], str] = {}
    for number in (0, 1):
        partition = scene.partitions[number]
        scene.fill(number, 11)
        for fields, _named in scene.subject.poisons:
            bad[number, scene.kafka.end(partition)] = "rejected"
            scene.fill(number, 1, **fields)
            scene.gap(number, 2)
            scene.fill(number, 3)
        bad[number, scene.kafka.end(partition)] = "undecodable"
        scene.kafka.produce(partition, b"\xff\xff", b"key", [("from", b"a device"), ("n", b"\0")])
        bad[number, scene.kafka.end(partition)] = "over_size"
        scene.fill(number, 1, text="x" * 3000)
        bad[number, scene.kafka.end(partition)] = "undecodable"
        scene.kafka.produce(partition, None, b"a tombstone")
        scene.fill(number, 4)
    scene.gap(1, 3)
    letters = FakeLetters(scene.kafka.sim)
    for module in (decode, collect):
        monkeypatch.setattr(module, "MAX_RECORD_BYTES", 2000)
    limits = Limits(max_rows=25, lanes=lanes, max_dead_share=1.0)
    totals = drain(scene, letters, limits)
    found = {(m.partition(), m.offset()): kind for m, kind, _ in letters.sent}
    assert found == bad
    assert len(letters.sent) == len(bad), "none twice, when nothing went wrong"
    for message, _, reason in letters.sent:
        partition = scene.partitions[message.partition()]
        there = scene.kafka.records[partition].messages[message.offset()]
        assert there is not None
        assert reason
        for what in ("value", "key", "headers", "topic"):
            assert getattr(message, what)() == getattr(there, what)()
    landed = expected_without(scene, set(bad))
    assert scene.subject.landed(scene.stream) == landed
    assert (totals.rows, totals.dead_letters) == (len(landed), len(bad))
    scene.check_ledger(bad)
    ends = {partition.number: scene.kafka.end(partition) for partition in scene.partitions}
    assert scene.writer().resume() == ends


class AwayLetters(FakeLetters):
    """Takes none the first times; `at` looks around at each of them."""

    def __init__(self, scene: Scene, times: int, at: Callable[[], None]) -> None:
        super().__init__(scene.kafka.sim)
        self.times, self._look = times, at

    def send(self, stream: Stream, letters: Sequence[DeadLetter], at: At = nothing) -> None:
        if self.times:
            self.times -= 1
            self._look()
            raise Unavailable("dead letters are not acknowledged (by the test)")
        super().send(stream, letters, at)


@pytest.mark.parametrize("kind", ["refused", "undecodable"])
def test_nothing_is_committed_behind_a_record_that_is_not_yet_a_dead_letter(
    new_scene: NewScene, kind: str
) -> None:
    scene = new_scene(partitions=1)
    scene.fill(0, 10)
    if kind == "refused":
        scene.fill(0, 1, **scene.subject.poisons[1][0])
    else:
        scene.kafka.produce(scene.partitions[0], b"\xff")
    scene.fill(0, 5)
    before = set(scene.expected([(0, 0, 10)]))

    def look() -> None:
        at, _note = scene.kafka.committed.get(scene.partitions[0], (None, ""))
        assert at is None or at <= 10
        assert set(scene.subject.landed(scene.stream)) <= before

    letters = AwayLetters(scene, 5, look)
    drain(scene, letters, Limits(max_dead_share=1.0))
    assert letters.times == 0
    assert len(letters.sent) == 1
    assert scene.subject.landed(scene.stream) == expected_without(scene, {(0, 10)})
    assert scene.writer().resume() == {0: 16}


@pytest.mark.parametrize("kind", ["refused", "undecodable"])
def test_too_many_bad_records_stop_the_process_and_nothing_of_their_batch_is_committed(
    new_scene: NewScene, kind: str
) -> None:
    scene = new_scene(partitions=1)
    scene.fill(0, 10)
    for _ in range(20):
        if kind == "refused":
            scene.fill(0, 1, **scene.subject.poisons[1][0])
        else:
            scene.kafka.produce(scene.partitions[0], b"\xff")
    letters = FakeLetters(scene.kafka.sim)
    with pytest.raises(Systemic, match="not like bad records"):
        drain(scene, letters, Limits(max_dead_share=0.1, dead_window=100))
    assert letters.sent == []
    assert scene.subject.landed(scene.stream) == []
    assert scene.writer().resume() == {0: 0}


def test_what_retention_removed_before_it_landed_is_never_passed_over_unasked(
    new_scene: NewScene,
) -> None:
    scene = new_scene(partitions=1)
    scene.fill(0, 9)
    writer = scene.writer()
    writer.resume()
    writer.write((0, 0, 3))
    writer.crash()
    scene.kafka.expire(scene.partitions[0], 5)
    letters = FakeLetters(scene.kafka.sim)
    with pytest.raises(Lost, match=r"from 3 to 5 .*--skip-lost"):
        drain(scene, letters, Limits())
    scene.check((0, 0, 3))
    drain(scene, letters, Limits(), skip_lost=True)
    scene.check((0, 0, 3), (0, 5, 9))


def test_a_process_that_has_to_stop_does_so_at_once(new_scene: NewScene) -> None:
    """Others take over its partitions; it need not wait for what it can't do any more."""
    scene = new_scene(partitions=2)
    for number in (0, 1):
        scene.fill(number, 5)
    scene.kafka.produce(scene.partitions[0], b"\xff")
    began = scene.kafka.sim.now
    with pytest.raises(Systemic):
        drain(scene, FakeLetters(scene.kafka.sim), Limits(max_dead_share=0.0, dead_window=10))
    assert scene.kafka.sim.now - began < 10


def test_a_batch_of_more_partitions_than_the_destination_takes_at_once_lands_in_parts(
    new_scene: NewScene,
) -> None:
    """An intent in ClickHouse's offsets is metadata of at most 4096 bytes; so Kafka here, too."""
    scene = new_scene(partitions=300)
    if scene.subject.name == "clickhouse":
        pytest.skip("the same sink as chdb's; two questions over HTTP for each partition take 20 s")
    for number in range(300):
        scene.gap(number, 1000)
        scene.kafka.expire(scene.partitions[number], 900)
        scene.fill(number, 1)
    letters = FakeLetters(scene.kafka.sim)
    limits = Limits(max_age_s=600, max_partitions=destination("chdb:.").limits.max_partitions)
    totals = drain(scene, letters, limits)
    assert scene.subject.landed(scene.stream) == scene.expected()
    assert (totals.rows, letters.sent) == (300, [])
