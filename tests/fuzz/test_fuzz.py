"""The fuzzer's short run, and requests that are small themselves and were once much to do."""

from __future__ import annotations

import asyncio
import gzip
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from fuzz.calls import Call
from fuzz.run import fuzz, resident_bytes
from fuzz.target import Target
from fuzz.wires import send_all

# Another seed for each version of the fuzzer; `make fuzz` takes the time.
_SEED = 4
_INPUTS = 20_000


def test_no_input_is_answered_with_an_error_of_ours_or_hangs_or_costs_memory() -> None:
    """20,000 of them, bodies for every door and the unix socket's frames; see fuzz/run.py."""
    report = fuzz(_INPUTS, _SEED)
    assert report.inputs >= _INPUTS
    # It must have come through every door, and been refused at every one.
    for status in (200, 202, 400, 401, 403, 404, 405, 413, 415, 422, 429, 503):
        assert report.statuses[status], f"nothing was answered with {status}: {report}"


_MOST = 16 * 1024 * 1024


def _filled(before: bytes, unit: bytes, behind: bytes) -> Callable[[], bytes]:
    """All that a body may unpack to."""
    times = (_MOST - len(before) - len(behind)) // len(unit)
    return lambda: before + unit * times + behind


_LOGS = "/v1/logs/device_state"
_TEST = "/v1/logs/test"
# The mark of the most memory is Linux's; the laws themselves are the same elsewhere.
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is measured there")

_HEAVY: dict[str, tuple[str, str, Callable[[], bytes]]] = {
    "empty lines": (_LOGS, "application/x-ndjson", lambda: b"\n" * _MOST),
    "blank lines": (_LOGS, "application/x-ndjson", _filled(b"", b" \n", b"")),
    "bad lines": (_LOGS, "application/x-ndjson", _filled(b"", b"x\n", b"")),
    "empty objects": (_LOGS, "application/json", _filled(b"[", b"{},", b"{}]")),
    "small objects inside": (_LOGS, "application/json", _filled(b'{"a":[', b'{"a":1},', b"{}]}")),
    "names of one object": (_LOGS, "application/json", _filled(b"{", b'"":{},', b'"a":1}')),
    "long unknown names": (
        _LOGS, "application/json",
        lambda: b"[" + b",".join(b'{"%d%s":1}' % (n, b"x" * 900_000) for n in range(17)) + b"]",
    ),
    "empty lists in a Struct": (_TEST, "application/json",
                                _filled(b'{"properties":{"a":[', b"[],", b"1]}}")),
    "a mask of many": (_TEST, "application/json", _filled(b'{"mask":"', b"a,", b'a"}')),
    "empty messages": (_LOGS, "application/vnd.google.protobuf", lambda: b"\0" * _MOST),
    "digits": ("/v1/track", "application/json", _filled(b'{"userId":', b"9", b"}")),
    "empty events": ("/v1/events", "application/json", _filled(b'{"events":[', b"{},", b"{}]}")),
    "brackets": ("/v1/events", "application/json", lambda: b"[" * _MOST),
    "brackets in text": ("/v1/events", "application/json",
                         _filled(b'{"event":"', b'\\"[', b'"}')),
    "halves of pairs": ("/v1/events", "application/json",
                        _filled(b'{"event":"', b"\\ud83d", b'"}')),
    "deep messages": (
        "/v1/batch", "application/json",
        lambda: b'{"batch":[' + b",".join([b'{"type":"track","a":' + b"[" * 800 + b"]" * 800 + b"}"]
                                          * 9_000) + b"]}",
    ),
}  # fmt: skip


@linux
@pytest.mark.parametrize("what", _HEAVY)
def test_a_few_bytes_that_unpack_to_much_cost_no_more_than_the_much(
    what: str, tmp_path: Path
) -> None:
    """Of a processor 4 s at most; of memory what was unpacked, five times; and short answers.

    Seen: 64 to 79 MB of 16 MiB, as the allocator has it; 1 GB before values were counted.
    """
    path, content_type, make = _HEAVY[what]
    plain = make()
    packed = zstandard.ZstdCompressor(level=3).compress(plain)
    status, answer, cpu_s, grown = asyncio.run(_cost(tmp_path, path, content_type, b"zstd", packed))
    assert 200 <= status < 500
    assert len(answer) < 2_000_000
    assert cpu_s < 4
    assert grown < 5 * _MOST + 16e6


@linux
def test_gzip_of_many_members_is_refused_before_it_is_copied_for_each(tmp_path: Path) -> None:
    packed = gzip.compress(b"", 1) * 200_000
    status, answer, cpu_s, _ = asyncio.run(
        _cost(tmp_path, "/v1/events", "application/json", b"gzip", packed)
    )
    assert status == 400
    assert b"members" in answer
    assert cpu_s < 4


async def _cost(
    folder: Path, path: str, content_type: str, encoding: bytes, packed: bytes
) -> tuple[int, bytes, float, float]:
    """Of one request, with the limits that are in force unless changed."""
    target = Target(folder)
    headers = [
        (b"content-type", content_type.encode()),
        (b"content-encoding", encoding),
        (b"content-length", b"%d" % len(packed)),
        (b"authorization", b"Bearer KEY-A"),
    ]
    call = Call("POST", path, b"", headers, [packed], gone=False, plain=b"")
    _forget_the_most()
    before = resident_bytes()
    begun = time.process_time()
    status, _, answer = await target.ask(call)
    cpu_s = time.process_time() - begun
    return status, answer, cpu_s, _most_bytes() - before


def _forget_the_most() -> None:
    """The system's mark of the most memory that this process had, put to what it has now."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _most_bytes() -> int:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def test_no_connection_ends_the_collector_or_has_no_end() -> None:
    """1,500 of them to a real one, HTTP that is none among them; see fuzz/wires.py."""
    assert "202: " in send_all(1_500, _SEED)
