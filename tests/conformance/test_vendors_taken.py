"""What our vendors send, the stand-ins take: two readings of the same documents agree.

The stand-ins (headrace/vendors) share no line with consumers/vendors; a vendor need not have one.
Each request meets a fresh one: how much may come over time is for whoever sends.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Mapping
from urllib.parse import parse_qsl, urlsplit

import pytest
from hypothesis import given
from vendor_events import HOLD, HOLD_LARGE, many, sendings, some
from vendors_under_test import NOW_US, SECRET, UNDER, seen

from consumers.trace.event import Event
from consumers.vendors import Accepted, Answer, Request, Sending
from headrace.vendors.amplitude import Amplitude
from headrace.vendors.ga4 import Ga4
from headrace.vendors.heap import Heap
from headrace.vendors.mixpanel import Mixpanel
from headrace.vendors.model import Call, Judged, StandIn
from headrace.vendors.posthog import PostHog
from headrace.vendors.webhook import Webhook

STAND_INS: Mapping[str, Callable[[], StandIn]] = {
    "amplitude": Amplitude,
    "ga4": Ga4,
    "heap": Heap,
    "mixpanel": Mixpanel,
    "posthog": PostHog,
    "webhook": lambda: Webhook(SECRET),
}
vendors = pytest.mark.parametrize("name", STAND_INS)


def judged(standin: StandIn, request: Request) -> Judged:
    """The stand-in's word on a request, as it would get it over HTTP."""
    address = urlsplit(request.url)
    headers = {name.lower(): value for name, value in request.headers.items()}
    body = request.body
    if headers.get("content-encoding") == "gzip":
        assert standin.gzip
        body = gzip.decompress(body)
    query = dict(parse_qsl(address.query, keep_blank_values=True))
    return standin.paths()[address.path](Call(body, NOW_US, query, headers))


def taken(name: str, sent: list[Event], terms: Sending) -> None:
    """Each request is taken whole, under the events' keys and at their times."""
    under = UNDER[name]
    v = under.make(name)
    for request in v.requests(sent, terms).requests:
        found = judged(STAND_INS[name](), request)
        assert not found.lost
        answer = Answer(found.reply.status, {}, found.reply.body)
        assert v.verdict(request, answer, NOW_US) == Accepted()
        assert [e.key for e in found.events] == [e.key for e in seen(under, request)]
        for stored, event in zip(found.events, request.events, strict=True):
            # What an operator lets be dated anew: GA4's old ones.
            if not terms.allow_redate:
                assert abs(stored.time_us - under.at_us(event)) < under.exact_us


@vendors
@HOLD
@given(sent=some, terms=sendings)
def test_a_stand_in_takes_whatever_is_not_refused(
    name: str, sent: list[Event], terms: Sending
) -> None:
    """It loses nothing without a word, and dates nothing anew, unless that was allowed."""
    taken(name, sent, terms)


@vendors
@HOLD_LARGE
@given(sent=many(), terms=sendings)
def test_a_stand_in_takes_thousands(name: str, sent: list[Event], terms: Sending) -> None:
    """Limits of count, bytes and users are read alike."""
    taken(name, sent, terms)
