"""Dead letters without Kafka: what is meant, sent or stays, and bytes as far as they decode."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Message
from declared import everything
from hypothesis import given
from hypothesis import strategies as st

from consumers import deadletters
from consumers.batch import Span
from consumers.bounds import Bounds
from consumers.deadletters import OURS, REDRIVEN, DeadLetter, DeadLetters
from consumers.dlq import letters
from consumers.dlq import redrive as redriving
from consumers.dlq.edit import Left, edit_of
from consumers.dlq.letters import (
    SETTLED,
    Letter,
    Letters,
    Origin,
    Wanted,
    class_of,
    letter_of,
    settlement,
)  # fmt: skip
from consumers.dlq.purge import cut
from consumers.dlq.redrive import redrive
from consumers.dlq.wire import Broken, walk
from consumers.errors import Systemic
from ingest.streams import BUILT_IN

STATE = BUILT_IN["device_state"]
EVERYTHING = everything()


def state(n: int = 0, **fields: Any) -> bytes:
    message: Any = STATE.message(device_id=f"d{n}", colo="SJC", **fields)
    message.timestamp.seconds = 1_750_000_000 + n
    return bytes(message.SerializeToString())


def letter(n: int = 0, value: bytes | None = b"", **fields: Any) -> Letter:
    known: dict[str, Any] = {
        "origin": Origin(0, n, 1000), "kind": "rejected", "reason": "client_version: text",
        "destination": "postgres", "attempted_ms": 2000 + n, "key": b"k", "value": value,
        "headers": [], "redriven": 0, "partition": 0, "offset": n,
    }  # fmt: skip
    return Letter(**known | fields)


class Box:
    """`Letters` of a list."""

    def __init__(self, letters: Sequence[Letter], settled: Iterable[Origin] = ()) -> None:
        self._letters = letters
        self.settled = set(settled)
        self.spans = {0: Span(0, len(letters))}

    def all(self) -> Iterable[Letter]:
        return iter(self._letters)

    def open(self, wanted: Wanted) -> Iterable[Letter]:
        return (o for o in self._letters if o.origin not in self.settled and wanted(o))


# -- a letter --------------------------------------------------------------------------------------


def as_sent(n: int, value: bytes = b"x" * 100, own: Sequence[tuple[str, bytes]] = ()) -> Message:
    """A letter, as Kafka gives it; `own` are headers of its record."""
    headers = {"topic": STATE.topic, "partition": 0, "offset": n, "timestamp_ms": 1000,
               "kind": "rejected", "reason": "why", "attempted_ms": 2000}  # fmt: skip
    return Message(
        topic=STATE.dlq, partition=0, offset=n, value=value,
        headers=[*own, *((f"headrace.{name}", str(v).encode()) for name, v in headers.items())],
    )  # fmt: skip


def letters_of(there: Sequence[Message], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Have `Letters` read these; the topics that it reads, as it reads them."""
    reads: list[str] = []

    def read(_kafka: Any, topic: str, _spans: Any) -> Iterable[tuple[None, Sequence[Message]]]:
        reads.append(topic)
        return [(None, there)]

    monkeypatch.setattr(letters, "read", read)
    monkeypatch.setattr(letters, "bounds", lambda *_: Bounds({0: Span(0, 11)}, ()))
    return reads


@pytest.mark.parametrize(("most", "times"), [(32 * 1024 * 1024, 1), (5000, 2)])
def test_letters_are_read_twice_only_where_they_are_too_many_to_keep(
    monkeypatch: pytest.MonkeyPatch, most: int, times: int
) -> None:
    settled = Message(
        topic=STATE.dlq, partition=0, offset=9, value=settlement([Origin(0, 1, 1000)]),
        headers=[(SETTLED, b"redriven")],
    )  # fmt: skip
    there = [*map(as_sent, range(4)), settled, Message(topic=STATE.dlq, value=b"foreign")]
    reads = letters_of(there, monkeypatch)
    monkeypatch.setattr(letters, "_KEPT_BYTES", most)
    found = Letters({}, STATE)
    assert [one.origin.offset for one in found.open(Wanted())] == [0, 2, 3]
    assert found.foreign == 1
    assert reads == [STATE.dlq] * times


@pytest.mark.parametrize("value", [b"no settlement", settlement([Origin(0, 1, 1000)])])
def test_a_letter_whose_record_says_that_it_settles_is_a_letter(
    monkeypatch: pytest.MonkeyPatch, value: bytes
) -> None:
    """Headers are the producer's to choose: they settle no letters, and stop no command."""
    says = as_sent(2, value, [(SETTLED, b"redriven")])
    letters_of([as_sent(1), says], monkeypatch)
    found = Letters({}, STATE)
    one, other = found.open(Wanted())
    assert (one.origin.offset, other.origin.offset) == (1, 2)
    assert (other.value, other.headers) == (value, [(SETTLED, b"redriven")])
    assert not found.settled
    assert not found.foreign


def test_a_letter_is_read_back_as_it_was_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own headers stay, ours are taken off; what it names is the record that it was."""
    sent: list[Message] = []

    class Producer:
        def __init__(self, _settings: Any) -> None: ...

        def produce(
            self, topic: str, value: Any, key: Any, *, headers: Any, on_delivery: Any
        ) -> None:
            sent.append(Message(topic=topic, partition=0, offset=9, value=value, key=key,
                                headers=headers))  # fmt: skip
            on_delivery(None, sent[-1])

        def poll(self, _seconds: float) -> None: ...

    monkeypatch.setattr(deadletters, "Producer", Producer)
    own = [("trace", b"\0"), ("trace", b""), (REDRIVEN, b"2")]
    record = Message(
        topic=STATE.topic, partition=3, offset=17, key=None, value=b"v", headers=own,
        timestamp=(1, 5000),
    )  # fmt: skip
    DeadLetters({}, "postgres").send(STATE, [DeadLetter(record, "rejected", "why")])
    (message,) = sent
    found = letter_of(message, STATE.topic)
    assert found is not None
    assert found.origin == Origin(3, 17, 5000)
    assert (found.kind, found.reason, found.destination) == ("rejected", "why", "postgres")
    assert (found.key, found.value, found.headers, found.redriven) == (None, b"v", own, 2)
    assert (found.partition, found.offset) == (0, 9)
    assert {name for name, _ in message.headers() or ()} - {name for name, _ in own} == OURS
    assert letter_of(message, "another") is None
    assert letter_of(Message(topic="t", headers=[("a", b"")]), STATE.topic) is None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("8,388,700 bytes, the limit is 8", "9 bytes, the limit is 8"),
        ('invalid input for integer: "abc"', 'invalid input for integer: "x y"'),
        ("DateTime '2299-01-01' at 0x1f", "DateTime 'never' at 0xAB"),
        ("0197a2b4-7c1e-7cc3-98c4-dc0c0c07398f is", "11111111-7c1e-7cc3-98c4-dc0c0c073980 is"),
        ("-3.5 is below 0", "-12 is below 10"),
    ],
)  # fmt: skip
def test_reasons_that_differ_in_their_values_are_one_class(one: str, other: str) -> None:
    assert class_of(one) == class_of(other)
    assert class_of(class_of(one)) == class_of(one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ('column "a" of relation "t"', 'column "b" of relation "t"'),
        ("timestamp is not set", "device_id is not set"),
        ("it says utf8", "it says utf16"),
    ],
)
def test_reasons_that_name_other_things_are_others(one: str, other: str) -> None:
    assert class_of(one) != class_of(other)


@pytest.mark.parametrize(
    "text",
    [
        "a" * 100_000 + "g", "0x" + "a" * 100_000 + "g", "'" * 99_999, '": "' * 33_333,
        "1," * 50_000 + "x", "a" * 8 + "-aaaa" * 20_000,
    ],
)  # fmt: skip
def test_what_a_stranger_wrote_into_a_reason_is_read_once(text: str) -> None:
    """Where each digit may be given back and tried otherwise, a thousand of them take hours."""
    assert class_of(class_of(text)) == class_of(text)


def test_what_is_meant_is_by_kind_reason_time_and_place() -> None:
    one = letter(7, reason='invalid input for integer: "abc"')
    assert Wanted()(one)
    for reason in ("rejected", 'integer: "else"', "invalid input for integer: …"):
        assert Wanted(reason)(one)
    for reason in ("undecodable", "reject", "not UTF-8"):
        assert not Wanted(reason)(one)
    assert Wanted(begin_us=2_007_000, end_us=2_007_001)(one)
    assert not Wanted(begin_us=2_007_001)(one)
    assert not Wanted(end_us=2_007_000)(one)
    assert Wanted(at=[(1, 7), (0, 7)])(one)
    assert not Wanted(at=[(1, 7)])(one)


# -- sending ---------------------------------------------------------------------------------------


def test_what_decodes_is_sent_and_what_does_not_stays_with_the_reason() -> None:
    letters = [letter(0, state()), letter(1, b"\xff"), letter(2, None), letter(3, state(3))]
    sent: list[tuple[Letter, bytes | None]] = []
    outcome = redrive(Box(letters), STATE, Wanted(), None, sent.extend)  # type: ignore[arg-type]
    assert [(one.offset, value) for one, value in sent] == [(0, state()), (3, state(3))]
    assert (outcome.sent, outcome.rejected, outcome.failed) == (2, 2, 2)
    assert sorted(stay.example.offset for stay in outcome.stay.values()) == [1, 2]
    assert all("still can't be decoded" in stay.reason for stay in outcome.stay.values())


def test_an_edit_that_fails_leaves_its_letter_and_no_other() -> None:
    def edit(value: bytes) -> bytes:
        if value == b"raise":
            raise Left("it raised KeyError: 5")
        if value == b"raise too":
            raise Left("it raised KeyError: 6")
        if value == b"none":
            raise Left("it returned None", meant=True)
        return b"\xff" if value == b"spoil" else state()

    values = [b"raise", b"a", b"none", b"raise too", b"spoil", b"b"]
    letters = [letter(n, value) for n, value in enumerate(values)]
    sent: list[tuple[Letter, bytes | None]] = []
    outcome = redrive(Box(letters), STATE, Wanted(), edit, sent.extend)  # type: ignore[arg-type]
    assert [one.offset for one, _ in sent] == [1, 5]
    assert {(stay.count, stay.example.offset) for stay in outcome.stay.values()} == {
        (2, 0), (1, 2), (1, 4),
    }  # fmt: skip
    assert outcome.failed == 3, "what was meant to stay has not failed"


def test_a_transaction_is_bounded_in_letters_and_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redriving, "_MOST", 3)
    monkeypatch.setattr(redriving, "_MOST_BYTES", 100)
    large = state(client_version="x" * 100)
    values = [state()] * 4 + [large] + [state()] * 2
    sizes: list[int] = []
    redrive(
        Box([letter(n, value) for n, value in enumerate(values)]), STATE, Wanted(), None,  # type: ignore[arg-type]
        lambda pairs: sizes.append(len(pairs)),
    )  # fmt: skip
    assert sizes == [3, 2, 2]


def test_a_cut_is_before_the_first_letter_of_its_time() -> None:
    letters = [letter(n, attempted_ms=at) for n, at in enumerate([10, 20, 15, 30])]
    found = cut(Box(letters, [letters[0].origin]), 20_000)  # type: ignore[arg-type]
    assert (found.starts, found.letters, len(found.open)) == ({0: 1}, 1, 0)
    found = cut(Box(letters, [letters[0].origin]), None)  # type: ignore[arg-type]
    assert (found.starts, found.letters, len(found.open)) == ({0: 4}, 4, 3)


# -- edits -----------------------------------------------------------------------------------------

_MODULE = itertools.count()


def function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> Any:
    name = f"mend_{next(_MODULE)}"
    (tmp_path / f"{name}.py").write_text(f"def mend(value):\n    {body}\n")
    monkeypatch.chdir(tmp_path)
    return edit_of(f"python {name}:mend")


def test_a_function_gets_the_bytes_and_returns_bytes_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert function(tmp_path, monkeypatch, "return value[::-1]")(b"abc") == b"cba"
    for body, why in (
        ("return None", "returned None"),
        ("return 'text'", "returned str, not bytes"),
        ("return {}['x']", "raised KeyError: 'x'"),
    ):
        with pytest.raises(Left, match=why) as left:
            function(tmp_path, monkeypatch, body)(b"abc")
        assert left.value.meant == (body == "return None")


@pytest.mark.parametrize("named", ["python no_such_module:f", "python json:no_such_function"])
def test_a_function_that_is_not_there_is_said_before_anything_is_sent(named: str) -> None:
    with pytest.raises(Systemic, match="can't be loaded"):
        edit_of(named)


@pytest.mark.parametrize("text", ["def mend(:", "raise RuntimeError('no')"])
def test_a_module_that_can_not_be_loaded_is_said_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    name = f"mend_{next(_MODULE)}"
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Systemic, match=r"can't be loaded: (SyntaxError|RuntimeError): "):
        edit_of(f"python {name}:mend")


@pytest.mark.parametrize(
    "command",
    [
        "python -c 'd = {0: 1}; import sys; sys.stdout.write(sys.stdin.read()[::-1])'",
        "python ./mend.py --map a:b",
        "python mend.py x:y",
    ],
)
def test_a_colon_in_what_python_is_to_run_makes_no_function_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    (tmp_path / "mend.py").write_text("import sys; sys.stdout.write(sys.stdin.read()[::-1])")
    (tmp_path / "python").symlink_to(sys.executable)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert edit_of(command)(b"abc") == b"cba"
    with pytest.raises(Systemic, match=r"'python no_such\.module:f' can't be loaded"):
        edit_of("  python   no_such.module:f ")


def test_a_command_is_a_filter_and_its_exit_code_counts() -> None:
    assert edit_of("tr a-c d-f | cat")(b"abc\0") == b"def\0"
    with pytest.raises(Left, match="ended with 3: second"):
        edit_of("echo first >&2; echo second >&2; exit 3")(b"")


# -- bytes as far as they go -----------------------------------------------------------------------


def shown(data: bytes, stream: Any = STATE) -> tuple[dict[str, str], Broken | None]:
    found: dict[str, str] = {}
    try:
        found.update(walk(data, stream.descriptor))
    except Broken as broken:
        return found, broken
    return found, None


def test_a_message_is_shown_by_the_names_of_its_fields() -> None:
    fields, broken = shown(state(5, client_version="2025.6") + b"\x7a\x02ab")
    assert broken is None
    assert fields == {
        "timestamp": "2025-06-15T15:06:45Z", "device_id": "'d5'", "colo": "'SJC'",
        "client_version": "'2025.6'", "?15": "2 bytes of a length and so many bytes",
    }  # fmt: skip


def test_the_field_at_which_a_message_breaks_is_named_and_what_is_before_it_is_shown() -> None:
    good = state(1)
    at = good.index(b"SJC")
    fields, broken = shown(good.replace(b"SJC", b"\xffJC"))
    assert broken is not None
    assert (broken.path, broken.at) == ("colo", at - 2)
    assert "not UTF-8" in broken.reason
    assert fields["device_id"] == "'d1'"
    fields, broken = shown(good[: at + 1])
    assert broken is not None
    assert broken.path == "colo"
    assert "says 3 bytes, and 1 are left" in broken.reason


@given(st.binary(max_size=200))
def test_whatever_the_bytes_are_they_are_shown_or_break_somewhere(data: bytes) -> None:
    _, broken = shown(data, EVERYTHING)
    assert broken is None or 0 <= broken.at < len(data)


def test_every_kind_of_field_is_shown_and_a_message_cut_anywhere_is_shown_up_to_there() -> None:
    message: Any = EVERYTHING.message(
        id="k", double_v=0.5, float_v=-2, int32_v=-3, int64_v=-4, uint32_v=5, uint64_v=2**64 - 1,
        sint32_v=-7, sint64_v=-8, fixed32_v=9, fixed64_v=10, sfixed32_v=-11, sfixed64_v=-12,
        bool_v=True, raw=b"\xff", colour="COLOUR_BLUE", maybe_int=0, texts=["a", "b"],
        numbers=[1, 300], doubles=[0.5, 1], colours=["COLOUR_RED"], counts={"x": -1},
        parts=[{"name": "p"}, {"sizes": [-1, 2]}], nothing={}, text_w={"value": "w"},
    )  # fmt: skip
    message.seen_at.seconds = 1_750_000_000
    whole = message.SerializeToString()
    fields, broken = shown(whole, EVERYTHING)
    assert broken is None
    assert fields == {
        "id": "'k'", "seen_at": "2025-06-15T15:06:40Z", "double_v": "0.5", "float_v": "-2.0",
        "int32_v": "-3", "int64_v": "-4", "uint32_v": "5", "uint64_v": str(2**64 - 1),
        "sint32_v": "-7", "sint64_v": "-8", "fixed32_v": "9", "fixed64_v": "10",
        "sfixed32_v": "-11", "sfixed64_v": "-12", "bool_v": "true", "raw": "b'\\xff'",
        "colour": "COLOUR_BLUE", "maybe_int": "0", "texts[0]": "'a'", "texts[1]": "'b'",
        "numbers[0]": "[1, 300]", "doubles[0]": "[0.5, 1.0]", "colours[0]": "[COLOUR_RED]",
        "counts[0].key": "'x'", "counts[0].value": "-1", "parts[0].name": "'p'",
        "parts[1].sizes[0]": "[-1, 2]", "nothing": "{}", "text_w.value": "'w'",
    }  # fmt: skip
    for end in range(len(whole)):
        cut_short, broken = shown(whole[:end], EVERYTHING)
        assert cut_short.items() <= fields.items()
        assert broken is None or whole[:end] != whole


def test_nesting_beyond_measure_breaks_like_anything_else() -> None:
    inner = b""
    for _ in range(3000):
        size, length = len(inner), b""
        while size >= 0x80:
            length, size = length + bytes((size & 0x7F | 0x80,)), size >> 7
        inner = b"\x12" + length + bytes((size,)) + inner  # Node.below
    data = inner.replace(b"\x12", b"\xd2\x05", 1)  # Everything.tree
    _, broken = shown(data, EVERYTHING)
    assert broken is not None
    assert "nested" in broken.reason
