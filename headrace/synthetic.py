"""Synthetic tests of a made-up fleet: HTTP fetches and traceroutes against customers' targets.

A customer has up to ten tests (of both kinds together), each with a target and an interval of five
minutes or a multiple of it; a share of the customer's devices runs them, every test at a phase of
its own. The same seed gives the same tests and the same results, see `headrace.fleet`.
"""

from __future__ import annotations

import uuid
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from random import Random

from google.protobuf.timestamp_pb2 import Timestamp

from headrace.fleet import Device, Records, seeded
from ingest.gen.headrace.v1.http_test_pb2 import HttpTest
from ingest.gen.headrace.v1.traceroute_test_pb2 import TracerouteTest
from ingest.units import SECOND_US

__all__ = ["Tests"]

_TICK_US = 300_000_000  # no test runs more often than every five minutes
_HOSTS = (
    "www.example.com", "mail.example.com", "intranet.example.net", "wiki.example.net",
    "git.example.org", "crm.example.com", "sso.example.org", "api.example.com",
    "files.example.net", "meet.example.org", "erp.example.com", "hr.example.net",
)  # fmt: skip
_STAGES = (
    "name not resolved", "connection timed out", "TLS handshake failed", "no answer within 10 s",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Run:
    """One test on one device; it runs in each `period`th tick, counted from `first`."""

    device: Device
    test_id: str
    target: str
    period: int
    first: int
    phase_us: int
    rtt_ms: float
    hops: tuple[str, ...]


class Tests:
    """The tests of one kind that a fleet runs in [start, until)."""

    def __init__(
        self, devices: Sequence[Device], start_us: int, until_us: int, seed: int, stream: str
    ) -> None:
        self._start_us, self._until_us, self._stream = start_us, until_us, stream
        self._seed = seed
        self._runs = _plan(devices, seeded(seed, "tests"), stream)
        self._phases = [run.phase_us for run in self._runs]

    def expected(self) -> int:
        """How many results there will be."""
        whole, rest = divmod(self._until_us - self._start_us, _TICK_US)
        return sum(
            len(range(run.first, whole + (run.phase_us < rest), run.period)) for run in self._runs
        )

    def records(self) -> Iterator[Records]:
        """The results in order of time, a second at a time."""
        random = seeded(self._seed, self._stream)
        result = _http if self._stream == "http_test" else _traceroute
        for tick in range(-(-(self._until_us - self._start_us) // _TICK_US)):
            begin_us = self._start_us + tick * _TICK_US
            due = self._runs[: bisect_left(self._phases, self._until_us - begin_us)]
            now = ((begin_us + run.phase_us, run) for run in due if tick % run.period == run.first)
            for second, runs in groupby(now, lambda due: due[0] // SECOND_US):
                keys, values = [], []
                for time_us, run in runs:
                    message = result(run, time_us, random)
                    keys.append(run.device.device_id.encode())
                    values.append(message.SerializeToString(deterministic=True))
                yield Records(self._stream, second * SECOND_US, keys, values)


def _plan(devices: Sequence[Device], random: Random, stream: str) -> list[_Run]:
    """Who runs what, ordered by phase. Both kinds draw alike, so that ten is the limit for both."""
    # (stream, id, host, period in ticks) by account, and the share of its devices that take part.
    accounts: dict[int, tuple[float, list[tuple[str, str, str, int]]]] = {}
    for account in sorted({device.account for device in devices}):
        tests = [
            (
                "http_test" if random.random() < 0.7 else "traceroute_test",
                str(uuid.UUID(int=random.getrandbits(128), version=4)),
                _HOSTS[int(random.random() * len(_HOSTS))],
                (1, 1, 2, 3, 6, 12)[int(random.random() * 6)],
            )
            # Most customers with tests have a few; some use up all ten.
            for _ in range(min(10, int(1 / (0.05 + random.random()))))
        ]
        accounts[account] = (0.6 * random.random() if random.random() < 0.7 else 0.0, tests)
    runs = []
    for device in devices:
        share, tests = accounts[device.account]
        if random.random() >= share:
            continue
        subnet = random.getrandbits(8)
        for kind, test_id, host, period in tests:
            first, phase_ms = int(random.random() * period), int(random.random() * 300_000)
            rtt_ms, length = 4 + 60 * random.random() ** 2, 4 + int(random.random() * 10)
            bits = random.getrandbits(64)
            if kind != stream:
                continue
            http = stream == "http_test"
            runs.append(
                _Run(
                    device=device,
                    test_id=test_id,
                    target=f"https://{host}/" if http else host,
                    period=period,
                    first=first,
                    phase_us=phase_ms * 1000,
                    rtt_ms=rtt_ms,
                    hops=() if http else _route(subnet, bits, length),
                )
            )
    runs.sort(key=lambda run: run.phase_us)
    return runs


def _route(subnet: int, bits: int, length: int) -> tuple[str, ...]:
    """Addresses from the device's gateway to the target; "" is a router that never answers."""
    hops = [f"192.168.{subnet}.1"]
    for hop in range(1, length):
        byte = bits >> hop & 255
        hops.append("" if byte < 18 and hop < length - 1 else f"198.51.{100 + hop}.{byte}")
    return tuple(hops)


def _timestamp(time_us: int) -> Timestamp:
    seconds, us = divmod(time_us, SECOND_US)
    return Timestamp(seconds=seconds, nanos=us * 1000)


def _http(run: _Run, time_us: int, random: Random) -> HttpTest:
    """One fetch: each phase ends after the one before; a failure leaves the later ones unset."""
    slow = 5.0 if random.random() < 0.02 else 1.0
    ends, now = [], 0.0
    # Round trips that a phase takes: name, TCP, TLS, request and server, body.
    for trips in (0.4, 1.0, 1.6, 2.2, 0.5):
        now += 0.05 + run.rtt_ms * trips * slow * (0.75 + random.random() / 2)
        ends.append(round(now, 3))
    luck, reached = random.random(), len(ends)
    status = 200 if luck < 0.955 else 503 if luck < 0.965 else 403 if luck < 0.97 else 404
    if luck >= 0.975:
        reached = int(random.random() * len(_STAGES))
    answered = reached == len(ends)
    names = ("dns_ms", "connect_ms", "tls_ms", "ttfb_ms", "total_ms")
    return HttpTest(
        timestamp=_timestamp(time_us),
        account_id=run.device.account_id,
        device_id=run.device.device_id,
        test_id=run.test_id,
        target=run.target,
        colo=run.device.colo,
        status_code=status if answered else None,
        error=None if answered else _STAGES[reached],
        **dict(zip(names, ends[:reached], strict=False)),
    )


def _traceroute(run: _Run, time_us: int, random: Random) -> TracerouteTest:
    """One trace of three probes a hop; one that fails ends in hops without an answer."""
    lost = random.random() < 0.03
    cut = 1 + int(random.random() * (len(run.hops) - 1)) if lost else len(run.hops)
    hops = []
    for number, address in enumerate(run.hops):
        if not address or number >= cut:
            hops.append(TracerouteTest.Hop(loss=1.0))
            continue
        far = run.rtt_ms * (number + 1) / len(run.hops)
        rtts = [
            round(0.2 + far * (0.9 + random.random() / 4), 3)
            for _ in range(3)
            if random.random() >= 0.02
        ]
        hops.append(
            TracerouteTest.Hop(
                address=address if rtts else "", rtts_ms=rtts, loss=(3 - len(rtts)) / 3
            )
        )
    return TracerouteTest(
        timestamp=_timestamp(time_us),
        account_id=run.device.account_id,
        device_id=run.device.device_id,
        test_id=run.test_id,
        target=run.target,
        colo=run.device.colo,
        hops=hops,
        error=f"target not reached after {len(run.hops)} hops" if lost else None,
    )
