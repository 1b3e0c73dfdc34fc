"""Records that can't land: alone in the dead letters, whole and with the reason; the rest lands."""

from __future__ import annotations

import time
from collections.abc import Callable
from random import Random

import pytest
from confluent_kafka import Message
from running import Scene
from targets import Target

from ingest.gen.headrace.v1.device_state_pb2 import DeviceState

RANDOM = Random(7)
HEADERS = [("trace", b"\x00\xff"), ("trace", b"again"), ("empty", b"")]
LARGE = 8 * 1024 * 1024


def changed(value: bytes, **fields: object) -> bytes:
    state = DeviceState.FromString(value)
    for name, content in fields.items():
        setattr(state, name, content)
    return state.SerializeToString()


def out_of_range(value: bytes) -> bytes:
    state = DeviceState.FromString(value)
    state.timestamp.seconds = 100_000_000_000  # the year 5138
    return state.SerializeToString()


def bad_utf8(value: bytes) -> bytes:
    good = DeviceState.FromString(value).colo.encode()
    assert value.count(good) == 1
    return value.replace(good, b"\xff\xfe\xfd"[: len(good)].ljust(len(good), b"\xff"))


def without_time(value: bytes) -> bytes:
    state = DeviceState.FromString(value)
    state.ClearField("timestamp")
    return state.SerializeToString()


# Name -> how a good value is spoiled, kind of the dead letter, a word of its reason.
SPOILS: dict[str, tuple[Callable[[bytes], bytes | None], str, str]] = {
    "random bytes": (lambda _: RANDOM.randbytes(80), "undecodable", ""),
    "cut short": (lambda value: value[: len(value) // 2], "undecodable", ""),
    "bad UTF-8": (bad_utf8, "undecodable", "UTF-8"),
    "tombstone": (lambda _: None, "undecodable", "tombstone"),
    "time out of range": (out_of_range, "undecodable", "1900 to 2299"),
    "time not set": (without_time, "undecodable", "timestamp is not set"),
    "NUL in text": (lambda value: changed(value, mode="war\0p"), "rejected", "NUL"),
    "too large": (
        lambda value: changed(value, client_version="x" * LARGE), "over_size", "the limit is",
    ),
}  # fmt: skip
# ClickHouse's String holds any bytes.
LANDS = {"postgres": (), "clickhouse": ("NUL in text",)}


def header(message: Message, name: str) -> str:
    found = [v for n, v in message.headers() if n == f"headrace.{name}"]
    assert len(found) == 1, (name, message.headers())
    return found[0].decode()


@pytest.mark.parametrize("kind", ["postgres", pytest.param("clickhouse", marks=pytest.mark.slow)])
def test_one_bad_record_in_a_hundred_is_a_dead_letter_and_all_others_land(
    scene: Scene, request: pytest.FixtureRequest, kind: str
) -> None:
    target: Target = request.getfixturevalue(kind)
    scene.migrate(target, **{"max.message.bytes": str(LARGE + 100_000)})
    began_ms = time.time() * 1000
    records = scene.records(8_000)
    spoiled: dict[int, str] = {}
    names = [name for name in SPOILS if name != "too large"]
    for n, i in enumerate(sorted(RANDOM.sample(range(len(records)), len(records) // 100))):
        spoiled[i] = "too large" if n == 40 else names[n % len(names)]
    sent = [
        (key, SPOILS[spoiled[i]][0](value) if i in spoiled else value)
        for i, (key, value) in enumerate(records)
    ]
    places = scene.publish(sent, headers=HEADERS)
    bad = {i: name for i, name in spoiled.items() if name not in LANDS[kind]}

    inserter = scene.inserter(target, "--drain", "--max-rows", "2000")
    output = inserter.finish()
    assert f"landed {len(records) - len(bad):,} rows" in output
    assert f"{len(bad):,} dead letters" in output

    # 1. everything else has landed, once
    rows = len(records) - len(bad)
    assert target.distinct(scene.table) == (rows, rows)
    assert all(committed >= 0 for committed in scene.committed().values())
    # 2. each bad record is there once, as it was, and says where it came from, why and when
    letters = scene.read(scene.dlq)
    by_place = {(int(header(m, "partition")), int(header(m, "offset"))): m for m in letters}
    assert len(by_place) == len(letters) == len(bad)
    assert set(by_place) == {places[i] for i in bad}
    for i, name in bad.items():
        letter = by_place[places[i]]
        _spoil, expected_kind, word = SPOILS[name]
        assert (letter.key(), letter.value()) == sent[i], name
        assert letter.headers()[: len(HEADERS)] == HEADERS
        assert header(letter, "topic") == scene.topic
        assert header(letter, "kind") == expected_kind, name
        assert word in header(letter, "reason"), name
        assert header(letter, "reason"), name
        assert began_ms <= int(header(letter, "attempted_ms")) <= time.time() * 1000


@pytest.mark.parametrize("kind", ["postgres", pytest.param("clickhouse", marks=pytest.mark.slow)])
def test_a_stream_of_rubbish_stops_the_inserter_before_a_tenth_of_a_window_is_dead_letters(
    scene: Scene, request: pytest.FixtureRequest, kind: str
) -> None:
    """Small batches at the start hold too few records for a verdict; theirs are dead letters."""
    target: Target = request.getfixturevalue(kind)
    scene.migrate(target)
    scene.publish((None, RANDOM.randbytes(80)) for _ in range(3_000))
    inserter = scene.inserter(target, "--drain")
    assert inserter.wait() == 1, inserter.output
    assert inserter.says("looks like the wrong message type")
    assert inserter.says("--max-dead-share")
    assert "Traceback" not in inserter.output
    sent = len(scene.read(scene.dlq))
    assert sent <= 100
    assert target.rows(scene.table) == 0
    # Committed is at most what is in the dead letters, and nothing of the batch that stopped it.
    # The other lane may have been stopped between its dead letters and their commit.
    assert sum(max(at, 0) for at in scene.committed().values()) <= sent
    # Whoever knows better may say so; then they are dead letters like any other.
    output = scene.inserter(target, "--drain", "--max-dead-share", "1").finish()
    letters = scene.read(scene.dlq)
    assert len({(header(m, "partition"), header(m, "offset")) for m in letters}) == 3_000
    assert len(letters) <= 3_000 + sent
    # One line says so, not one for each.
    assert output.count(f"went to {scene.dlq}") == 1
