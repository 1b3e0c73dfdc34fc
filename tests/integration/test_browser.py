"""sparrow.js in a real browser, a real collector, real Kafka: every event arrives once.

The page is another origin than the collector, the site behind its link another one still. Between
browser and collector stands a proxy that breaks on command.
"""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from browser import Browser
from collecting import Source, event_collector
from tcp_proxy import Proxy
from waiting import until

from headrace.stack import Stack

SERVED = Path(__file__).parents[2] / "ingest" / "collector" / "static" / "sparrow.js"
DEADLINE_S = 40.0

PAGE = """<!doctype html><title>shop</title><link rel="icon" href="data:,">
<script src="{script}/sparrow.js" data-host="{collector}" data-key="{key}" {more} defer></script>
<script src="/app.js" data-away="{away}" defer></script>
<button id="buy">Buy</button>"""

# Has the browser load a page ahead, before anybody goes there.
BEFORE = """<!doctype html><title>before</title><link rel="icon" href="data:,">
<script type="speculationrules">
{"prerender": [{"source": "list", "urls": ["/seen"], "eagerness": "immediate"}]}
</script>"""

# What a page would do: tell of the click, and be gone at once.
APP = """const away = document.currentScript.dataset.away;
document.getElementById("buy").addEventListener("click", () => {
  sparrow.track("purchase product", { category: "billing", productName: "workers" });
  location.href = away;
});
localStorage.loaded = location.pathname;"""


class Site(http.server.ThreadingHTTPServer):
    """The shop: a page under a strict policy, and another site behind its link."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Pages)
        self.origin = f"http://127.0.0.1:{self.server_address[1]}"
        # Another site for a browser, so another process of it, although it is the same server.
        self.away = f"http://localhost:{self.server_address[1]}/away"
        self.collector = self.key = ""


class _Pages(http.server.BaseHTTPRequestHandler):
    server: Site

    def do_GET(self) -> None:
        site, path = self.server, self.path.partition("?")[0]
        if path in ("/shop", "/own", "/seen"):
            # The script as the collector serves it, or, so that there is one while that is away,
            # the shop's own copy.
            script, more = ("", "") if path == "/own" else (site.collector, "data-pageview")
            body = PAGE.format(
                script=script, more=more, collector=site.collector, key=site.key, away=site.away
            ).encode()
            # But for one page none comes back from memory: each is loaded anew.
            self._say(body, "text/html", "no-cache" if path == "/seen" else "no-store")
        elif path == "/before":
            self._say(BEFORE.encode(), "text/html")
        elif path == "/app.js":
            self._say(APP.encode(), "text/javascript")
        elif path == "/sparrow.js":
            self._say(SERVED.read_bytes(), "text/javascript")
        else:
            self._say(b"<!doctype html><title>away</title>", "text/html")

    def _say(self, body: bytes, kind: str, kept: str = "no-store") -> None:
        policy = (
            "default-src 'none'; img-src data:; "
            f"script-src 'self' 'inline-speculation-rules' {self.server.collector}; "
            f"connect-src {self.server.collector}; require-trusted-types-for 'script'"
        )
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", policy)
        self.send_header("Cache-Control", kept)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@dataclass
class Edge:
    """A proxy in front of the collector, a source of it, and the site that this test has."""

    site: Site
    proxy: Proxy
    source: Source

    def landed(self) -> list[dict[str, Any]]:
        """All events of the site in Kafka, when the collector has sent all that it has."""
        found = self.source.events()
        events = [json.loads(event.data) for event in found]
        assert [event.event_id for event in found] == [event["eventId"] for event in events]
        return events

    def names(self) -> list[str]:
        """What arrived, by name, in alphabetical order."""
        return sorted(event["event"] for event in self.landed())


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with Site() as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture(scope="module")
def sources(
    stack: Stack, site: Site, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Iterator[Source]]:
    """Those of one collector."""
    kafka, folder = stack.up(progress=False).kafka, tmp_path_factory.mktemp("browser")
    with event_collector(folder, kafka, topic="browsers_events", origin=site.origin) as sources:
        yield sources


@pytest.fixture
def edge(site: Site, sources: Iterator[Source]) -> Iterator[Edge]:
    """A source of this test's own, by way of a proxy."""
    source = next(sources)
    with Proxy("127.0.0.1", int(source.url.rpartition(":")[2])) as proxy:
        site.collector, site.key = f"http://127.0.0.1:{proxy.port}", source.key
        yield Edge(site, proxy, source)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    """A browser that has seen nothing yet."""
    with Browser.open(tmp_path) as browser:
        yield browser


def queued(browser: Browser) -> int:
    return int(browser.run("return sparrow.stats().queued"))


def quiet(browser: Browser) -> None:
    """Waits until the page has an answer for all of its events."""
    until(lambda: queued(browser) == 0, "an empty queue")


def test_a_click_that_leads_away_at_once_is_not_lost(browser: Browser, edge: Edge) -> None:
    """Page view, click, hard redirect to another site; and nothing is stored twice afterwards."""
    browser.go(f"{edge.site.origin}/shop")
    quiet(browser)
    browser.click("#buy")
    until(lambda: browser.run("return document.title") == "away", "the other site")
    # Nobody comes back here to send it: it has left with the page.
    until(lambda: edge.names() == ["pageview", "purchase product"], "the click")
    view, click = sorted(edge.landed(), key=lambda event: str(event["event"]))
    assert view["properties"] == {"pathname": "/shop"}
    assert click["properties"] == {"category": "billing", "productName": "workers"}
    assert view["deviceId"] == click["deviceId"]
    # The shop again: what had no answer is sent once more, and stored once.
    browser.go(f"{edge.site.origin}/shop")
    quiet(browser)
    assert edge.names() == ["pageview", "pageview", "purchase product"]
    assert not [line for line in browser.console() if "Security" in line or "sparrow" in line]


def test_a_page_view_is_a_page_that_somebody_sees(browser: Browser, edge: Edge) -> None:
    """Loaded ahead it is none until it is shown; back from the browser's memory it is one more."""
    browser.go(f"{edge.site.origin}/before")
    until(lambda: browser.run("return localStorage.loaded") == "/seen", "the page ahead")
    # Its events would wait in the storage that both pages share, or be on their way out of it.
    kept = "return Object.keys(localStorage).filter((name) => name.startsWith('sparrow.q.'))"
    assert (browser.run(kept), edge.names()) == ([], [])
    browser.run("location.href = '/seen'")
    until(lambda: browser.run("return location.pathname") == "/seen", "the page")
    ahead = "return performance.getEntriesByType('navigation')[0].activationStart > 0"
    assert browser.run(ahead), "it was not loaded ahead"
    quiet(browser)
    assert edge.names() == ["pageview"]
    browser.run("window.remembered = true")
    browser.go(f"{edge.site.origin}/own")
    browser.run("history.back()")
    until(lambda: browser.run("return window.remembered"), "the page out of the browser's memory")
    until(lambda: edge.names() == ["pageview", "pageview"], "its second view")


def test_a_page_that_goes_before_anything_was_sent_loses_nothing(
    browser: Browser, edge: Edge
) -> None:
    """Many events, most of a beacon's room, and the redirect in the same moment."""
    browser.go(f"{edge.site.origin}/own")
    browser.run(
        "for (let n = 0; n < 40; n++) sparrow.track('e' + n, {text: 'x'.repeat(1000)});"
        "location.href = arguments[0]",
        edge.site.away,
    )
    wanted = sorted(f"e{n}" for n in range(40))
    until(lambda: edge.names() == wanted, "all of them")
    browser.go(f"{edge.site.origin}/own")
    quiet(browser)
    assert edge.names() == wanted


def test_offline_then_reload_then_online(browser: Browser, edge: Edge) -> None:
    """What happens without a network waits, also across pages, and arrives once there is one."""
    browser.go(f"{edge.site.origin}/own")
    browser.offline(True)
    browser.run("sparrow.track('without a network')")
    until(lambda: not browser.run("return navigator.onLine"), "the browser to be offline")
    edge.proxy.refuse(True)
    browser.offline(False)
    browser.reload()
    browser.run("sparrow.track('without a collector')")
    browser.reload()
    assert queued(browser) == 2
    assert edge.names() == []
    edge.proxy.refuse(False)
    quiet(browser)
    assert edge.names() == ["without a collector", "without a network"]


def test_the_network_coming_back_is_enough(browser: Browser, edge: Edge) -> None:
    """No reload and no further event: the browser's `online` sends what waits."""
    browser.go(f"{edge.site.origin}/own")
    browser.offline(True)
    browser.run("sparrow.track('kept')")
    until(lambda: browser.run("return performance.now() > 3000"), "a few attempts")
    assert queued(browser) == 1
    browser.offline(False)
    quiet(browser)
    assert edge.names() == ["kept"]


def test_an_answer_that_is_lost_doubles_nothing(browser: Browser, edge: Edge) -> None:
    """The collector has stored it, the browser never hears of it and sends it again."""
    browser.go(f"{edge.site.origin}/own")
    edge.proxy.cut_after(b'"answered"')
    browser.run("sparrow.track('answered')")
    quiet(browser)
    assert any("no answer" in line for line in browser.console())
    assert edge.names() == ["answered"]


def test_two_tabs_lose_nothing_and_double_nothing(browser: Browser, edge: Edge) -> None:
    """Both write while the collector is away, one of them is closed, the other one goes on."""
    browser.go(f"{edge.site.origin}/own")
    one = browser.tab()
    browser.new_tab()
    browser.go(f"{edge.site.origin}/own")
    two = browser.tab()
    edge.proxy.refuse(True)
    wanted = []
    for number in range(6):
        for tab in (one, two):
            browser.front(tab)
            names = [f"{'one' if tab == one else 'two'} {number}.{n}" for n in range(5)]
            browser.run("for (const name of arguments[0]) sparrow.track(name)", names)
            wanted += names
    browser.front(one)
    browser.close_tab()
    browser.front(two)
    until(lambda: queued(browser) == len(wanted), "both tabs' events in one queue")
    edge.proxy.refuse(False)
    # The tab that is left keeps to its own; a page that is loaded takes over what others left.
    browser.reload()
    quiet(browser)
    landed = edge.landed()
    assert sorted(event["event"] for event in landed) == sorted(wanted)
    assert len({event["deviceId"] for event in landed}) == 1


def test_a_browser_that_keeps_nothing_still_sends(tmp_path: Path, edge: Edge) -> None:
    """Storage blocked by the visitor: events live in memory, and leave with the page."""
    with Browser.open(tmp_path, storage=False) as browser:
        browser.go(f"{edge.site.origin}/shop")
        blocked = "try { localStorage; return false } catch (e) { return e.name }"
        assert browser.run(blocked) == "SecurityError"
        quiet(browser)
        browser.run(
            "const cycle = {}; cycle.self = cycle; cycle.big = 10n;sparrow.track('hostile', cycle)"
        )
        browser.click("#buy")
        wanted = ["hostile", "pageview", "purchase product"]
        until(lambda: edge.names() == wanted, "all three")
        assert len({event["deviceId"] for event in edge.landed()}) == 1
