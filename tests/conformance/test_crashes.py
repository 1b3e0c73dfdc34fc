"""A process may end, stop or lose Kafka at every point of landing a batch: rows land once.

The points are what the sink passes when nothing goes wrong: before and after each of its steps, and
before and after each of its questions to Kafka. A new step is covered when it is there.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
from fake_log import nothing
from scene import Crash, Points, Scene, Writer, crash
from sinks_under_test import Subject

from consumers.errors import Fenced, Unavailable
from consumers.sinks import postgres_client

NewScene = Callable[..., Scene]

# Over HTTP it is the same code as with chDB, and ten times as slow: one test is enough for
# every day.
HTTP_SLOWLY = pytest.mark.parametrize(
    "subject",
    ["memory", "postgres", "chdb", pytest.param("clickhouse", marks=pytest.mark.slow)],
    indirect=True,
)


def begin(scene: Scene, at: Callable[[str], None] = nothing) -> Writer:
    """A writer that has landed something, and has the batch of `attempt` before it."""
    scene.fill(0, 7)
    scene.gap(0)
    scene.fill(1, 5)
    live: list[bool] = []
    writer = scene.writer(lambda point: at(point) if live else None)
    writer.resume()
    while not live:
        # As a lane does: a server that has been told to be impatient may be so too soon.
        with suppress(Unavailable):
            writer.write((0, 0, 2))
            live.append(True)
    return writer


def attempt(writer: Writer) -> None:
    """The batch of this module: two partitions, a gap at its end; records are left behind it."""
    writer.write((0, 2, 6), (1, 0, 3))


def points_of(new_scene: NewScene) -> list[str]:
    """What an undisturbed batch passes."""
    points = Points()
    attempt(begin(new_scene(), points.at))
    return points.seen


def crashed_states(new_scene: NewScene) -> Iterator[Callable[[], Scene]]:
    """Makers of a scene for every different state that a crash leaves behind."""
    last = None
    for target in range(len(points_of(new_scene))):

        def crashed(target: int = target) -> Scene:
            scene = new_scene()
            writer = begin(scene, Points(target, crash).at)
            with pytest.raises(Crash):
                attempt(writer)
            writer.crash()
            return scene

        state = crashed().state()
        if state != last:
            yield crashed
        last = state


def test_a_crash_at_every_point_loses_and_doubles_nothing(new_scene: NewScene) -> None:
    seen = points_of(new_scene)
    assert len(seen) >= 6, "the sink has no steps"
    for target, point in enumerate(seen):
        scene = new_scene()
        writer = begin(scene, Points(target, crash).at)
        with pytest.raises(Crash, match=point):
            attempt(writer)
        writer.crash()
        scene.finish()
        scene.check()


@HTTP_SLOWLY
def test_a_crash_at_every_point_of_recovery_loses_and_doubles_nothing(
    new_scene: NewScene,
) -> None:
    for crashed in crashed_states(new_scene):
        again = 0
        while True:
            scene = crashed()
            points = Points(again, crash)
            second = scene.writer(points.at)
            with suppress(Crash):
                second.resume()
            second.crash()
            if not points.reached:
                break
            scene.finish()
            scene.check()
            again += 1
        assert again


@HTTP_SLOWLY
def test_partitions_that_go_to_different_owners_after_a_crash_are_settled_by_each(
    new_scene: NewScene,
) -> None:
    """One batch held both; whoever comes first must not leave half of it to be landed twice."""
    for crashed in crashed_states(new_scene):
        for order in ((0, 1), (1, 0)):
            scene = crashed()
            for number in order:
                scene.finish(number)
            scene.check()


@HTTP_SLOWLY
def test_a_zombie_that_wakes_at_any_point_lands_nothing_more(
    new_scene: NewScene, monkeypatch: pytest.MonkeyPatch, subject: Subject
) -> None:
    """Its successor has taken over, and has gone on, while it stood still."""
    writers: list[Writer] = []
    for target in range(len(points_of(new_scene))):
        scene = new_scene()

        overtaken: list[bool] = []

        def overtake(_: str, scene: Scene = scene, overtaken: list[bool] = overtaken) -> None:
            if subject.stoppable():
                overtaken.append(True)
                writers[-1].expel()
                scene.finish()

        with monkeypatch.context() as patch:
            # A successor waits for the zombie's lock for as long as this. It may be slow itself.
            patch.setitem(postgres_client._SESSION, "idle_in_transaction_session_timeout", "200ms")
            zombie = begin(scene, Points(target, overtake).at)
        writers.append(zombie)
        for _ in range(3):
            # As a lane does: the same batch again while the destination is away.
            try:
                attempt(zombie)
            except Unavailable:
                continue
            except Fenced:
                pass
            break
        else:
            pytest.fail("it is never told")
        if overtaken:
            with pytest.raises(Fenced):
                zombie.write((0, 6, 8))
        else:
            scene.finish()
        scene.check()


@HTTP_SLOWLY
@pytest.mark.parametrize("times", [1, 2])
def test_the_same_batch_again_after_any_point_at_which_its_outcome_was_unknown(
    new_scene: NewScene, times: int
) -> None:
    def away(point: str) -> None:
        raise Unavailable(point)

    for target in range(len(points_of(new_scene))):
        scene = new_scene()
        points = Points(target, away)
        writer = begin(scene, points.at)
        # A sink that does not remember its attempts may say that it was fenced: by itself.
        with suppress(Fenced):
            for _ in range(times):
                points.seen.clear()
                # A second attempt may pass other points, and fewer.
                with suppress(Unavailable):
                    attempt(writer)
            points.act = nothing
            attempt(writer)
        points.act = nothing
        scene.finish(writer=writer)
        scene.check()


@HTTP_SLOWLY
def test_a_batch_that_was_given_up_does_not_confuse_the_next_one(new_scene: NewScene) -> None:
    """Its partition was taken away while the destination was away, and came back; it leaves."""

    def away(point: str) -> None:
        raise Unavailable(point)

    for target in range(len(points_of(new_scene))):
        scene = new_scene()
        writer = begin(scene, Points(target, away).at)
        with suppress(Unavailable):
            attempt(writer)
        scene.finish(0)
        scene.finish(1, writer=writer)
        writer.crash()
        scene.check()


@HTTP_SLOWLY
def test_writers_of_different_partitions_do_not_wait_for_each_other(
    new_scene: NewScene, subject: Subject
) -> None:
    """One lands everything of its partition while the other stands at any point."""
    seen = points_of(new_scene)
    for target in range(len(seen)):
        scene = new_scene(partitions=3)
        scene.fill(2, 4)
        other = scene.writer()
        other.resume(2)

        def pass_by(_: str, other: Writer = other) -> None:
            if subject.stoppable():
                other.write((2, 0, 3))

        writer = begin(scene, Points(target, pass_by).at)
        attempt(writer)
        scene.finish()
        scene.check()


@HTTP_SLOWLY
def test_a_dead_letter_does_not_land_when_its_batch_is_settled(new_scene: NewScene) -> None:
    """What was refused before the insert is not in it, whoever makes it."""
    fields = next(fields for fields, named in new_scene().subject.poisons if named)
    for target in itertools.count():
        scene = new_scene()
        scene.fill(0, 2)
        scene.fill(0, 1, **fields)
        scene.fill(0, 2)
        points = Points(target, crash)
        live: list[bool] = []
        writer = scene.writer(lambda point: points.at(point) if live else None)  # noqa: B023 # it is used up within the loop
        writer.resume()
        live.append(True)
        with suppress(Crash):
            writer.sink.write(writer.batch((0, 0, 5)).without([2]))
        live.clear()  # its end passes points, too
        writer.crash()
        if not points.reached:
            break
        after = scene.writer()
        at = after.resume()[0]
        if at < 5:
            after.sink.write(after.batch((0, at, 5)).without([2]))
        scene.check((0, 0, 2), (0, 3, 5))
    assert target >= 6, "the sink has no steps"
