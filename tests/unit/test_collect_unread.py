"""A refusal reaches its sender over a real connection, however much is still to be sent."""

from __future__ import annotations

import http.client
from collections.abc import Iterator, Mapping

import httpx
import pytest
from collecting import Collector

from ingest.collector.key import new_secret
from ingest.collector.keyfile import add

LOGS = "/v1/logs/device_state"
MOST = 1_000_000
SECRET = new_secret()
KEY = {"Authorization": f"Bearer {SECRET}"}
USED_UP = new_secret()
LOG = b'{"deviceId": "d1", "timestamp": "2025-06-16T22:50:12.226Z"}'

# More than any buffer on the way holds.
CASES = [
    pytest.param("/nope", MOST - 1, {}, 404, "path", id="404"),
    pytest.param("/healthz", MOST - 1, {}, 405, "method", id="405"),
    pytest.param(LOGS, MOST - 1, {}, 401, "key", id="401"),
    pytest.param("/v1/events", MOST - 1, KEY, 403, "forbidden", id="403"),
    pytest.param(LOGS, MOST - 1, {"Authorization": f"Bearer {USED_UP}"}, 429, "rate", id="429"),
    pytest.param(LOGS, 2 * MOST - 1, KEY, 413, "body_too_large", id="413"),
]


@pytest.fixture(scope="module")
def collector(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Collector]:
    """One that needs no Kafka, for nothing is stored but one record."""
    folder = tmp_path_factory.mktemp("collector")
    keys = folder / "keys.json"
    add(keys, SECRET, {"source": "logs", "streams": ["device_state"]})
    add(keys, USED_UP, {"source": "web", "rate": 0.001, "burst": 1})
    with Collector(
        folder, kafka="127.0.0.1:1", keys="keys.json", http2="always", max_body_bytes=MOST,
        header_timeout_s=60,  # its PINGs would keep a client waiting that is stuck
    ) as found:  # fmt: skip
        headers = {"Authorization": f"Bearer {USED_UP}", "Content-Type": "application/json"}
        assert found.client.post(found.url + LOGS, content=LOG, headers=headers).status_code == 202
        yield found


@pytest.mark.parametrize(("path", "size", "headers", "status", "code"), CASES)
def test_a_refusal_arrives_over_http_1_and_the_connection_stays(
    collector: Collector, path: str, size: int, headers: Mapping[str, str], status: int, code: str
) -> None:
    connection = http.client.HTTPConnection(collector.url.removeprefix("http://"), timeout=30)
    try:
        for _ in range(3):
            # Whoever reconnects hears nothing of what became of the first connection.
            connection.auto_open = not connection.sock
            connection.request("POST", path, bytes(size), dict(headers))
            answer = connection.getresponse()
            assert (answer.status, code in answer.read().decode()) == (status, True)
            assert (answer.headers["Retry-After"] is not None) == (status == 429)
    finally:
        connection.close()


@pytest.mark.parametrize(("path", "size", "headers", "status", "code"), CASES)
def test_a_refusal_arrives_over_http_2(
    collector: Collector, path: str, size: int, headers: Mapping[str, str], status: int, code: str
) -> None:
    pytest.importorskip("h2")
    with httpx.Client(http1=False, http2=True, timeout=30, trust_env=False) as client:
        for _ in range(3):
            answer = client.post(collector.url + path, content=bytes(size), headers=headers)
            assert answer.json()["error"]["code"] == code
            assert answer.status_code == status


def test_what_has_no_body_is_refused_at_once(collector: Collector) -> None:
    for method, path in (("GET", "/nope"), ("DELETE", "/healthz"), ("HEAD", LOGS)):
        answer = collector.client.request(method, collector.url + path, timeout=5)
        assert answer.status_code in (404, 405)
