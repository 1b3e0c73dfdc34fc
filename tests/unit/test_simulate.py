"""The simulator: the same fleet every time, in order, and byte for byte what protobuf writes."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from itertools import groupby, pairwise

import click
import orjson
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.cli.simulate import paced
from headrace.cli.simulate import simulate as command
from headrace.cli.when import DURATION, TIME, rfc3339
from headrace.fleet import Records, population, seeded
from headrace.simulate import STREAMS, Fleet
from ingest.gen.headrace.v1.device_state_pb2 import DeviceState
from ingest.gen.headrace.v1.http_test_pb2 import HttpTest
from ingest.gen.headrace.v1.traceroute_test_pb2 import TracerouteTest
from ingest.units import HOUR_US

START_US = 1_750_114_212_226_001
MESSAGES = {"device_state": DeviceState, "http_test": HttpTest, "traceroute_test": TracerouteTest}


def everything(fleet, stream, size=1000):
    """All (key, value) of a stream."""
    return [
        pair
        for records in fleet.batches(size, [stream])
        for pair in zip(records.keys, records.values, strict=True)
    ]


def decoded(fleet, stream):
    return [MESSAGES[stream].FromString(value) for _, value in everything(fleet, stream)]


@pytest.fixture(scope="module")
def fleet():
    return Fleet(200, 120, START_US, START_US + 8 * HOUR_US, seed=3)


@pytest.mark.parametrize("stream", STREAMS)
def test_the_same_arguments_make_the_same_bytes_however_they_are_cut(stream, fleet):
    again = Fleet(200, 120, START_US, START_US + 8 * HOUR_US, seed=3)
    whole = everything(fleet, stream, 10**9)
    assert whole == everything(fleet, stream, 7) == everything(again, stream, 1)
    assert whole == [
        pair
        for records in fleet.batches(64, STREAMS)
        if records.stream == stream
        for pair in zip(records.keys, records.values, strict=True)
    ]


def test_the_bytes_are_the_same_on_every_machine_and_version_of_python():
    fleet = Fleet(50, 60, START_US, START_US + HOUR_US, seed=1)
    digest = hashlib.sha256(b"".join(k + v for k, v in everything(fleet, "device_state")))
    assert digest.hexdigest() == "8093eaca60f9d93a1628a882ccaa1f7065b2d77f3b7772e54a4091c2ff9e3a55"


def test_another_seed_is_another_fleet(fleet):
    other = Fleet(200, 120, START_US, START_US + HOUR_US, seed=4)
    assert not {d.device_id for d in fleet.devices} & {d.device_id for d in other.devices}


@given(
    devices=st.integers(1, 40),
    every_s=st.integers(1, 400),
    start_us=st.one_of(
        st.integers(1_000_000, 2**34 * 1_000_000),
        st.integers(1, 2**34).map(lambda s: s * 1_000_000),
    ),
    span_us=st.integers(0, 1000 * 1_000_000),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=60, deadline=None)
def test_every_value_is_what_protobuf_itself_would_write(devices, every_s, start_us, span_us, seed):
    fleet = Fleet(devices, every_s, start_us, start_us + span_us, seed)
    last_us = 0
    count = 0
    for key, value in everything(fleet, "device_state"):
        message = DeviceState.FromString(value)
        assert message.SerializeToString(deterministic=True) == value
        assert message.device_id.encode() == key
        time_us = message.timestamp.ToMicroseconds()
        assert start_us <= time_us < start_us + span_us
        assert last_us <= time_us
        last_us = time_us
        count += 1
    assert count == fleet.expected("device_state")


@pytest.mark.parametrize("stream", STREAMS)
def test_records_are_in_order_of_time_and_as_many_as_expected(stream, fleet):
    times = [m.timestamp.ToMicroseconds() for m in decoded(fleet, stream)]
    assert len(times) == fleet.expected(stream) > 0
    assert times == sorted(times)
    assert times[0] >= START_US and times[-1] < START_US + 8 * HOUR_US


def test_every_device_reports_once_an_interval(fleet):
    times = defaultdict(list)
    for message in decoded(fleet, "device_state"):
        times[message.device_id].append(message.timestamp.ToMicroseconds())
    assert len(times) == 200
    for mine in times.values():
        assert {later - earlier for earlier, later in pairwise(mine)} == {120_000_000}
    assert len({mine[0] for mine in times.values()}) > 195  # each at its own phase


def test_outages_come_in_runs_and_take_their_share():
    fleet = Fleet(400, 120, START_US, START_US + 24 * HOUR_US, seed=9)
    said = defaultdict(list)
    for message in decoded(fleet, "device_state"):
        said[message.device_id].append(message.status)
    share = Counter(status for mine in said.values() for status in mine)
    assert 0.04 < share["disconnected"] / share.total() < 0.12
    runs = [
        len(list(run))
        for mine in said.values()
        for status, run in groupby(mine)
        if status == "disconnected"
    ]
    # Half an hour at two minutes is fifteen reports; independent noise would give 1.1.
    assert 10 < sum(runs) / len(runs) < 20


def test_some_devices_are_upgraded_on_the_way_and_none_is_downgraded(fleet):
    versions = defaultdict(list)
    for message in decoded(fleet, "device_state"):
        mine = versions[message.device_id]
        if message.client_version not in mine[-1:]:
            mine.append(message.client_version)
    changed = [mine for mine in versions.values() if len(mine) > 1]
    assert 0.06 < len(changed) / len(versions) < 0.3
    assert {mine[-1] for mine in changed} == {"2025.5.893.0"}
    assert max(map(len, versions.values())) == 2


def test_the_largest_customer_of_a_large_fleet_has_thirty_thousand_devices():
    sizes = Counter(d.account for d in population(300_000, 120, seeded(1, "sizes")))
    assert sizes.most_common(1)[0][1] > 30_000
    assert sizes.most_common()[len(sizes) // 2][1] < 30  # the median customer is small


def test_ids_are_shaped_as_in_the_original(fleet):
    for message in decoded(fleet, "device_state")[:200]:
        assert len(message.account_id) == 32 and int(message.account_id, 16)
        assert [len(part) for part in message.device_id.split("-")] == [8, 4, 4, 4, 12]
        assert len(message.colo) == 3 and message.colo.isupper()


def test_a_device_runs_at_most_ten_tests_and_each_every_five_minutes_at_most(fleet):
    times = defaultdict(list)
    tests = defaultdict(set)
    for stream in ("http_test", "traceroute_test"):
        for message in decoded(fleet, stream):
            tests[message.device_id].add(message.test_id)
            times[message.device_id, message.test_id].append(message.timestamp.ToMicroseconds())
    assert min(map(len, tests.values())) >= 1 and max(map(len, tests.values())) <= 10
    assert 10 < len(tests) < 150  # some devices have some
    gaps = {b - a for mine in times.values() for a, b in pairwise(mine)}
    assert gaps and min(gaps) >= 300_000_000


def test_phases_of_a_fetch_end_one_after_the_other(fleet):
    phases = ("dns_ms", "connect_ms", "tls_ms", "ttfb_ms", "total_ms")
    failed = 0
    for message in decoded(fleet, "http_test"):
        reached = [name for name in phases if message.HasField(name)]
        assert reached == list(phases[: len(reached)])
        ends = [getattr(message, name) for name in reached]
        assert all(earlier < later for earlier, later in pairwise([0.0, *ends]))
        assert message.HasField("status_code") == (len(reached) == 5)
        assert message.HasField("error") == (len(reached) < 5)
        failed += message.HasField("error")
    assert failed > 0


def test_traceroutes_have_hops_and_loss_that_agree_with_their_probes(fleet):
    losses = Counter()
    for message in decoded(fleet, "traceroute_test"):
        assert 4 <= len(message.hops) <= 13
        assert message.hops[0].address.startswith("192.168.")
        for hop in message.hops:
            assert hop.loss == pytest.approx((3 - len(hop.rtts_ms)) / 3)
            assert bool(hop.address) == bool(hop.rtts_ms)
            losses[round(hop.loss, 2)] += 1
        assert message.HasField("error") == (not message.hops[-1].rtts_ms) or (
            not message.HasField("error")
        )
    assert losses[0.0] > losses[0.33] > 0 < losses[1.0]


@pytest.mark.parametrize(
    ("devices", "every_s", "start_us", "until_us"),
    [(0, 120, START_US, START_US), (1, 0, START_US, START_US), (1, 1, START_US, START_US - 1),
     (1, 1, -5, START_US)],
)  # fmt: skip
def test_what_makes_no_fleet_is_refused(devices, every_s, start_us, until_us):
    with pytest.raises(ValueError):
        Fleet(devices, every_s, start_us, until_us)


def test_a_rate_holds_records_back_but_never_loses_one():
    now = [0.0]

    def sleep(seconds):
        now[0] += seconds

    batches = [Records("device_state", 0, [b""] * 50, [b""] * 50) for _ in range(10)]
    passed = []
    for records in paced(iter(batches), 100, clock=lambda: now[0], sleep=sleep):
        passed.append((now[0], records))
    assert [records for _, records in passed] == batches
    assert passed[-1][0] == pytest.approx(450 / 100)


def test_printing_gives_json_lines_in_the_original_spelling():
    done = CliRunner().invoke(
        command,
        ["--devices", "2", "--every", "1m", "--from", "2025-06-16T22:50:00Z",
         "--until", "2025-06-16T22:55:00Z", "--print"],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    lines = [orjson.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == 10
    assert set(lines[0]) == {
        "timestamp", "accountId", "deviceId", "colo", "status", "mode", "clientVersion",
        "clientPlatform",
    }  # fmt: skip
    assert lines[0]["timestamp"].startswith("2025-06-16T22:50:") and lines == sorted(
        lines, key=lambda line: line["timestamp"]
    )


class FakePublisher:
    """Acknowledges all but `missing` of what it is given."""

    missing = 0

    def __init__(self, bootstrap, *, streams, config):
        assert bootstrap == "localhost:1" and "device_state" in streams
        self.given = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def publish_many(self, stream, values, keys):
        assert len(values) == len(keys)
        self.given += [MESSAGES[stream].FromString(value) for value in values]

    @property
    def acknowledged(self):
        return max(0, len(self.given) - self.missing)


@pytest.mark.parametrize(("missing", "exit_code"), [(0, 0), (1, 1)])
def test_the_last_line_says_what_was_acknowledged_and_less_than_all_fails(
    monkeypatch, missing, exit_code
):
    monkeypatch.setattr("ingest.publisher.Publisher", FakePublisher)
    monkeypatch.setattr(FakePublisher, "missing", missing)
    monkeypatch.setattr("ingest.topics.topic_ids", lambda _kafka, names: dict.fromkeys(names, "id"))
    args = ["--devices", "300", "--from", "2025-06-16T22:00:00Z", "--until", "2025-06-16T23:00:00Z",
            "--streams", "all", "--seed", "7", "--kafka", "localhost:1"]  # fmt: skip
    done = CliRunner().invoke(command, args)
    assert done.exit_code == exit_code
    fleet = Fleet(300, 120, 1_750_111_200_000_000, 1_750_114_800_000_000, 7)
    counts = ", ".join(f"{name} {fleet.expected(name) - missing:,}" for name in STREAMS)
    assert done.stdout.splitlines()[-1] == f"acknowledged: {counts}"


@pytest.mark.parametrize(
    "args",
    [["--every", "1.5s"], ["--streams", "nope"], ["--from", "yesterday"], ["--rate", "fast"],
     ["--streams", "all", "--print"], ["--from", "now", "--until", "-1h"]],
)  # fmt: skip
def test_a_wrong_call_is_refused_with_exit_code_two(args):
    done = CliRunner().invoke(command, args)
    assert done.exit_code == 2
    assert "Error" in done.output


@pytest.mark.parametrize(
    ("said", "us"),
    [("2025-06-16T22:50:12.226Z", 1_750_114_212_226_000),
     ("2025-06-17T00:50:12.226001+02:00", 1_750_114_212_226_001),
     ("2025-06-16", 1_750_032_000_000_000)],
)  # fmt: skip
def test_times_are_exact_to_the_microsecond(said, us):
    assert TIME.convert(said, None, None) == us
    assert TIME.convert(rfc3339(us, "microseconds"), None, None) == us, "as it is shown, too"


@pytest.mark.parametrize(
    "said",
    ["1764111300000", "-999999w", "+999999w", f"-{'9' * 400}w", "0001-01-01T00:00:00+14:00",
     "9999-12-31T23:59:59-14:00", "-2", "- 2h", "2025-02-30", ""],
)  # fmt: skip
def test_a_time_that_is_none_or_in_no_year_is_refused(said):
    """Milliseconds since 1970 were a day of 1764, so a replay `--from` there was of all there is;
    one until a year that can't be shown kept `replay ls` from showing any."""
    with pytest.raises(click.BadParameter, match="is not a time: write 2025-06-16T22:50:00Z"):
        TIME.convert(said, None, None)


def test_relative_times_count_from_now():
    now, before = TIME.convert("now", None, None), TIME.convert("-2h", None, None)
    assert now - before == 2 * HOUR_US  # one now for the whole command
    assert DURATION.convert("1.5h", None, None) == 5400
    with pytest.raises(click.BadParameter):
        DURATION.convert("2 minutes", None, None)
