"""What is read from a collector: true, also when something is wrong."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from asgi_client import Collector, FakeSpool, Reply

from ingest.collector.doors import doors
from ingest.collector.node import Node, left_over
from ingest.collector.openapi import describe
from ingest.collector.pages import PROJECTS, Readiness, pages
from ingest.collector.sender import Senders, truncated
from ingest.collector.settings import CollectSettings
from ingest.spool import Record, Spool
from ingest.spool.errors import SpoolError, SpoolFull, SpoolTaken
from ingest.spool.reader import Reader
from ingest.spool.store import Limits
from ingest.streams import BUILT_IN

EVENT = {"event": "click", "deviceId": "d1"}


@dataclass
class FakeRelay:
    position: int = 0
    trouble: str = ""
    error: SpoolError | None = None


@dataclass
class FakeNode:
    """What pages ask of a Node."""

    spool: FakeSpool
    limits: Limits = field(default_factory=Limits)
    relay: FakeRelay = field(default_factory=FakeRelay)
    missing_topics: tuple[str, ...] = ()
    closed: bool = False

    @property
    def dead(self) -> bool:
        return self.relay.error is not None or self.closed

    @property
    def state(self) -> Any:
        return self.spool.state

    def waiting(self) -> int:
        return int(self.state.next_seq - self.state.position)

    def oldest_s(self) -> float:
        return 7.5


class Served:
    """A collector with its pages."""

    def __init__(self, others: Mapping[Path, int] | None = None, **settings: Any) -> None:
        self.collector = Collector(**settings)
        self.node = FakeNode(self.collector.spool)
        node: Node = self.node  # type: ignore[assignment]  # it has what is asked of one
        self.collector.app._pages = pages(
            Readiness(node, self.collector.acks, 0, others or {}),
            node,
            self.collector.intake.tally,
            describe(doors(BUILT_IN), BUILT_IN, self.collector.settings, False),
            with_metrics=True,
        )

    async def get(self, path: str, method: str = "GET", **headers: str) -> Reply:
        return await self.collector.request(method, path, headers=headers, length=None)


def run(test: Callable[[Served], Any], **more: Any) -> None:
    async def running() -> None:
        await asyncio.wait_for(test(Served(**more)), 30)

    asyncio.run(running())


def test_a_collector_is_ready_and_alive_and_says_what_waits() -> None:
    async def test(served: Served) -> None:
        assert (await served.get("/healthz")).status == 200
        reply = await served.get("/readyz")
        assert (reply.status, reply.json["ready"], reply.json["problem"]) == (200, True, None)
        assert reply.json["kafka"] == {"moving": True, "trouble": None}

    run(test)


def test_kafka_being_away_is_said_and_is_no_reason_to_be_unready() -> None:
    async def test(served: Served) -> None:
        served.node.relay.trouble = "Connection refused"
        reply = await served.get("/readyz")
        assert (reply.status, reply.json["kafka"]["trouble"]) == (200, "Connection refused")
        assert b"\nheadrace_spool_stalled 1.0" in (await served.get("/metrics")).body

    run(test)


@pytest.mark.parametrize(
    ("host", "near"),
    [
        ("127.0.0.1:8080", True), ("localhost", True), ("LOCALHOST:8080", True),
        ("[::1]:8080", True), ("[::1]", True), ("127.0.0.1", True), ("", True),
        ("evil.example:8080", False), ("localhost.evil.example", False), ("10.0.0.1:8080", False),
        ("[2001:db8::1]:8080", False), ("127.0.0.1.evil.example:1", False), ("[", False),
    ],
)  # fmt: skip
def test_a_page_whose_hosts_name_leads_here_all_of_a_sudden_is_no_neighbour(
    host: str, near: bool
) -> None:
    async def test(served: Served) -> None:
        assert (await served.get("/metrics", host=host)).status == (200 if near else 403)
        assert ("problem" in (await served.get("/readyz", host=host)).json) is near

    run(test)


def test_a_relay_that_has_stopped_for_good_is_unready() -> None:
    async def test(served: Served) -> None:
        served.node.relay.error = SpoolTaken("another process sends it")
        reply = await served.get("/readyz")
        assert reply.status == 503
        assert "another process sends it" in reply.json["problem"]

    run(test)


@pytest.mark.parametrize("header", ["X-Forwarded-For", "Forwarded", "Via"])
def test_another_machine_is_told_whether_it_is_ready_and_no_more(header: str) -> None:
    async def test(served: Served) -> None:
        served.node.relay.error = SpoolTaken("another process sends it")
        reply = await served.get("/readyz", **{header: "203.0.113.7"})
        assert (reply.status, reply.json) == (503, {"ready": False})
        assert (await served.get("/metrics", **{header: "203.0.113.7"})).status == 403
        for address in ("203.0.113.7", "::ffff:203.0.113.7"):
            served.collector.address = address
            assert (await served.get("/readyz")).json == {"ready": False}
            assert (await served.get("/metrics")).status == 403
        for address in ("127.0.0.9", "::1", "::ffff:127.0.0.1"):
            served.collector.address = address
            assert "problem" in (await served.get("/readyz")).json
            assert (await served.get("/metrics")).status == 200

    run(test)


@pytest.mark.parametrize("part", ["writer", "relay"])
def test_a_process_whose_writer_or_relay_has_ended_for_good_is_to_be_restarted(part: str) -> None:
    async def test(served: Served) -> None:
        if part == "writer":
            served.node.closed = True
        else:
            served.node.relay.error = SpoolError("the relay has failed")
        assert (await served.get("/healthz")).status == 503

    run(test)


def test_a_disk_that_was_full_is_unready_until_it_takes_something_with_or_without_traffic() -> None:
    async def test(served: Served) -> None:
        assert (await served.collector.post("/v1/events", EVENT)).status == 202
        served.collector.spool.refuse = lambda _: SpoolFull("the disk is full")
        assert (await served.collector.post("/v1/events", EVENT)).status == 503
        for _ in range(2):
            reply = await served.get("/readyz")
            assert (reply.status, reply.json["problem"]) == (503, "the disk is full")
        served.collector.spool.refuse = lambda _: None
        assert (await served.get("/readyz")).status == 200

    run(test)


async def on_a_disk_that_fills(served: Served, folder: Path, events: Sequence[Any]) -> None:
    """For a process of its own: its files may grow no more, and then they may again."""
    known, *others = events
    assert (await served.collector.post("/v1/events", known)).status == 202
    before = served.node.state
    size = (folder / "spool.db-wal").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    assert (await served.collector.post("/v1/events", others)).code == "full"
    for _ in range(2):
        reply = await served.get("/readyz")
        assert (reply.status, "can't be written" in reply.json["problem"]) == (503, True)
    # What is there already needs no room, and says nothing of it: alone, and in one append with
    # what /readyz asks.
    assert (await served.collector.post("/v1/events", known)).status == 202
    assert (await served.get("/readyz")).status == 503
    found = await asyncio.gather(served.get("/readyz"), served.collector.post("/v1/events", known))
    assert [reply.status for reply in found] == [503, 202]
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    assert (await served.get("/readyz")).status == 200
    assert served.node.state == before
    with closing(Reader(folder)) as reader:
        assert reader.state() == before
    assert (await served.collector.post("/v1/events", others)).status == 202


def test_a_real_disk_that_is_full_is_unready_until_a_page_can_be_written(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from test_collect_pages import EVENT, on_a_disk_that_fills, run\n"
        "from ingest.spool import Spool\n"
        "folder = Path(sys.argv[1])\n"
        "events = [{**EVENT, 'eventId': str(n), 'properties': {'n': 'x' * 9000}} for n in (1, 2)]\n"
        "with Spool(folder) as spool:\n"
        "    run(lambda served: on_a_disk_that_fills(served, folder, events), spool=spool)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(Path(__file__).parent), *sys.path))},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_metrics_are_of_this_moment() -> None:
    async def test(served: Served) -> None:
        def value(text: bytes, name: str) -> float:
            found = [line for line in text.decode().splitlines() if line.startswith(name + " ")]
            return float(found[0].split()[1])

        name = 'headrace_collect_accepted_total{door="sparrow"}'
        await served.collector.post("/v1/events", EVENT)
        before = (await served.get("/metrics")).body
        for _ in range(3):
            await served.collector.post("/v1/events", EVENT)
        reply = await served.get("/metrics")
        assert reply.headers["content-type"].startswith("text/plain")
        assert value(reply.body, name) == value(before, name) + 3
        assert value(reply.body, "headrace_spool_oldest_seconds") == 7.5
        assert value(reply.body, "headrace_spool_records") == 4

    run(test)


def test_the_script_is_served_to_every_page_and_only_once() -> None:
    async def test(served: Served) -> None:
        whole = await served.get("/sparrow.js")
        assert whole.status == 200
        assert whole.headers["content-type"].startswith("text/javascript")
        assert whole.headers["access-control-allow-origin"] == "*"
        assert "max-age" in whole.headers["cache-control"]
        same = await served.get("/sparrow.js", **{"If-None-Match": whole.headers["etag"]})
        assert (same.status, same.body) == (304, b"")

    run(test)


@pytest.mark.parametrize(
    "path", ["/healthz", "/readyz", "/openapi.json", "/metrics", "/sparrow.js"]
)
def test_head_is_get_without_a_body_and_others_are_405(path: str) -> None:
    async def test(served: Served) -> None:
        head = await served.get(path, "HEAD")
        assert (head.status, head.body) == (200, b"")
        refused = await served.get(path, "POST")
        assert (refused.status, refused.headers["allow"]) == (405, "GET, HEAD, OPTIONS")

    run(test)


def test_segments_browser_library_is_told_to_come_here() -> None:
    async def test(served: Served) -> None:
        reply = await served.get(f"{PROJECTS}KEY/settings", Host="collect.example:8080")
        told = reply.json["integrations"]["Segment.io"]
        assert (told["apiKey"], told["apiHost"]) == ("KEY", "collect.example:8080/v1")
        assert reply.headers["access-control-allow-origin"] == "*"
        assert (await served.get(f"{PROJECTS}KEY/other", Host="x")).status == 404

    run(test)


@pytest.mark.parametrize(
    ("forwarded", "said", "protocol"),
    [
        (("127.0.0.0/8",), "https", "https"),
        (("127.0.0.0/8",), "http, HTTPS", "https"),
        (("127.0.0.0/8",), "javascript", "http"),
        (("10.0.0.0/8",), "https", "http"),
        ((), "https", "http"),
    ],
)
def test_segments_browser_library_comes_again_as_it_came_to_a_proxy_of_ours(
    forwarded: tuple[str, ...], said: str, protocol: str
) -> None:
    async def test(served: Served) -> None:
        reply = await served.get(
            f"{PROJECTS}KEY/settings", Host="collect.example", **{"X-Forwarded-Proto": said}
        )
        assert reply.json["integrations"]["Segment.io"]["protocol"] == protocol

    run(test, forwarded=forwarded)


def test_the_description_is_json_and_names_every_door_and_page() -> None:
    async def test(served: Served) -> None:
        said = (await served.get("/openapi.json")).json
        assert set(said["paths"]) == {
            *doors(BUILT_IN), *served.collector.app._pages, "/v1/projects/{writeKey}/settings",
        }  # fmt: skip
        text = json.dumps(said)
        for name in {part.partition('"')[0] for part in text.split("#/components/schemas/")[1:]}:
            assert name in said["components"]["schemas"]
        assert "401" not in said["paths"]["/v1/events"]["post"]["responses"]
        # A page that may be 503 says so.
        for page in ("/healthz", "/readyz"):
            assert set(said["paths"][page]["get"]["responses"]) == {"200", "503"}

    run(test)


def test_with_keys_the_description_says_so() -> None:
    said = describe(doors(BUILT_IN), BUILT_IN, CollectSettings(workers=2), True)
    assert "401" in said["paths"]["/v1/events"]["post"]["responses"]
    assert "/metrics" not in said["paths"]


def test_a_spool_of_a_worker_that_there_is_no_more_is_found(tmp_path: Path) -> None:
    for worker, records in ((0, 2), (1, 0), (2, 3)):
        with Spool(tmp_path / str(worker)) as spool:
            spool.append([Record("t", None, b"v")] * records).result()
    assert left_over(tmp_path, 1) == {tmp_path / "2": 3}
    assert left_over(tmp_path, 3) == {}


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("203.0.113.77", "203.0.113.0/24"),
        ("2001:db8:1:2::3", "2001:db8:1::/48"),
        ("::ffff:203.0.113.77", "203.0.113.0/24"),
        ("fe80::1%eth0", "fe80::/48"),
        ("unknown", ""),
        ("", ""),
    ],
)
def test_addresses_are_kept_truncated(address: str, network: str) -> None:
    assert truncated(address) == network


@pytest.mark.parametrize(
    ("client", "forwarded", "network"),
    [
        ("198.51.100.1", "203.0.113.7", "198.51.100.0/24"),  # a claim of the sender's own
        ("10.0.0.1", "203.0.113.7", "203.0.113.0/24"),
        ("10.0.0.1", "1.1.1.1, 203.0.113.7, 10.0.0.2", "203.0.113.0/24"),
        ("10.0.0.1", "", ""),
    ],
)
def test_a_proxy_of_ours_is_believed_and_nobody_else(
    client: str, forwarded: str, network: str
) -> None:
    senders = Senders(CollectSettings(store_network=True, forwarded=("10.0.0.0/8",)))
    headers = [(b"x-forwarded-for", forwarded.encode())]
    assert senders.caller("web", (client, 1), headers).network == network


def test_nothing_of_a_sender_is_kept_unless_configured() -> None:
    headers = [(b"user-agent", b"me"), (b"x-forwarded-for", b"203.0.113.7")]
    plain = Senders(CollectSettings()).caller("web", ("203.0.113.7", 1), headers)
    assert (plain.network, plain.headers) == ("", ())
    kept = Senders(CollectSettings(store_headers=("user-agent",)))
    assert kept.caller("web", ("203.0.113.7", 1), headers).headers == (("user-agent", "me"),)
