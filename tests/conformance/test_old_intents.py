"""Inserts that were announced for ClickHouse long ago: its users were away for longer than retention."""  # noqa: E501

from __future__ import annotations

from collections.abc import Callable

import orjson
import pytest
from scene import Crash, Scene

from consumers.intent import FRESH_S

# Over HTTP it is the same code.
pytestmark = pytest.mark.parametrize("subject", ["chdb"], indirect=True)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_records_that_expired_are_not_passed_over_because_of_their_neighbours(
    new_scene: Callable[..., Scene], order: tuple[int, int]
) -> None:
    """One insert was to hold both partitions, and retention has taken a part of one. Whoever settles
    the other must not land the rest of it: its position would lie behind what is lost, and nobody
    would hear of that; or the rest would land twice."""  # noqa: E501
    scene = new_scene()
    scene.fill(0, 9)
    scene.fill(1, 3)

    def crash_at_insert(point: str) -> None:
        if point == "insert begins":
            raise Crash(point)

    writer = scene.writer(crash_at_insert)
    writer.resume()
    with pytest.raises(Crash):
        writer.write((0, 0, 7), (1, 0, 3))
    writer.crash()
    for partition, (offset, note) in scene.kafka.committed.items():
        body = orjson.loads(note)
        body["at_ms"] -= int(2 * FRESH_S * 1000)
        scene.kafka.committed[partition] = (offset, orjson.dumps(body).decode())
    scene.kafka.expire(scene.partitions[0], 3)

    owner = scene.writer()
    found = [owner.resume(number) for number in order]
    assert sorted(map(str, found)) == ["{0: 0}", "{1: 3}"]
    scene.check((1, 0, 3))
    # What --skip-lost does.
    owner.write((0, 3, 9))
    scene.check((0, 3, 9), (1, 0, 3))
