"""The webhook, the model of a vendor: its signature, and its page."""

from __future__ import annotations

import hashlib
import hmac
import re
from pathlib import Path
from typing import Any

from vendors_under_test import NOW_US, SECRET, UNDER, an_event, document, request_of

from consumers.vendors import Sending, Vendor

ROOT = Path(__file__).parents[2]
MODULE = ROOT / "consumers/vendors/webhook.py"
PAGE = (ROOT / "docs/adding-a-vendor.md").read_text(encoding="utf-8")


def webhook(**settings: Any) -> Vendor:
    return UNDER["webhook"].make("webhook", **settings)


def code(heading: str) -> list[str]:
    """The Python of a section of the page; parts of the file, which don't stand alone, are "py"."""
    section = PAGE.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    return re.findall(r"^```py(?:thon)?\n(.*?)^```", section, re.MULTILINE | re.DOTALL)


def verify(header: str, body: bytes, secret: str, now_s: float) -> bool:
    """A receiver's check, as the page gives it."""
    (block,) = code("The receiver's side")
    names: dict[str, Any] = {}
    exec(block, names)  # the page's own code, to see that it works
    found: bool = names["verify"](header, body, secret, now_s)
    return found


def test_the_body_is_an_array_of_events() -> None:
    event = an_event(user_id=None, properties={"a": None, "b": True, "n": 1.5})
    request = request_of(webhook(), event)
    assert request.url == "https://example.com/events"
    assert document(request) == {
        "events": [
            {
                "id": "key-1", "name": "page_view", "time": NOW_US - 1, "user_id": None,
                "device_id": "device-1", "properties": {"a": None, "b": True, "n": 1.5},
            }
        ]
    }  # fmt: skip


def test_the_signature_is_of_the_time_and_the_body() -> None:
    request = request_of(webhook())
    seconds = str(NOW_US // 1_000_000)
    mac = hmac.new(SECRET.encode(), f"{seconds}.".encode() + request.body, hashlib.sha256)
    assert request.headers["Headrace-Signature"] == f"t={seconds},v1={mac.hexdigest()}"


def test_the_pages_receiver_takes_what_was_signed_and_nothing_else() -> None:
    request = request_of(webhook())
    header, now_s = request.headers["Headrace-Signature"], NOW_US / 1e6
    assert verify(header, request.body, SECRET, now_s + 299)
    assert not verify(header, request.body + b" ", SECRET, now_s)
    assert not verify(header, request.body, "another", now_s)
    assert not verify(header, request.body, SECRET, now_s + 302)
    assert not verify(header.replace("t=1", "t=2"), request.body, SECRET, now_s)
    for rubbish in ("", "t=,v1=", "v1=x", "t=x,v1=y", "t=1", "\x00", "t=1,v1=ü"):
        assert not verify(rubbish, request.body, SECRET, now_s)


def test_another_attempt_is_signed_anew() -> None:
    """Or a receiver would refuse what has waited for longer than five minutes."""
    first, later = request_of(webhook()), request_of(webhook(), now_us=NOW_US + 400_000_000)
    assert first.body == later.body
    assert first.headers != later.headers


def test_a_receiver_that_takes_little_is_given_little() -> None:
    sent = [an_event(key=f"k{n}") for n in range(30)]
    out = webhook(max_events=7).requests(sent, Sending(NOW_US))
    assert [len(r.events) for r in out.requests] == [7, 7, 7, 7, 2]
    out = webhook(max_bytes=1000).requests(sent, Sending(NOW_US))
    assert max(len(r.body) for r in out.requests) <= 1000
    assert len(out.requests) > 4


def test_it_is_eighty_lines_with_its_documentation() -> None:
    assert len(MODULE.read_text(encoding="utf-8").splitlines()) <= 80


def test_the_page_explains_the_file_line_by_line() -> None:
    """The sections of the page, one after the other, are the file."""
    told = "".join(code("The file, line by line"))
    lines = [line for line in told.splitlines() if line.strip()]
    written = MODULE.read_text(encoding="utf-8").splitlines()
    assert lines == [line for line in written if line.strip()]
