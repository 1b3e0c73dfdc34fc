"""Which web pages may send: the browser's questions, and their answers.

A browser tells the page's origin with each request to another host; services and devices have none.
Rules:

* A request with an Origin that is not allowed is refused, 403, before its body is read. Browsers
  ask first only for what a plain form could not send; `sendBeacon` with text/plain comes unasked,
  also to a collector on the visitor's own machine.
* Which origins: those of the key that is presented. A preflight comes without a key, so it is asked
  of all keys together; the request behind it of its own.
* Nothing here is about GET: what is read (sparrow.js, /openapi.json) is nobody's secret.
"""

from __future__ import annotations

from ingest.collector.answers import Answer, Header, error

__all__ = ["allowed", "exposed", "preflight"]

_HEADERS = b"authorization, content-encoding, content-type, idempotency-key"
# Two hours: the most that Chromium keeps.
_MAX_AGE = b"7200"


def allowed(origin: str, origins: frozenset[str]) -> bool:
    """Whether pages of this origin may send."""
    return origin.lower() in origins


def exposed(origin: str) -> tuple[Header, ...]:
    """What lets a page of an allowed origin read the answer."""
    return (
        (b"access-control-allow-origin", origin.encode("latin-1")),
        (b"access-control-expose-headers", b"retry-after"),
        (b"vary", b"origin"),
    )


def preflight(origin: str, origins: frozenset[str], methods: str, private: bool) -> Answer:
    """The answer to an OPTIONS with Access-Control-Request-Method.

    `private`: a page of the public web asks about an address of a private network.
    """
    if not allowed(origin, origins):
        return error(403, "origin", "pages of this origin may not send here", (b"vary", b"origin"))
    return Answer(
        204,
        b"",
        (
            *exposed(origin),
            (b"access-control-allow-methods", methods.encode()),
            (b"access-control-allow-headers", _HEADERS),
            (b"access-control-max-age", _MAX_AGE),
            *(((b"access-control-allow-private-network", b"true"),) if private else ()),
        ),
    )
