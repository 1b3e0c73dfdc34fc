"""A real `headrace collect` on real Kafka: formats, TLS, HTTP/2, stops, kills, outages, limits."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import signal
import socket
import ssl
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme
from collecting import Collector
from confluent_kafka import Consumer, TopicPartition

from headrace.stack import Endpoints, Stack
from ingest.spool.reader import Reader
from ingest.streams import BUILT_IN, Stream
from ingest.topics import ensure

TIME = "2025-06-16T22:50:12.226Z"
PATIENCE_S = 30.0
NOWHERE = "127.0.0.1:1"


def log(number: int, device: str = "d") -> dict[str, Any]:
    return {"deviceId": device, "timestamp": TIME, "colo": str(number)}


def read(kafka: str, stream: Stream, count: int) -> list[Any]:
    """All messages of the topic, once there are so many; it has one partition."""
    consumer = Consumer(
        {"bootstrap.servers": kafka, "group.id": "test", "isolation.level": "read_committed",
         "enable.auto.commit": False, "auto.offset.reset": "earliest"}
    )  # fmt: skip
    consumer.assign([TopicPartition(stream.topic, 0, 0)])
    found: list[Any] = []
    deadline = time.monotonic() + PATIENCE_S
    try:
        # A little longer than until there are enough: were there one too many, it would be seen.
        while (more := consumer.consume(1000, 0.3)) or len(found) < count:
            found += more
            assert time.monotonic() < deadline, f"{len(found)} of {count} messages"
    finally:
        consumer.close()
    return [stream.message.FromString(message.value()) for message in found]


def numbers(messages: list[Any]) -> list[int]:
    return [int(message.colo) for message in messages]


@pytest.fixture
def stream(endpoints: Endpoints, unique: Callable[[str], str]) -> Stream:
    """device_state with a topic of this test's own."""
    found = replace(BUILT_IN["device_state"], topic=unique("collected"))
    ensure({"bootstrap.servers": endpoints.kafka}, {found.topic: 1})
    return found


@pytest.fixture
def collector(endpoints: Endpoints, stream: Stream, tmp_path: Path) -> Iterator[Collector]:
    with made(tmp_path, endpoints.kafka, stream) as running:
        yield running


def made(folder: Path, kafka: str, stream: Stream, **more: Any) -> Collector:
    toml = f"[streams.device_state]\ntopic = '{stream.topic}'\n"
    return Collector(folder, kafka=kafka, toml=toml, **more)


def post(collector: Collector, body: Any, query: str = "", **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return collector.client.post(
        f"{collector.url}/v1/logs/device_state{query}",
        content=content,
        headers={"Content-Type": "application/json", **names},
    )


def delimited(*messages: bytes) -> bytes:
    assert all(len(message) < 128 for message in messages)
    return b"".join(bytes([len(message)]) + message for message in messages)


def test_logs_of_every_format_land_in_the_topic(
    collector: Collector, endpoints: Endpoints, stream: Stream
) -> None:
    assert post(collector, log(0)).json() == {"accepted": 1, "refused": []}
    assert post(collector, [log(1), log(2), {}]).json()["accepted"] == 2
    lines = "\n".join(json.dumps(log(n)) for n in (3, 4)).encode()
    assert post(collector, lines, Content_Type="application/x-ndjson").status_code == 202
    packed = gzip.compress(lines.replace(b'"3"', b'"5"').replace(b'"4"', b'"6"'))
    assert post(collector, packed, Content_Encoding="gzip").status_code == 202
    message = stream.message(device_id="d", colo="7")
    message.timestamp.FromJsonString(TIME)
    body = delimited(message.SerializeToString())
    answer = post(collector, body, Content_Type="application/x-protobuf; delimited=true")
    assert answer.status_code == 202
    assert numbers(read(endpoints.kafka, stream, 8)) == list(range(8))


def test_an_event_lands_byte_for_byte_and_segments_too(
    endpoints: Endpoints, stream: Stream, unique: Callable[[str], str], tmp_path: Path
) -> None:
    events = replace(BUILT_IN["raw_events"], topic=unique("events"))
    ensure({"bootstrap.servers": endpoints.kafka}, {events.topic: 1})
    toml = f"[streams.raw_events]\ntopic = '{events.topic}'\n"
    data = '{"event" :"é",  "deviceId":"d1", "n": 1.0e0}'
    with Collector(
        tmp_path, kafka=endpoints.kafka, toml=toml,
        store_network=True, store_headers=["user-agent"], forwarded=["127.0.0.0/8"],
    ) as collector:  # fmt: skip
        headers = {"User-Agent": "a page", "X-Forwarded-For": "9.9.9.9, 203.0.113.77"}
        url = collector.url + "/v1/events"
        assert collector.client.post(url, content=data, headers=headers).status_code == 202
        answer = collector.client.post(
            collector.url + "/v1/track", json={"event": "x", "userId": "u", "messageId": "m1"}
        )
        assert (answer.status_code, answer.json()) == (200, {"success": True})
        first, second = read(endpoints.kafka, events, 2)
    assert (first.data, first.network) == (data, "203.0.113.0/24")
    assert dict(first.headers) == {"user-agent": "a page"}
    assert (second.event_id, second.source) == ("m1", "local")


def certified(folder: Path) -> ssl.SSLContext:
    """cert.pem and key.pem for this machine; who trusts them."""
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_pem.write_to_path(folder / "key.pem")
    for blob in certificate.cert_chain_pems:
        blob.write_to_path(folder / "cert.pem", append=True)
    trusted = ssl.create_default_context()
    authority.configure_trust(trusted)
    return trusted


def test_over_tls_and_http2_it_is_the_same(
    endpoints: Endpoints, stream: Stream, tmp_path: Path
) -> None:
    trusted = certified(tmp_path)
    with (
        made(
            tmp_path, endpoints.kafka, stream, ca=trusted, tls_cert="cert.pem", tls_key="key.pem"
        ) as collector,
        httpx.Client(http2=True, verify=trusted, trust_env=False) as client,
    ):
        assert collector.url.startswith("https://")
        assert post(collector, log(0)).http_version == "HTTP/1.1"
        url = collector.url + "/v1/logs/device_state"
        for number in (1, 2):
            answer = client.post(url, json=log(number))
            assert (answer.status_code, answer.http_version) == (202, "HTTP/2")
        with pytest.raises(httpx.ConnectError):
            httpx.post(url, json=log(9), trust_env=False)  # an authority that it does not know
        assert numbers(read(endpoints.kafka, stream, 3)) == [0, 1, 2]


def test_http2_without_tls_is_taken_where_it_was_asked_for(
    endpoints: Endpoints, stream: Stream, tmp_path: Path
) -> None:
    with (
        made(tmp_path, endpoints.kafka, stream, http2="always") as collector,
        httpx.Client(http1=False, http2=True, trust_env=False) as client,
    ):
        answer = client.post(collector.url + "/v1/logs/device_state", json=log(0))
        assert (answer.status_code, answer.http_version) == (202, "HTTP/2")


def test_ack_kafka_answers_when_the_record_can_be_read(
    collector: Collector, endpoints: Endpoints, stream: Stream
) -> None:
    assert post(collector, log(0), "?ack=kafka").status_code == 202
    assert numbers(read(endpoints.kafka, stream, 1)) == [0]


def test_a_retry_with_an_idempotency_key_is_stored_once_across_a_restart(
    collector: Collector, endpoints: Endpoints, stream: Stream
) -> None:
    body = [log(0), log(1)]
    for _ in range(2):
        assert post(collector, body, Idempotency_Key="a").json()["accepted"] == 2
    assert collector.stop() == 0
    collector.start()
    assert post(collector, body, Idempotency_Key="a").json()["accepted"] == 2
    assert post(collector, [log(2)], Idempotency_Key="b").json()["accepted"] == 1
    assert numbers(read(endpoints.kafka, stream, 3)) == [0, 1, 2]


def test_while_kafka_is_away_records_are_accepted_and_delivered_later(
    stack: Stack, endpoints: Endpoints, stream: Stream, collector: Collector
) -> None:
    assert post(collector, log(0), "?ack=kafka").status_code == 202
    os.kill(stack.status().kafka.pid or 0, signal.SIGKILL)
    try:
        for number in range(1, 50):
            assert post(collector, log(number)).status_code == 202
        ready = collector.until(
            "says so", lambda: _not_moving(collector.client.get(collector.url + "/readyz"))
        )
        assert ready["ready"]
        assert collector.metric("headrace_spool_records") >= 49
        assert collector.metric("headrace_spool_stalled") == 1
        assert collector.metric("headrace_spool_oldest_seconds") > 0
    finally:
        stack.up(progress=False)
    assert numbers(read(endpoints.kafka, stream, 50)) == list(range(50))
    collector.until("empty", lambda: collector.metric("headrace_spool_records") == 0)
    assert collector.metric("headrace_collect_kafka_seconds_count") >= 1


def _not_moving(answer: httpx.Response) -> Any:
    said = answer.json()
    return answer.status_code == 200 and not said["kafka"]["moving"] and said


def test_it_starts_without_kafka_and_what_it_took_is_sent_by_the_next_start(
    endpoints: Endpoints, stream: Stream, tmp_path: Path
) -> None:
    with made(tmp_path, NOWHERE, stream, kafka_timeout_s=0.2, stop_timeout_s=0.2) as collector:
        assert post(collector, log(0)).status_code == 202
        late = post(collector, log(1), "?ack=kafka")
        assert (late.status_code, late.headers["retry-after"]) == (504, "10")
        assert "safe on disk" in late.json()["error"]["reason"]
        assert collector.stop() == 0
        assert "2 records stay in" in collector.log()
    with made(tmp_path, endpoints.kafka, stream) as collector:
        assert post(collector, log(2)).status_code == 202
        assert numbers(read(endpoints.kafka, stream, 3)) == [0, 1, 2]


def test_a_topic_that_is_missing_is_named_and_what_is_for_it_waits_for_it(
    endpoints: Endpoints, unique: Callable[[str], str], tmp_path: Path
) -> None:
    stream = replace(BUILT_IN["device_state"], topic=unique("missing"))
    with made(tmp_path, endpoints.kafka, stream) as collector:
        assert post(collector, log(0)).status_code == 202
        collector.until("says so", lambda: "headrace migrate" in collector.log())
        assert stream.topic in collector.log()
        ready = collector.client.get(collector.url + "/readyz").json()
        assert stream.topic in ready["missing_topics"]
        ensure({"bootstrap.servers": endpoints.kafka}, {stream.topic: 1})
        assert numbers(read(endpoints.kafka, stream, 1)) == [0]


def test_a_topic_that_takes_less_than_is_accepted_is_named(
    endpoints: Endpoints, unique: Callable[[str], str], tmp_path: Path
) -> None:
    stream = replace(BUILT_IN["device_state"], topic=unique("small"))
    ensure({"bootstrap.servers": endpoints.kafka}, {stream.topic: 1}, {"max.message.bytes": "5000"})
    topics = {name: unique(name) for name in BUILT_IN if name != "device_state"}
    ensure({"bootstrap.servers": endpoints.kafka}, dict.fromkeys(topics.values(), 1))
    toml = "".join(f"[streams.{name}]\ntopic = '{topic}'\n" for name, topic in topics.items())
    with Collector(
        tmp_path, kafka=endpoints.kafka,
        toml=f"{toml}[streams.device_state]\ntopic = '{stream.topic}'\n",
    ) as collector:  # fmt: skip
        collector.until(
            "says so", lambda: f"the topic {stream.topic} takes messages of 5000" in collector.log()
        )
        assert collector.log().count("(max.message.bytes)") == 1


# -- stops and kills -------------------------------------------------------------------------------


def posting(collector: Collector, clients: int, stop: Callable[[], bool]) -> Counter[int]:
    """Post from several clients until told to stop; the numbers that were acknowledged."""

    def one(client: int) -> Counter[int]:
        done: Counter[int] = Counter()
        with httpx.Client(verify=False, trust_env=False, timeout=PATIENCE_S) as http:
            number = client * 100_000
            while not stop():
                try:
                    answer = http.post(
                        collector.url + "/v1/logs/device_state", json=log(number, f"d{client}")
                    )
                except httpx.TransportError:
                    break
                if answer.status_code == 202:
                    done[number] += 1
                number += 1
        return done

    with ThreadPoolExecutor(clients) as pool:
        return sum(pool.map(one, range(1, clients + 1)), Counter())


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_whatever_ends_it_what_was_acknowledged_is_in_kafka_once_and_in_order(
    how: signal.Signals, collector: Collector, endpoints: Endpoints, stream: Stream
) -> None:
    with ThreadPoolExecutor(1) as pool:
        ended: list[bool] = []
        clients = pool.submit(posting, collector, 4, lambda: bool(ended))
        collector.until("busy", lambda: collector.metric("headrace_collect_stored_total") > 300)
        if how == signal.SIGTERM:
            assert collector.stop() == 0
        else:
            collector.kill()
        ended.append(True)
        acknowledged = clients.result()
    assert len(acknowledged) > 100
    collector.start()
    # Behind all that went before.
    assert post(collector, log(0), "?ack=kafka").status_code == 202
    found = numbers(read(endpoints.kafka, stream, len(acknowledged) + 1))
    assert len(found) == len(set(found))
    assert set(acknowledged) <= set(found)
    # SIGTERM answers what it takes; a kill may leave one of each client unanswered.
    assert len(found) - 1 - len(acknowledged) <= (0 if how == signal.SIGTERM else 4)
    for client in range(1, 5):
        own = [n for n in found if n // 100_000 == client]
        assert own == sorted(own)


def is_stopping(collector: Collector) -> bool:
    """Whether a request that comes now is too late."""
    try:
        return collector.client.get(collector.url + "/healthz").status_code == 503
    except httpx.TransportError:
        return True


def test_a_request_that_is_under_way_at_sigterm_is_answered(
    collector: Collector, endpoints: Endpoints, stream: Stream
) -> None:
    body = json.dumps(log(0)).encode()
    with connected(collector) as client:
        client.sendall(head("/v1/logs/device_state", len(body)) + body[:10])
        collector.until("reading", lambda: collector.metric("headrace_collect_inflight_bytes") > 0)
        os.kill(collector.pid, signal.SIGTERM)
        collector.until("in the middle of the stop", lambda: is_stopping(collector))
        client.sendall(body[10:])
        assert b" 202 " in client.recv(4096)
    assert collector.wait() == 0


def ended(collector: Collector) -> None:
    """It has ended by itself, not killed, and has closed what it had open."""
    assert collector.wait() == 0
    assert "it is killed" not in collector.log()
    assert not (collector.folder / "s").exists()


def test_a_body_that_never_ends_does_not_hold_up_a_stop(
    endpoints: Endpoints, stream: Stream, tmp_path: Path
) -> None:
    with (
        made(tmp_path, endpoints.kafka, stream, socket="s", stop_timeout_s=0.5) as collector,
        connected(collector) as client,
    ):
        client.sendall(head("/v1/logs/device_state", 100) + b"{")
        collector.until("reading", lambda: collector.metric("headrace_collect_inflight_bytes") > 0)
        os.kill(collector.pid, signal.SIGTERM)
        answer = client.recv(4096)
        assert b" 503 " in answer
        assert b"stopping" in answer
        ended(collector)


def test_a_connection_that_stays_does_not_hold_up_a_stop(
    endpoints: Endpoints, stream: Stream, tmp_path: Path
) -> None:
    with (
        made(
            tmp_path, endpoints.kafka, stream, socket="s", stop_timeout_s=0.5, http2="always"
        ) as collector,
        connected(collector) as client,
    ):  # fmt: skip
        # HTTP/2 with no request, from a client that does not heed a GOAWAY.
        client.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0)))
        assert client.recv(4096)
        os.kill(collector.pid, signal.SIGTERM)
        ended(collector)


def test_a_worker_that_dies_again_and_again_is_started_again_with_its_spool(
    collector: Collector, endpoints: Endpoints, stream: Stream
) -> None:
    for number in range(3):
        (worker,) = collector.workers()
        assert post(collector, log(number)).status_code == 202
        os.kill(worker, signal.SIGKILL)
        collector.until("another worker", lambda old=worker: collector.workers() not in ([], [old]))
        collector.wait_until_ready()
    assert collector.log().count("killed by SIGKILL; it is started again") == 3
    assert numbers(read(endpoints.kafka, stream, 3)) == [0, 1, 2]
    assert collector.stop() == 0


def test_what_says_that_it_listens_has_all_its_workers_and_answers(
    stream: Stream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first request behind the line is answered, and so are those to each worker."""
    collector = made(tmp_path, NOWHERE, stream, workers=3, stop_timeout_s=0.1)
    ask, asked = collector.client.get, []

    def asking(url: str) -> httpx.Response:
        asked.append(len(collector.workers()))
        return ask(url)

    monkeypatch.setattr(collector.client, "get", asking)
    with collector:
        assert asked == [3], "one request, and no retry of it"
        assert collector.log().count("listening at") == 1
        for _ in range(30):
            with connected(collector) as client:
                client.sendall(b"GET /healthz HTTP/1.1\r\nHost: here\r\n\r\n")
                assert b" 200 " in client.recv(1000)


def test_a_worker_that_can_not_start_ends_the_process_and_says_why_once(
    stream: Stream, tmp_path: Path
) -> None:
    folder = tmp_path / "spool" / "1"
    folder.mkdir(parents=True)
    (folder / "spool.db").write_bytes(b"no database" * 1000)
    said = refusal(tmp_path, stream, workers=2)
    assert said.count("headrace: ") == 1 and str(folder) in said
    assert "listening at" not in said
    assert "has ended before all were up: exit code 1" in said


def test_workers_share_the_port_and_each_has_a_spool(
    endpoints: Endpoints, stream: Stream, tmp_path: Path
) -> None:
    with made(tmp_path, endpoints.kafka, stream, workers=2) as collector:
        seen = set()
        for number in range(100):
            # A new connection each time; without authorities, which take 20 ms to read.
            with httpx.Client(verify=False, trust_env=False) as client:
                answer = client.get(collector.url + "/readyz").json()
                seen.add((answer["worker"], answer["spool"]["node"]))
                client.post(collector.url + "/v1/logs/device_state", json=log(number))
        assert {worker for worker, _ in seen} == {0, 1}
        assert len(seen) == 2
        assert sorted(numbers(read(endpoints.kafka, stream, 100))) == list(range(100))
        assert sorted(path.name for path in collector.spool.glob("?")) == ["0", "1"]
        assert collector.stop() == 0


def test_a_retry_is_stored_once_whichever_worker_gets_it(
    endpoints: Endpoints, stream: Stream, tmp_path: Path
) -> None:
    """The same 30 requests, each three times at once, on connections of their own."""

    def send(number: int) -> int:
        with httpx.Client(verify=False, trust_env=False, timeout=PATIENCE_S) as client:
            answer = client.post(
                collector.url + "/v1/logs/device_state?ack=kafka",
                json=log(number), headers={"Idempotency-Key": str(number)},
            )  # fmt: skip
        return answer.status_code

    with made(tmp_path, endpoints.kafka, stream, workers=3) as collector:
        with ThreadPoolExecutor(12) as pool:
            assert set(pool.map(send, [n for n in range(30) for _ in range(3)])) == {202}
        assert sorted(numbers(read(endpoints.kafka, stream, 30))) == list(range(30))
        assert collector.stop() == 0
    spools = [Reader(collector.spool / str(n)) for n in range(3)]
    stored = [spool.state().next_seq for spool in spools]
    for spool in spools:
        spool.close()
    assert sum(stored) == 30 and all(stored), "every worker had some"


# -- what it refuses to start with -----------------------------------------------------------------


def refusal(folder: Path, stream: Stream, **more: Any) -> str:
    collector = made(folder, NOWHERE, stream, **more)
    try:
        collector.start(ready=False)
        assert collector.wait() == 1
        said = collector.log()
        assert "Traceback" not in said
        return said
    finally:
        collector.close()


def test_a_second_collector_is_kept_out_of_the_spool_and_of_the_port(
    collector: Collector, stream: Stream, tmp_path: Path
) -> None:
    port = collector.url.rpartition(":")[2]
    options = {"spool": str(collector.spool), "listen": f"127.0.0.1:{port}"}

    def refused(option: str) -> str:
        folder = tmp_path / f"other_{option}"
        folder.mkdir()
        return refusal(folder, stream, options=(f"--{option}", options[option]))

    # Each looks for some seconds whether what it wants becomes free: both at once.
    with ThreadPoolExecutor(2) as pool:
        of_spool, of_port = pool.map(refused, options)
    assert f"is in use by process {collector.workers()[0]}" in of_spool
    assert "can't listen at" in of_port


@pytest.mark.parametrize(
    ("options", "settings", "sentence"),
    [
        (("--listen", "0.0.0.0:0"), {}, "without keys only this machine may send"),
        ((), {"keys": "none.json"}, "none.json does not exist"),
        ((), {"tls_cert": "a.pem"}, "tls_cert and tls_key go together"),
        ((), {"tls_cert": "a.pem", "tls_key": "b.pem"}, "is not possible"),
        ((), {"max_recrods": 5}, "collect.max_recrods is no setting"),
        (("--listen", "8080"), {}, "must be HOST:PORT"),
    ],
)  # fmt: skip
def test_what_can_not_be_is_said_in_one_sentence(
    options: tuple[str, ...], settings: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    said = refusal(tmp_path, BUILT_IN["device_state"], options=options, **settings)
    assert sentence in said


# -- clients that misbehave ------------------------------------------------------------------------


def connected(collector: Collector) -> socket.socket:
    host, _, port = collector.url.rpartition("/")[2].partition(":")
    return socket.create_connection((host, int(port)), PATIENCE_S)


def head(path: str, length: int) -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\n"
        f"Content-Length: {length}\r\n\r\n"
    ).encode()


def test_clients_that_are_slow_or_send_too_much_are_cut_off(
    endpoints: Endpoints, stream: Stream, tmp_path: Path
) -> None:
    with made(
        tmp_path, endpoints.kafka, stream,
        header_timeout_s=0.5, body_timeout_s=0.5, max_body_bytes=10_000,
    ) as collector:  # fmt: skip
        with connected(collector) as slow:
            slow.sendall(b"POST /v1/events HTTP/1.1\r\nHost: here\r\n")
            begun = time.monotonic()
            slow.recv(1000)
            assert time.monotonic() - begun < 5
        with connected(collector) as slow:
            slow.sendall(head("/v1/events", 100) + b"{")
            assert b" 408 " in slow.recv(1000)
        with connected(collector) as large:
            large.sendall(head("/v1/events", 10_001))
            assert b" 413 " in large.recv(1000)
        with connected(collector) as large:
            large.sendall(
                b"POST /v1/events HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\n"
                + (b"1000\r\n" + bytes(0x1000) + b"\r\n") * 3
            )
            assert b" 413 " in large.recv(1000)
        with connected(collector) as large:
            large.sendall(b"GET /healthz HTTP/1.1\r\nX: " + bytes(100_000).replace(b"\0", b"x"))
            assert b" 4" in large.recv(1000)[:13]
        assert post(collector, log(0)).status_code == 202


def test_connections_that_say_nothing_do_not_shut_the_door(
    endpoints: Endpoints, stream: Stream, tmp_path: Path
) -> None:
    with (
        made(
            tmp_path, endpoints.kafka, stream, header_timeout_s=0.5, max_connections=8
        ) as collector,
        contextlib.ExitStack() as silent,
    ):  # fmt: skip
        collector.client.close()
        for _ in range(20):
            silent.enter_context(connected(collector))
        answer = httpx.get(collector.url + "/healthz", timeout=PATIENCE_S, trust_env=False)
        assert answer.status_code == 200


@pytest.mark.parametrize("beside", [{}, {"metrics": "127.0.0.1:0"}], ids=str)
def test_whoever_reads_no_answer_does_not_shut_the_door(
    endpoints: Endpoints, stream: Stream, tmp_path: Path, beside: dict[str, str]
) -> None:
    """As many as are let in ask for more than the kernel keeps for them, and take none of it."""
    with (
        made(
            tmp_path, endpoints.kafka, stream,
            header_timeout_s=0.5, body_timeout_s=0.5, kafka_timeout_s=0.5, max_connections=4,
            **beside,
        ) as collector,
        contextlib.ExitStack() as deaf,
    ):  # fmt: skip
        collector.client.close()
        for _ in range(4):
            client = deaf.enter_context(connected(collector))
            client.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: headrace\r\n\r\n" * 200)
        answer = httpx.get(collector.url + "/healthz", timeout=PATIENCE_S, trust_env=False)
        assert answer.status_code == 200


def test_over_tls_too_whoever_says_nothing_does_not_shut_the_door(
    endpoints: Endpoints, stream: Stream, tmp_path: Path
) -> None:
    """Neither before the handshake, nor behind it, nor with half of HTTP/2's beginning."""
    trusted = certified(tmp_path)
    trusted.set_alpn_protocols(["h2"])
    with (
        made(
            tmp_path, endpoints.kafka, stream, ca=trusted, tls_cert="cert.pem", tls_key="key.pem",
            header_timeout_s=0.5, body_timeout_s=0.5, kafka_timeout_s=0.5, max_connections=8,
        ) as collector,
        contextlib.ExitStack() as silent,
    ):  # fmt: skip
        collector.client.close()
        for number in range(8):  # as many as are let in
            client = silent.enter_context(
                trusted.wrap_socket(connected(collector), server_hostname="127.0.0.1")
            )
            client.sendall(b"PRI * HT"[: 8 * (number % 2)])
        for _ in range(8):
            silent.enter_context(connected(collector))
        url = collector.url + "/healthz"
        with httpx.Client(
            http2=True, verify=trusted, timeout=PATIENCE_S, trust_env=False
        ) as client:
            answer = client.get(url)
            assert (answer.status_code, answer.http_version) == (200, "HTTP/2")
        assert "connections closed that said nothing for 1.5 s" in collector.log()


def test_a_spool_at_its_limit_says_503_and_takes_more_once_kafka_has_it(
    endpoints: Endpoints, stream: Stream, tmp_path: Path
) -> None:
    with made(tmp_path, NOWHERE, stream, max_spool_bytes=20_000, stop_timeout_s=0.2) as collector:
        taken = 0
        while (answer := post(collector, log(taken))).status_code == 202:
            taken += 1
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "10")
        assert answer.json()["error"]["code"] == "full"
        ready = collector.client.get(collector.url + "/readyz")
        assert ready.status_code == 503
        assert "limit" in ready.json()["problem"]
        assert collector.stop() == 0
    with made(tmp_path, endpoints.kafka, stream, max_spool_bytes=20_000) as collector:
        assert collector.until("room", lambda: post(collector, log(taken)).status_code == 202)
        assert numbers(read(endpoints.kafka, stream, taken + 1)) == list(range(taken + 1))
        assert collector.client.get(collector.url + "/readyz").status_code == 200
