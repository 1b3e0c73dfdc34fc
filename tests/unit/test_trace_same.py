"""The gate against its slow and plain twin: the same events, the same counts, whatever comes in."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import trace_reference
from hypothesis import given
from hypothesis import strategies as st

from consumers.trace import scrub
from consumers.trace.allowlist import KINDS, TraceSettings, from_table
from consumers.trace.gate import Dropped, Gate
from consumers.vendors import VENDORS

TAKEN_US = 1_750_114_212_226_001
NAMES = ("text", "plan", "version", "price", "count", "gift", "theirs")
TABLE: dict[str, Any] = {
    "events": {
        "bought": {
            "names": {"ga4": "purchase"},
            "properties": {
                "text": "string", "count": "integer", "gift": "boolean",
                "plan": {"type": "string", "one_of": ["free", "pro"]},
                "version": {"type": "string", "keep": ["ip", "card"], "rename": {"ga4": "v"}},
                "price": {"type": "number", "rename": {"heap": "value"}},
                "theirs": {"type": "number", "one_of": [1, 2.5], "vendors": ["heap"]},
            },
        },
        "page": {"vendors": ["heap"], "properties": {"text": "string", "name": "string"}},
        "identify": {"properties": {"plan": "string"}},
    }
}  # fmt: skip

# What rules look for, and what stands at the edges of the questions that are asked before them.
PIECES = st.sampled_from(
    [
        "4111", "1111", "411111111111", "4111111111111111", "378282246310005", " ", " ", ".", "-",
        "_", "/", "?", "?", "#", "&", "&", ";", "=", "=", ":", "://", "@", "%40", "%", "+", ",",
        '"', "'", "\n", "\t", "\u00a0", "\u202f", "https://", "http://", "www.", "jo",
        "example.com", "utm_source", "utm%5Fsource", "utm_term=x", "utm_source=x&", "session=1",
        "token", "secret",
        "Bearer ", "basic ", "eyJhbGciOiJ", "sk_live_", "ghp_abcdefghijklmnopqrst", "ya29.", "SG.",
        "-----BEGIN RSA PRIVATE KEY-----", "bearer a.b.c.d.e", "dXNlcjpwYXNz", "DE89",
        "3704 0044 0532", "0130 00", "DE89370400440532013000", "Authorization", "cookie: sid=",
        "\\", "４１１１", "＠", "。", "\u00ad", "\u2011", "％", "%25", "%3D", "%3F", "%2E", "  ",
        "127.0.0.1", "192.168.17.4", "1.2", "2001:db8::1", "::",
        "KD", "%37", "7", "İ",
        "x7Gq2LpZ9vB4nM1cR8tY5wK3jH6fD0sA", "0197a1b2-4111-1111-8111-411111111111", "KD7", "v1",
        "abcdefghijk", "abcdefghijkl", "Shelf", "ä", "東京", "[token]", "/shop/shelf-17",
    ]
)  # fmt: skip
# Whole ones, which pieces seldom make, as others spell them; and behind them a query that goes,
# stays, or comes to light.
WHOLE = [
    "jo@example.com", "4111111111111111", "4111 1111 1111 1111", "378282246310005", "192.168.17.4",
    "DE89 3704 0044 0532 0130 00", "LV62 BANK A001 B435 19C5 0", "Basic YTpi", "signature=abcdef",
]  # fmt: skip
FULL_WIDTH = {n: n + 0xFEE0 for n in range(0x21, 0x7F)}
SPELLINGS: list[Callable[[str], str]] = [
    str,
    lambda text: text.translate(FULL_WIDTH),
    lambda text: text.replace("@", "＠").replace(".", "。"),
    lambda text: text.replace(" ", "\u2011"),
    lambda text: text.replace(" ", "\u00a0"),
    "\u00ad".join,
    lambda text: text.replace("i", "ı"),
]
BEFORE = ["", "Call ", "/u/", "https://x.example/u/"]
BEHIND = ["", "?a=b", "?utm_source=x", "?utm_source=x&a=b", "？a=b", "？utm_source=x", " ä"]
SPELLED = st.builds(
    lambda before, whole, spelled, behind: before + spelled(whole) + behind,
    st.sampled_from(BEFORE), st.sampled_from(WHOLE), st.sampled_from(SPELLINGS),
    st.sampled_from(BEHIND),
)  # fmt: skip
TEXT = st.lists(PIECES, max_size=8).map("".join) | SPELLED | st.text(max_size=40)
NUMBER = (
    st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from([4111111111111111, 4111111111111111.0, -378282246310005, 1e11, -1e11, 1e19])
)  # fmt: skip
PLAIN = TEXT | NUMBER | st.booleans() | st.none() | st.sampled_from(["free", "pro", 1, 2.5])
VALUE = PLAIN | st.lists(PLAIN, max_size=2) | st.dictionaries(TEXT, PLAIN, max_size=2)
TIME = st.datetimes().map(lambda t: f"{t.isoformat()}Z") | st.sampled_from(
    [
        "2025-06-16T22:50:12.226Z",
        "2025-06-17T00:50:12+02:00",
        "2025-06-16",
        "20250616T225012Z",
        "2025-06-16t22:50:12z",
        "1750114212226",
        "1795101232345",
        "17501142",
        "1" * 30,
        "²" * 9,
    ]
)
# Absent more often than strange.
ID = st.uuids().map(str) | TEXT | VALUE
EVENT = st.fixed_dictionaries(
    {"event": st.sampled_from(["bought", "bought", "bought", "page", "other", "", 5])},
    optional={
        "type": st.sampled_from(["page", "identify", "track", ""]), "name": VALUE, "userId": ID,
        "deviceId": ID, "anonymousId": ID, "timestamp": TIME | VALUE, "traits": VALUE,
        "context": VALUE | st.fixed_dictionaries({"device": st.fixed_dictionaries({"id": ID})}),
        "properties": st.dictionaries(st.sampled_from(NAMES) | TEXT, VALUE) | VALUE,
    },
)  # fmt: skip
RAW = st.tuples(
    st.uuids().map(str) | TEXT, st.sampled_from(["application/json", "x; segment=identify"]), EVENT
)
SETTINGS = [
    {},
    {"user_id": "hash", "device_id": "drop", "scrub": ["mail", "card"]},
    {
        "patterns": {"customer": "KD[0-9]", "city": "İ."},
        "url_parameters": ["utm_source", "session"],
    },
]


@pytest.mark.parametrize("more", SETTINGS)
@given(st.lists(RAW, min_size=1, max_size=4), st.sampled_from(["ga4", "heap"]), st.integers(1, 5))
def test_the_gate_says_what_its_plain_twin_says(
    more: dict[str, Any], raws: list[tuple[str, str, dict[str, Any]]], vendor: str, memory: int
) -> None:
    """All of it twice, by one gate: what it remembers, and forgets, makes no difference."""
    settings = from_table(TABLE | more, VENDORS, "a secret")
    gate = Gate(settings, vendor)
    counted: Counter[tuple[str, str, str]] = Counter()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scrub, "_REMEMBERED", memory)
        for event_id, content_type, said in raws * 2:
            row = (event_id, content_type, json.dumps(said), TAKEN_US)
            expected, counts = trace_reference.judge(settings, vendor, *row)
            counted.update(counts)
            found = gate.judge_row(*row)
            assert (found.reason if isinstance(found, Dropped) else found) == expected
    assert gate.counts == counted


@pytest.mark.parametrize(
    "settings",
    [
        TraceSettings(),
        TraceSettings(url_parameters=frozenset()),
        TraceSettings(patterns={"customer": re.compile("KD[0-9]"), "city": re.compile("İ.")}),
        *(TraceSettings(scrub=frozenset({kind})) for kind in KINDS),
    ],
    ids=lambda settings: ",".join(sorted(settings.scrub | settings.patterns.keys())),
)
@given(st.lists(TEXT, min_size=1, max_size=6))
def test_no_question_before_the_rules_hides_what_they_find(
    settings: TraceSettings, texts: list[str]
) -> None:
    """Each text by itself, also without its query, and between others: a sentence, a path."""
    look = scrub.Scrubber(settings.scrub, settings.patterns, settings.url_parameters)
    bare = [text.partition("?")[0] for text in texts]
    for text in [*texts, *bare, " ".join(texts), "/".join(texts), *texts]:
        left, kinds = trace_reference.scrubbed(settings, text, frozenset())
        assert look(text) == ((left, kinds) if kinds else None)
