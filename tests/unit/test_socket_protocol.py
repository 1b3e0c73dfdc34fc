"""The socket's protocol: what is sent arrives in whatever pieces; rubbish is told, not kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.socket_protocol import (
    Ack,
    Answers,
    Frame,
    Frames,
    Goodbye,
    Hello,
    ProtocolError,
    Refusal,
    Welcome,
    behind,
    encode,
)

SMALL = 300
names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
words = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
hellos = st.builds(Hello, st.binary(min_size=16, max_size=16), words)
values = st.binary(max_size=150)
seqs = st.lists(st.integers(1, 2**64 - 1), unique=True, max_size=8).map(sorted)
frames = st.builds(
    lambda numbers, parts: [Frame(n, *p) for n, p in zip(numbers, parts, strict=False)],
    seqs,
    st.lists(st.tuples(names, values), min_size=8, max_size=8),
)
answers = st.lists(
    st.builds(Ack, st.integers(0, 2**64 - 1))
    | st.builds(Refusal, st.integers(0, 2**64 - 1), words, words)
    | st.builds(Goodbye, words, words),
    max_size=8,
)
# One byte at a time, or pieces of any size.
cuts = st.just([1] * 10_000) | st.lists(st.integers(1, 60), min_size=1, max_size=60)


def pieces(data: bytes, sizes: Sequence[int]) -> list[bytes]:
    found, at = [], 0
    for size in sizes:
        found.append(data[at : at + size])
        at += size
    return [piece for piece in [*found, data[at:]] if piece]


def heard(side: Frames | Answers, parts: Sequence[bytes]) -> list[Any]:
    """All events, and at the end the error's text where there was one."""
    events: list[Any] = []
    try:
        for part in parts:
            # Not extend(): what came before the error counts.
            for event in side.receive(part):
                events.append(event)
        side.end()
    except ProtocolError as error:
        events.append(str(error))
    return events


@given(hellos, frames, cuts)
def test_what_a_client_says_arrives_in_whatever_pieces(
    hello: Hello, sent: list[Frame], sizes: list[int]
) -> None:
    data = b"".join(map(encode, [hello, *sent]))
    assert heard(Frames(), pieces(data, sizes)) == [hello, *sent]


@given(answers, st.integers(0, 2**32 - 1), cuts)
def test_what_a_collector_answers_arrives_in_whatever_pieces(
    sent: list[Any], largest: int, sizes: list[int]
) -> None:
    data = b"".join(map(encode, [Welcome(largest), *sent]))
    assert heard(Answers(), pieces(data, sizes)) == [Welcome(largest), *sent]


@settings(max_examples=300)
@given(hellos, frames, st.data(), cuts)
def test_damage_is_the_same_error_after_the_same_events_in_whatever_pieces(
    hello: Hello, sent: list[Frame], data: st.DataObject, sizes: list[int]
) -> None:
    whole = bytearray(b"".join(map(encode, [hello, *sent])))
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    damaged = bytes(whole)
    once = heard(Frames(SMALL), [damaged])
    assert heard(Frames(SMALL), pieces(damaged, sizes)) == once


@settings(max_examples=300)
@given(st.binary(max_size=400), st.booleans(), cuts)
def test_rubbish_is_a_protocol_error_and_nothing_else(
    rubbish: bytes, greeted: bool, sizes: list[int]
) -> None:
    """Anything but ProtocolError would come out of heard()."""
    hello = encode(Hello(bytes(16))) if greeted else b""
    welcome = encode(Welcome(1)) if greeted else b""
    for make, first in ((lambda: Frames(SMALL), hello), (Answers, welcome)):
        once = heard(make(), [first + rubbish])
        assert heard(make(), pieces(first + rubbish, sizes)) == once


@given(st.binary(max_size=400), cuts)
def test_no_more_is_kept_than_the_largest_frame(rubbish: bytes, sizes: list[int]) -> None:
    side = Frames(SMALL)
    try:
        for part in pieces(encode(Hello(bytes(16))) + rubbish, sizes):
            for _ in side.receive(part):
                pass
            assert len(side._pieces) < 4 + SMALL
    except ProtocolError:
        assert len(side._pieces) == 0


@given(st.lists(values, max_size=8), st.integers(0, 9))
def test_behind_leaves_the_frames_above_a_number(parts: list[bytes], seq: int) -> None:
    sent = [encode(Frame(i, "s", part)) for i, part in enumerate(parts, 1)]
    assert behind(b"".join(sent), seq) == b"".join(sent[seq:])


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (b"GET / HTTP/1.1\r\n", "begins with HDRC"),
        (b"HDRC\x02", "version 2"),
        (b"HDRC\x01" + bytes(16) + b"\xff\xff", "a key has 1,024 bytes"),
        (encode(Hello(bytes(16))) + b"\xff\xff\xff\xff", "4,294,967,295 bytes"),
        (encode(Hello(bytes(16))) + b"\x09\0\0\0", "9 bytes"),
        (encode(Hello(bytes(16))) + encode(Frame(2, "s", b"")) * 2, "frame 2 came behind 2"),
        (encode(Hello(bytes(16))) + encode(Frame(0, "s", b"")), "frame 0 came behind 0"),
    ],
)  # fmt: skip
def test_a_client_that_breaks_the_rules_is_told_which(said: bytes, why: str) -> None:
    """As soon as the bytes that break them are there: nothing waits for what a wrong size says."""
    side = Frames(SMALL)
    with pytest.raises(ProtocolError, match=why):
        list(side.receive(said))
    with pytest.raises(ProtocolError, match=why):
        list(side.receive(b"more"))


def test_an_answer_before_the_welcome_is_none() -> None:
    with pytest.raises(ProtocolError, match="the first answer is a welcome"):
        list(Answers().receive(encode(Ack(1))))
    assert list(Answers().receive(encode(Goodbye("key", "no")))) == [Goodbye("key", "no")]


def test_a_reason_is_cut_between_letters() -> None:
    said = encode(Welcome(1)) + encode(Refusal(1, "c", "é" * 3000))
    (_, refusal) = Answers().receive(said)
    assert isinstance(refusal, Refusal)
    assert refusal.reason == "é" * 2000
