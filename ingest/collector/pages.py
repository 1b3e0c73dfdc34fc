"""What is read from a collector: its state, its metrics, its description, its scripts.

/healthz       200 while the process serves: restart it when this fails, as it does once the spool's
               writer or the relay has ended for good
/readyz        200 while records are accepted; 503 when the spool refuses (full, damaged) or the
               relay has stopped for good. Kafka being away is no reason: it is what the spool is
               for. The body says it, and so do the metrics. It names directories and errors, so
               from another machine it says `ready` alone
/metrics       of this worker, for a Prometheus on this machine
/openapi.json  this interface, made of the doors and limits that are in force
/sparrow.js    the script for web pages
/v1/projects/KEY/settings   what Segment's browser library asks for first
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import orjson
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric

from ingest.collector import answers, metrics, segment
from ingest.collector.acks import Acks
from ingest.collector.answers import Answer, Refused
from ingest.collector.keys import Keys
from ingest.collector.node import Node
from ingest.spool.errors import SpoolError

__all__ = [
    "PROJECTS", "SCRIPT", "Fresh", "Page", "Readiness", "metrics_page", "pages", "settings_page",
]  # fmt: skip

# A route that is read: the scope -> the answer.
Page = Callable[[Mapping[str, Any]], Awaitable[Answer]]

PROJECTS = "/v1/projects/"

SCRIPT = Path(__file__).parent / "static" / "sparrow.js"
_EVERYBODY = (b"access-control-allow-origin", b"*")
# A page's browser asks again after an hour; with the same script it is told so in a few bytes.
_CACHED = (b"cache-control", b"public, max-age=3600")
_NOT_CACHED = (b"cache-control", b"no-store")
# How long the disk may take to write a page, while /readyz is asked: an append of no records.
_PROBE_S = 1.0
# What a proxy adds.
_FORWARDED = (b"x-forwarded-for", b"forwarded", b"x-real-ip", b"via")


class Readiness:
    """Whether a node accepts records, and what an operator wants to know besides."""

    def __init__(
        self,
        node: Node,
        acks: Acks,
        worker: int,
        others: Mapping[Path, int],
        keys: Keys | None = None,
    ) -> None:
        self._node = node
        self._keys = keys
        self._acks = acks
        self._worker = worker
        self._others = {str(folder): records for folder, records in others.items()}

    async def __call__(self, scope: Mapping[str, Any]) -> Answer:
        """The page."""
        node, relay = self._node, self._node.relay
        problem = await self._problem()
        state = node.state
        kafka = relay.trouble or ("" if relay.position >= 0 else "not reached yet")
        said = {
            "ready": problem is None,
            "problem": problem,
            "worker": self._worker,
            "spool": {
                "node": state.node,
                "records": node.waiting(),
                "bytes": state.bytes,
                "limit_bytes": node.limits.max_bytes,
            },
            "kafka": {"moving": not kafka, "trouble": kafka or None},
            "missing_topics": list(node.missing_topics),
            # Why the file of keys is not in force as it is now.
            "keys_problem": self._keys.problem() if self._keys is not None else None,
            # Of workers that there are no more.
            "unsent_spools": self._others,
        }
        if not _is_near(scope):
            said = {"ready": problem is None}
        return answers.json(200 if problem is None else 503, said, _NOT_CACHED)

    async def _problem(self) -> str | None:
        node = self._node
        if node.relay.error is not None:
            return f"nothing is sent to Kafka any more: {node.relay.error}"
        refusing = self._acks.refusing
        if refusing is None:
            return None
        if node.state.bytes >= node.limits.max_bytes * _FULL_SHARE:
            return str(refusing)
        # It refused the last records. Without traffic nobody would find out that there is room
        # again, and without a 200 here there may be no traffic.
        try:
            await asyncio.wait_for(self._acks.store([]), _PROBE_S)
        except SpoolError as error:
            return str(error)
        except TimeoutError:
            return "the disk does not answer"
        # Records that were there already may have been in the same append: then it says nothing.
        refusing = self._acks.refusing
        return None if refusing is None else str(refusing)


# Beyond it a spool that refused is called full: a large request may be refused before the limit.
_FULL_SHARE = 0.95


def pages(
    readiness: Page,
    node: Node,
    tally: Callable[[], None],
    openapi: Mapping[str, Any],
    *,
    with_metrics: bool,
) -> dict[str, Page]:
    """Every page by its path, but for settings_page."""
    described = Answer(200, orjson.dumps(openapi), (_EVERYBODY, _NOT_CACHED))
    found: dict[str, Page] = {
        "/healthz": _health(node),
        "/readyz": readiness,
        "/openapi.json": _always(described),
    }
    if with_metrics:
        found["/metrics"] = metrics_page(node, tally)
    if SCRIPT.is_file():
        found["/sparrow.js"] = _script(SCRIPT.read_bytes())
    return found


def metrics_page(node: Node, tally: Callable[[], None]) -> Page:
    """/metrics of this process; `tally` brings its counters up to date."""
    fresh = Fresh(node)

    async def page(scope: Mapping[str, Any]) -> Answer:
        if not _is_near(scope):
            raise Refused(
                403, "elsewhere", "for this machine only; name an address with --metrics for others"
            )
        tally()
        text = await asyncio.to_thread(generate_latest, fresh)
        return Answer(200, text, (_NOT_CACHED,), CONTENT_TYPE_LATEST.encode())

    return page


class Fresh(CollectorRegistry):
    """All metrics of the process, the spool's gauges as they are when they are read."""

    def __init__(self, node: Node) -> None:
        super().__init__()
        self._node = node

    def collect(self) -> Iterable[Metric]:
        """See CollectorRegistry."""
        node = self._node
        state, relay = node.state, node.relay
        metrics.SPOOL_RECORDS.set(node.waiting())
        metrics.SPOOL_BYTES.set(state.bytes)
        metrics.SPOOL_LIMIT_BYTES.set(node.limits.max_bytes)
        metrics.SPOOL_OLDEST_SECONDS.set(node.oldest_s())
        metrics.STALLED.set(bool(relay.trouble or relay.error or relay.position < 0))
        return REGISTRY.collect()


def settings_page(scope: Mapping[str, Any], scheme: str) -> Answer | None:
    """What Segment's browser library asks for first; None where the path is another.

    `scheme` is how the browser came, which a proxy may hide.
    """
    key, _, rest = scope["path"].removeprefix(PROJECTS).partition("/")
    host = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
    if not key or rest != "settings" or not host:
        return None
    said = segment.settings(key, f"{scheme}://{host}")
    return answers.json(200, said, _EVERYBODY, _NOT_CACHED)


def _is_near(scope: Mapping[str, Any]) -> bool:
    """Whether who asks is on this machine, and no proxy here that asks for another.

    Nor a page that a browser here shows, whose host's name leads to this machine all of a sudden.
    """
    try:
        address = ipaddress.ip_address(str(scope["client"][0]))
    except (TypeError, IndexError, ValueError):
        return False
    # IPv4 through a socket of IPv6.
    address = getattr(address, "ipv4_mapped", None) or address
    if not address.is_loopback or any(name in _FORWARDED for name, _ in scope["headers"]):
        return False
    return _is_local(dict(scope["headers"]).get(b"host", b"").decode("latin-1"))


def _is_local(host: str) -> bool:
    """Whether a Host header names this machine as such. Without one no browser has asked."""
    name = host if host.endswith("]") else host.rpartition(":")[0] or host
    if not host or name.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(name.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False


def _health(node: Node) -> Page:
    well = Answer(200, b'{"status":"ok"}', (_NOT_CACHED,))
    dead = Answer(503, b'{"status":"dead"}', (_NOT_CACHED,))

    async def page(_: Mapping[str, Any]) -> Answer:
        return dead if node.dead else well

    return page


def _always(answer: Answer) -> Page:
    async def page(_: Mapping[str, Any]) -> Answer:
        return answer

    return page


def _script(script: bytes) -> Page:
    etag = b'"%s"' % hashlib.sha256(script).hexdigest()[:32].encode()
    headers = (_EVERYBODY, _CACHED, (b"etag", etag), (b"x-content-type-options", b"nosniff"))
    whole = Answer(200, script, headers, b"text/javascript; charset=utf-8")
    same = Answer(304, b"", headers, b"text/javascript; charset=utf-8")

    async def page(scope: Mapping[str, Any]) -> Answer:
        known = dict(scope["headers"]).get(b"if-none-match", b"")
        return same if etag in known or known == b"*" else whole

    return page
