"""The vendors in the demo's judgement: it says whatever is wrong with what they hold."""

from __future__ import annotations

import io
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from random import Random

import pytest

from consumers.trace.allowlist import from_table
from consumers.trace.event import Event
from consumers.trace.gate import Gate
from headrace.demo.closing import delivery_faults, vendor_table
from headrace.demo.model import VENDOR_KEY
from headrace.demo.story import Story
from headrace.demo.vendor_count import (
    Delivered,
    ForwarderKill,
    Outage,
    Sent,
    Stored,
    VendorLine,
    settle,
)
from headrace.demo.vendor_setup import ALLOWED, SECRET, configuration, event
from ingest.gen.headrace.v1.raw_event_pb2 import RawEvent

SECOND = 1_000_000
OUTAGE = Outage(
    "amplitude",
    down_us=10 * SECOND,
    half_us=15 * SECOND,
    up_us=20 * SECOND,
    cut=3,
    replay="3f9c01d2",
)
KILL = ForwarderKill(pid=7, at_s=25.0, under_way=2, stored=20, total=50)
# One a second, for half a minute; every third may not leave.
SENT = [Sent(f"e{n}", "mouse moved" if n % 3 == 2 else "checkout", n * SECOND) for n in range(30)]
MAY = [one for one in SENT if one.name == "checkout"]
RECEIPTS = {one.event_id: "accepted" if one in MAY else "dropped" for one in SENT}


def arrived(vendor: str) -> list[Stored]:
    """All that may leave, half a second after it was sent; what was missed, after the recovery."""

    def came(sent_us: int) -> int:
        late = vendor == OUTAGE.vendor and OUTAGE.down_us <= sent_us < OUTAGE.up_us
        return OUTAGE.up_us + 2 * SECOND if late else sent_us + SECOND // 2

    return [Stored(one.event_id, one.name, came(one.at_us)) for one in MAY]


def line(
    vendor: str = "amplitude",
    stored: Sequence[Stored] | None = None,
    receipts: Mapping[str, str] = RECEIPTS,
    outage: Outage = OUTAGE,
) -> VendorLine:
    held = arrived(vendor) if stored is None else stored
    return settle(vendor, {"checkout"}, SENT, held, receipts, outage)


@pytest.mark.parametrize("vendor", ["amplitude", "posthog"])
def test_what_is_right_has_no_fault(vendor: str) -> None:
    found = line(vendor)
    assert found.faults == ()
    assert (found.sent, found.accepted, found.dropped) == (20, 20, 10)
    assert (found.missing, found.duplicated) == (0, 0)
    assert delivery_faults(Delivered((found,), KILL, OUTAGE, len(SENT))) == []


def test_the_gap_is_closed_when_the_last_missed_event_has_come() -> None:
    found = line()
    assert (found.gap_s, found.fresh_s) == (2.0, 1.5)
    assert line("posthog").gap_s is None
    assert line("posthog").slowest_s == 0.5


def test_an_event_too_few_and_one_twice_do_not_cancel_out() -> None:
    held = arrived("posthog")
    found = line("posthog", [*held[1:], held[1]])
    assert (found.accepted, found.missing, found.duplicated) == (20, 1, 1)
    assert len(found.faults) == 2


@pytest.mark.parametrize("stranger", [SENT[2], Sent("never sent", "checkout", 0)])
def test_an_event_that_may_not_be_there_is_a_fault(stranger: Sent) -> None:
    held = [*arrived("posthog"), Stored(stranger.event_id, stranger.name, 3 * SECOND)]
    assert line("posthog", held).faults


def test_an_event_under_another_name_is_a_fault() -> None:
    first, *rest = arrived("posthog")
    assert line("posthog", [first._replace(name="search"), *rest]).faults


@pytest.mark.parametrize(
    "wrong", [{"e0": "rejected"}, {"e2": "accepted"}, {"e0": ""}, {"nobody sent it": "accepted"}]
)
def test_receipts_that_say_something_else_are_a_fault(wrong: Mapping[str, str]) -> None:
    assert line(receipts={**RECEIPTS, **wrong}).faults


def test_an_event_without_a_receipt_is_a_fault() -> None:
    assert line(receipts={k: v for k, v in RECEIPTS.items() if k != "e2"}).faults


def test_a_vendor_that_was_not_down_is_a_fault() -> None:
    in_the_outage = [one._replace(came_us=min(one.came_us, 15 * SECOND)) for one in arrived("")]
    assert line(stored=in_the_outage).faults
    assert line(outage=replace(OUTAGE, cut=0)).faults


def test_a_vendor_that_waited_for_another_is_a_fault() -> None:
    held = arrived("amplitude")
    assert line("posthog", held).faults


def test_a_kill_that_met_nothing_is_a_fault() -> None:
    for kill in (
        replace(KILL, under_way=0),
        replace(KILL, stored=0),
        replace(KILL, stored=50),
    ):
        assert delivery_faults(Delivered((line(),), kill, OUTAGE, len(SENT)))


def test_a_table_that_does_not_add_up_is_a_fault_though_no_comparison_found_one() -> None:
    short = replace(line(), accepted=19)
    assert delivery_faults(Delivered((short,), KILL, OUTAGE, len(SENT)))
    assert delivery_faults(Delivered((line(),), KILL, OUTAGE, len(SENT) + 1))


@pytest.mark.parametrize("vendor", ALLOWED)
def test_the_allowlist_lets_out_what_is_counted_and_no_more(vendor: str) -> None:
    toml = tomllib.loads(configuration(lambda name: f"http://127.0.0.1/{name}"))
    assert VENDOR_KEY in toml["vendors"][vendor].values()
    gate = Gate(from_table(toml["trace"], set(ALLOWED)), vendor)
    left = set()
    for number in range(8):
        made = event(number, f"e{number}", SECOND, Random(number))
        assert SECRET in made["properties"].values()
        raw = RawEvent(
            event_id=made["eventId"], content_type="application/json", data=json.dumps(made)
        )
        judged = gate.judge(raw, "raw_events", 0, number)
        if isinstance(judged, Event):
            left.add(judged.name)
            assert SECRET not in judged.properties.values()
            assert judged.properties
    assert left == ALLOWED[vendor]


@pytest.mark.parametrize("blocks", [True, False])
def test_the_vendors_table_is_whole_on_eighty_columns(blocks: bool) -> None:
    story = Story(io.StringIO())
    story.console.width = 80
    lines = [replace(line(), sent=1_540_000, accepted=1_540_000), line("posthog")]
    with story.console.capture() as capture:
        story.console.print(vendor_table(lines, blocks))
    shown = capture.get()
    for words in ("accepted", "allowlist", "missing", "duplicated", "gap", "1,540,000", "2.0 s"):
        assert words in shown
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= 80
