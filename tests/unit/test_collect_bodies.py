"""Bodies: read within limits, unpacked within limits, whole or not at all."""

from __future__ import annotations

import asyncio
import gzip
import random
import zlib
from collections.abc import Callable
from typing import Any

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from ingest.collector.body import Gone, read, unpack
from ingest.collector.judge import BadBody, Limits

LIMITS = Limits(body_bytes=4096, decoded_bytes=65_536)
PACK: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "zstd": zstandard.ZstdCompressor().compress,
}


def refused(body: bytes, encoding: str) -> BadBody:
    with pytest.raises(BadBody) as raised:
        unpack(encoding, body, LIMITS)
    return raised.value


def streamed_zstd(data: bytes) -> bytes:
    """Without the size in its header, as programs write it that do not know it."""
    packer = zstandard.ZstdCompressor().compressobj()
    return packer.compress(data) + packer.flush()


@pytest.mark.parametrize("encoding", PACK)
@given(data=st.binary(max_size=5000))
def test_what_was_packed_comes_out_as_it_was(encoding: str, data: bytes) -> None:
    assert unpack(encoding, PACK[encoding](data), LIMITS) == data


@given(data=st.binary(max_size=5000))
def test_a_zstd_frame_without_its_size_comes_out_as_it_was(data: bytes) -> None:
    assert unpack("zstd", streamed_zstd(data), LIMITS) == data


def test_a_gzip_body_may_have_several_members() -> None:
    assert unpack("gzip", gzip.compress(b"one") + gzip.compress(b"two"), LIMITS) == b"onetwo"


def test_more_members_than_anybody_writes_are_400() -> None:
    """What is behind each is copied, so a body of empty ones would be copied for minutes."""
    assert unpack("gzip", gzip.compress(b"") * 1000, LIMITS) == b""
    bad = refused(gzip.compress(b"") * 1001, "gzip")
    assert (bad.status, bad.code) == (400, "not_gzip")


def test_a_zstd_window_is_as_large_as_every_reader_allows_and_no_larger() -> None:
    """Its memory is taken before anything comes out."""

    def asking_for(log: int) -> bytes:
        how = zstandard.ZstdCompressionParameters(window_log=log)
        packer = zstandard.ZstdCompressor(compression_params=how).compressobj()
        return packer.compress(b"a record") + packer.flush()

    assert unpack("zstd", asking_for(23), LIMITS) == b"a record"
    bad = refused(asking_for(24), "zstd")
    assert (bad.status, bad.code) == (400, "not_zstd")
    assert "at most 8 MiB" in bad.reason


@pytest.mark.parametrize("encoding", ["", "identity", " Identity "])
def test_a_body_without_an_encoding_is_itself(encoding: str) -> None:
    assert unpack(encoding, b"as it is", LIMITS) == b"as it is"


@pytest.mark.parametrize("encoding", ["br", "deflate", "gzip, gzip", "compress", "x"])
def test_another_encoding_is_415_and_says_which_there_are(encoding: str) -> None:
    bad = refused(b"x", encoding)
    assert (bad.status, bad.code) == (415, "encoding")
    assert "gzip or zstd" in bad.reason


@pytest.mark.parametrize("pack", [*PACK.values(), streamed_zstd])
def test_exactly_the_limit_is_allowed_and_one_more_byte_is_413(
    pack: Callable[[bytes], bytes],
) -> None:
    encoding = "gzip" if pack is gzip.compress else "zstd"
    most = bytes(LIMITS.decoded_bytes)
    assert unpack(encoding, pack(most), LIMITS) == most
    bad = refused(pack(most + b"x"), encoding)
    assert (bad.status, bad.code) == (413, "decoded_too_large")


@pytest.mark.parametrize("kind", ["gzip", "zstd", "zstd streamed", "gzip members"])
def test_a_bomb_costs_no_more_memory_than_the_limit(kind: str) -> None:
    import tracemalloc

    size = 200 * 1024 * 1024
    if kind == "zstd":
        bomb = zstandard.ZstdCompressor(level=1).compress(bytes(size))
    elif kind == "zstd streamed":
        bomb = streamed_zstd(bytes(size))
    elif kind == "gzip members":
        bomb = gzip.compress(bytes(50_000)) * 4000
    else:
        packer = zlib.compressobj(wbits=31)
        bomb = b"".join(packer.compress(bytes(1024 * 1024)) for _ in range(200)) + packer.flush()
    tracemalloc.start()
    try:
        bad = refused(bomb, kind.partition(" ")[0])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert bad.status == 413
    assert peak < 4 * LIMITS.decoded_bytes + 2 * len(bomb)


@pytest.mark.parametrize("pack", [*PACK.values(), streamed_zstd])
def test_a_body_that_breaks_off_anywhere_is_400(pack: Callable[[bytes], bytes]) -> None:
    encoding = "gzip" if pack is gzip.compress else "zstd"
    whole = pack(random.Random(4).randbytes(300))
    for end in range(len(whole)):
        assert refused(whole[:end], encoding).status == 400


@pytest.mark.parametrize("pack", [*PACK.values(), streamed_zstd])
@pytest.mark.parametrize("behind", [b"\0", b"{}", b"x" * 100])
def test_a_body_that_goes_on_behind_its_end_is_400(
    pack: Callable[[bytes], bytes], behind: bytes
) -> None:
    encoding = "gzip" if pack is gzip.compress else "zstd"
    assert refused(pack(b"a record") + behind, encoding).status == 400


@pytest.mark.parametrize("encoding", PACK)
@given(data=st.binary(max_size=200))
def test_bytes_that_were_never_packed_are_400_and_never_a_crash(encoding: str, data: bytes) -> None:
    assert refused(data, encoding).status in (400, 413)


# -- reading ---------------------------------------------------------------------------------------


def receiving(*parts: bytes, end: str = "http.request") -> tuple[Any, list[int]]:
    """A receive() of these parts, and how often it was called."""
    messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    messages.append({"type": end, "body": b"", "more_body": False})
    calls: list[int] = []

    async def receive() -> dict[str, Any]:
        calls.append(1)
        return messages.pop(0)

    return receive, calls


def test_a_body_of_several_parts_is_joined() -> None:
    receive, _ = receiving(b"ab", b"", b"cd")
    assert asyncio.run(read(receive, 4, LIMITS)) == b"abcd"
    receive, _ = receiving(b"ab", b"cd")
    assert asyncio.run(read(receive, -1, LIMITS)) == b"abcd"


def test_a_body_that_says_it_is_too_long_is_refused_unread() -> None:
    receive, calls = receiving(b"x")
    with pytest.raises(BadBody) as raised:
        asyncio.run(read(receive, LIMITS.body_bytes + 1, LIMITS))
    assert raised.value.status == 413
    assert not calls


def test_a_body_that_does_not_say_its_length_is_read_up_to_the_limit() -> None:
    part = bytes(1000)
    receive, calls = receiving(*[part] * 100)
    with pytest.raises(BadBody) as raised:
        asyncio.run(read(receive, -1, LIMITS))
    assert raised.value.status == 413
    assert len(calls) == LIMITS.body_bytes // 1000 + 1


def test_a_first_part_that_is_too_large_is_refused_before_another_comes() -> None:
    """Its sender may wait for the answer, and would only hear that it was too slow."""
    receive, calls = receiving(bytes(LIMITS.body_bytes + 1), b"")
    with pytest.raises(BadBody) as raised:
        asyncio.run(read(receive, -1, LIMITS))
    assert (raised.value.status, raised.value.unread, len(calls)) == (413, True, 1)


def test_of_a_body_no_more_is_kept_than_it_said_it_would_be() -> None:
    """So much has been counted for it against what may be held at a time."""
    receive, calls = receiving(*[b"abc"] * 100)
    with pytest.raises(Gone):
        asyncio.run(read(receive, 4, LIMITS))
    assert len(calls) == 2


@pytest.mark.parametrize("length", [5, -1])
def test_a_client_that_goes_away_in_the_middle_leaves_nothing(length: int) -> None:
    receive, _ = receiving(b"abc", end="http.disconnect")
    with pytest.raises(Gone):
        asyncio.run(read(receive, length, LIMITS))
