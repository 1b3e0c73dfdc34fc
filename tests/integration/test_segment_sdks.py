"""Segment's own SDKs, unchanged, with a collector as their host: each message is in `raw_events`.

The Python SDK is installed with the tests; those for Node and for browsers come from npm, at these
versions, and are skipped where there is no npm, no registry, or no browser.
"""

from __future__ import annotations

import functools
import http.server
import json
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Browser
from collecting import Source, event_collector

from headrace.stack import Stack
from ingest.gen.headrace.v1.raw_event_pb2 import RawEvent

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


@pytest.fixture(scope="module")
def sources(
    stack: Stack, site: Site, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Iterator[Source]]:
    """Those of one collector."""
    kafka, folder = stack.up(progress=False).kafka, tmp_path_factory.mktemp("segment")
    with event_collector(folder, kafka, topic="segments_events", origin=site.origin) as sources:
        yield sources


@pytest.fixture
def source(sources: Iterator[Source]) -> Source:
    """One that no other test uses."""
    return next(sources)


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


@pytest.fixture(scope="module")
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
        away = r"ENOTFOUND|ECONNREFUSED|ETIMEDOUT|EAI_AGAIN|ECONNRESET|E403|E5\d\d|ENOTCACHED"
        if re.search(away, done.stderr):
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
def test_the_python_sdk(source: Source, zipped: str, mode: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PYTHON, source.url, source.key, zipped, mode],
        capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    sent = json.loads(done.stdout)
    found = source.events(len(sent))
    check(found, sent, source.name)
    assert {event.content_type for event in found} == {"application/json; segment=batch"}


def test_the_node_sdk(source: Source, packages: Path) -> None:
    done = subprocess.run(
        ["node", "-e", NODE, "--", source.url, source.key],
        cwd=packages, capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    sent = json.loads(done.stdout)
    check(source.events(len(sent)), sent, source.name)


@pytest.mark.parametrize("mode", ["", "batching"])
def test_the_browser_library(
    source: Source, packages: Path, site: Site, tmp_path: Path, mode: str
) -> None:
    """It is told the collector's address once, as its CDN: the settings from there say the rest."""
    folder = packages / "node_modules" / "@segment" / "analytics-next"
    page = PAGE.replace("KEY", source.key).replace("COLLECTOR", source.url)
    (folder / "page.html").write_text(page)
    site.serve(folder)
    with Browser.open(tmp_path) as browser:
        browser.go(f"{site.origin}/page.html?{mode}")
        deadline = time.monotonic() + DEADLINE_S
        while (title := browser.run("return document.title")) == "waiting":
            assert time.monotonic() < deadline, browser.console()
            time.sleep(0.02)
        assert title == "sent", browser.console()
        sent = [json.loads(event) for event in browser.run("return window.sent")]
        # The browser stays until they have arrived: a batch leaves it a moment later.
        found = source.events(len(sent))
    check(found, sent, source.name)
    kinds = {event.content_type.partition("; segment=")[2] for event in found}
    assert kinds == ({"batch"} if mode else set(CALLS))
