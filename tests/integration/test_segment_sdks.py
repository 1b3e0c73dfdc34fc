"""Segment's own SDKs, unchanged, with a collector as their host: each message is in `raw_events`.

The Python SDK is installed with the tests; those for Node and for browsers come from npm, at these
versions, and are skipped where there is no npm, no registry, or no browser.
"""

from __future__ import annotations

import functools
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from browser import Browser
from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

from headrace.stack import Endpoints
from ingest.gen.headrace.v1.raw_event_pb2 import RawEvent
from ingest.topics import ensure

NODE_SDK = "@segment/analytics-node@3.1.0"
BROWSER_SDK = "@segment/analytics-next@1.84.3"
DEADLINE_S = 40.0
CALLS = ["alias", "group", "identify", "page", "screen", "track"]

PYTHON = """
import json, sys
from segment.analytics.client import Client

host, key, zipped, sync = sys.argv[1], sys.argv[2], sys.argv[3] == "gzip", sys.argv[4] == "sync"
failed = []
sdk = Client(key, host=host, gzip=zipped, sync_mode=sync, upload_size=4, max_retries=1,
             on_error=lambda error, batch: failed.append(str(error)))
sent = [
    sdk.identify("michelle1", {"plan": "pro"}),
    sdk.track("michelle1", "purchase product", {"category": "billing", "price": 2**70}),
    sdk.page("michelle1", "docs", "Home", {"url": "https://example.com/\\ud83d"}),
    sdk.screen(anonymous_id="desktop1", name="Start"),
    sdk.group("michelle1", 7, {"name": "Zürich"}),
    sdk.alias("anon-1", "michelle1"),
]
if not sync:
    sdk.shutdown()
assert not failed, failed
print(json.dumps([message for _, message in sent]))
"""

NODE = """
const { Analytics } = require("@segment/analytics-node");
const [host, writeKey] = process.argv.slice(1);
const sdk = new Analytics({ host, writeKey, flushAt: 4, maxRetries: 1 });
const sent = [], failed = [];
sdk.on("error", (error) => failed.push(String(error.reason ?? error)));
const done = (error, ctx) => (error ? failed.push(String(error)) : sent.push(ctx.event));
sdk.identify({ userId: "michelle1", traits: { plan: "pro" } }, done);
sdk.track({ userId: "michelle1", event: "purchase product", properties: { cut: "\\ud83d" } }, done);
sdk.page({ userId: "michelle1", category: "docs", name: "Home", properties: {} }, done);
sdk.screen({ anonymousId: "desktop1", name: "Start" }, done);
sdk.group({ userId: "michelle1", groupId: "g", traits: { name: "Zürich" } }, done);
sdk.alias({ userId: "michelle1", previousId: "anon-1" }, done);
sdk.closeAndFlush({ timeout: 20000 }).then(() => {
  if (failed.length) { console.error(failed); process.exit(1); }
  console.log(JSON.stringify(sent));
});
"""

PAGE = """<!doctype html><title>waiting</title><link rel="icon" href="data:,">
<script src="/dist/umd/index.js"></script><script>
const batching = { deliveryStrategy: { strategy: "batching", config: { size: 4, timeout: 200 } } };
const options = location.search === "?batching" ? { integrations: { "Segment.io": batching } } : {};
const sdk = AnalyticsNext.AnalyticsBrowser.load({ writeKey: "KEY", cdnURL: "COLLECTOR" }, options);
const sent = [
  sdk.identify("michelle1", { plan: "pro" }),
  sdk.track("purchase product", { category: "billing", cut: "\\ud83d" }),
  sdk.page("docs", "Home"),
  sdk.screen("Start"),
  sdk.group("g", { name: "Zürich" }),
  sdk.alias("michelle2"),
];
Promise.all(sent).then((all) => {
  window.sent = all.map((ctx) => JSON.stringify(ctx.event));
  document.title = "sent";
}, (error) => { document.title = String(error); });
</script>"""


@dataclass
class Collector:
    """A collector process with a key, and its topic."""

    address: str
    key: str
    source: str
    topic: str
    kafka: str
    log: Path

    def events(self, n: int) -> list[RawEvent]:
        """The first `n` that arrive in the topic, and whatever else is there then."""
        consumer = Consumer(
            {"bootstrap.servers": self.kafka, "group.id": self.topic, "enable.auto.commit": False,
             "isolation.level": "read_committed", "log_level": 0}
        )  # fmt: skip
        try:
            consumer.assign([TopicPartition(self.topic, 0, OFFSET_BEGINNING)])
            found: list[RawEvent] = []
            deadline = time.monotonic() + DEADLINE_S
            while len(found) < n:
                assert time.monotonic() < deadline, (
                    f"{len(found)} of {n} events after {DEADLINE_S:.0f} s:\n{self.log.read_text()}"
                )
                found += self._poll(consumer, 0.5)
            self._until_drained()
            while more := self._poll(consumer, 0.5):
                found += more
            return found
        finally:
            consumer.close()

    @staticmethod
    def _poll(consumer: Consumer, timeout_s: float) -> list[RawEvent]:
        messages = consumer.consume(100, timeout_s)
        assert not [m for m in messages if m.error()]
        return [RawEvent.FromString(message.value()) for message in messages]

    def _until_drained(self) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while True:
            with urllib.request.urlopen(f"{self.address}/readyz", timeout=10) as answer:
                if json.load(answer)["spool"]["records"] == 0:
                    return
            assert time.monotonic() < deadline, "the spool is not empty"
            time.sleep(0.05)


@pytest.fixture
def collector(
    tmp_path: Path, endpoints: Endpoints, unique: Callable[[str], str], site: Site
) -> Iterator[Collector]:
    """A collector as an operator starts it; gone at the end."""
    topic, source = unique("raw_events"), unique("web")
    ensure({"bootstrap.servers": endpoints.kafka}, {topic: 1})
    (tmp_path / "headrace.toml").write_text(f'[streams.raw_events]\ntopic = "{topic}"\n')
    headrace = [sys.executable, "-c", "from headrace.cli import main; main()"]
    env = {k: v for k, v in os.environ.items() if not k.startswith("HEADRACE_")}
    env |= {"HEADRACE_KAFKA": endpoints.kafka}
    key = subprocess.run(
        [*headrace, "keys", "add", source, "--origin", site.origin, "--keys", "keys.json"],
        cwd=tmp_path, env=env, capture_output=True, text=True, check=True, timeout=60,
    ).stdout.strip()  # fmt: skip
    log = tmp_path / "collect.log"
    with ExitStack() as stack:
        said = stack.enter_context(log.open("w"))
        process = subprocess.Popen(
            [*headrace, "collect", "--spool", "spool", "--keys", "keys.json",
             "--listen", "127.0.0.1:0"],
            cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=said, text=True,
        )  # fmt: skip
        assert process.stdout is not None
        stack.callback(process.stdout.close)
        stack.callback(process.wait, 30)
        stack.callback(process.terminate)
        found = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())
        assert found is not None, log.read_text()
        _wait_for(f"{found[0]}/healthz", log)
        yield Collector(found[0], key, source, topic, endpoints.kafka, log)


def _wait_for(url: str, log: Path) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
        except OSError:
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        else:
            return


class Site(http.server.ThreadingHTTPServer):
    """A web site with the browser library of its own; `page` is what it shows."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Quiet)
        self.origin = f"http://127.0.0.1:{self.server_address[1]}"

    def serve(self, folder: Path) -> None:
        """Serve these files from now on."""
        self.RequestHandlerClass = functools.partial(_Quiet, directory=str(folder))  # type: ignore[assignment]


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Nothing."""


@pytest.fixture
def site() -> Iterator[Site]:
    with Site() as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both packages in its node_modules."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("there is no node with its npm")
    folder = tmp_path_factory.mktemp("npm")
    done = subprocess.run(
        [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(folder),
         NODE_SDK, BROWSER_SDK],
        capture_output=True, text=True, check=False, timeout=200,
    )  # fmt: skip
    if done.returncode != 0:
        if re.search("ENOTFOUND|ECONNREFUSED|ETIMEDOUT|EAI_AGAIN|ECONNRESET|E403", done.stderr):
            pytest.skip("npm reaches no registry")
        pytest.fail(done.stderr)
    return folder


def check(found: list[RawEvent], sent: list[dict[str, Any]], source: str) -> None:
    """Each message once, under its own id, with its own fields."""
    assert sorted(message["type"] for message in sent) == CALLS
    assert sorted(event.event_id for event in found) == sorted(m["messageId"] for m in sent)
    by_id = {event.event_id: event for event in found}
    for message in sent:
        event = by_id[message["messageId"]]
        data = json.loads(event.data)
        assert event.source == source
        for name in ("type", "event", "userId", "properties", "traits", "groupId", "previousId"):
            if name in message and (message["type"], name) != ("track", "traits"):
                assert data[name] == message[name], name


@pytest.mark.parametrize(("zipped", "mode"), [("gzip", "batches"), ("plain", "sync")])
def test_the_python_sdk(collector: Collector, zipped: str, mode: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PYTHON, collector.address, collector.key, zipped, mode],
        capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    sent = json.loads(done.stdout)
    found = collector.events(len(sent))
    check(found, sent, collector.source)
    assert {event.content_type for event in found} == {"application/json; segment=batch"}


def test_the_node_sdk(collector: Collector, packages: Path) -> None:
    done = subprocess.run(
        ["node", "-e", NODE, "--", collector.address, collector.key],
        cwd=packages, capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    sent = json.loads(done.stdout)
    check(collector.events(len(sent)), sent, collector.source)


@pytest.mark.parametrize("mode", ["", "batching"])
def test_the_browser_library(
    collector: Collector, packages: Path, site: Site, tmp_path: Path, mode: str
) -> None:
    """It is told the collector's address once, as its CDN: the settings from there say the rest."""
    folder = packages / "node_modules" / "@segment" / "analytics-next"
    page = PAGE.replace("KEY", collector.key).replace("COLLECTOR", collector.address)
    (folder / "page.html").write_text(page)
    site.serve(folder)
    with Browser.open(tmp_path) as browser:
        browser.go(f"{site.origin}/page.html?{mode}")
        deadline = time.monotonic() + DEADLINE_S
        while (title := browser.run("return document.title")) == "waiting":
            assert time.monotonic() < deadline, browser.console()
            time.sleep(0.1)
        assert title == "sent", browser.console()
        sent = [json.loads(event) for event in browser.run("return window.sent")]
        # The browser stays until they have arrived: a batch leaves it a moment later.
        found = collector.events(len(sent))
    check(found, sent, collector.source)
    kinds = {event.content_type.partition("; segment=")[2] for event in found}
    assert kinds == ({"batch"} if mode else set(CALLS))
