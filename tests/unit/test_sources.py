"""Files and standard input as lines of bytes: compression, line ends, limits, breaks."""

from __future__ import annotations

import gzip
import io
import random
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.sources import OverlongLine, Source, SourceError


def _stream(data: bytes) -> bytes:
    pack = zstandard.ZstdCompressor().compressobj()
    return pack.compress(data) + pack.flush()


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gzip": gzip.compress,
    "zstd": zstandard.ZstdCompressor().compress,
    # Without the size of its content in the header, as a pipe writes it.
    "zstd stream": _stream,
}
packed = pytest.mark.parametrize("pack", PACKERS.values(), ids=PACKERS)


def lines(data: bytes, folder: Path, limit: int = 1 << 20) -> list[bytes]:
    path = folder / "data"
    path.write_bytes(data)
    with Source(str(path), limit=limit) as source:
        return list(source.lines())


@packed
def test_lines_are_the_same_whatever_they_are_packed_in(
    pack: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    wanted = [b"%d %s" % (i, b"x" * (i % 700)) for i in range(3000)]
    for data in (b"\n".join(wanted), b"\n".join(wanted) + b"\n", b"\r\n".join(wanted)):
        assert lines(pack(data), tmp_path) == wanted
    assert lines(pack(b""), tmp_path) == []


@packed
def test_members_and_frames_may_follow_each_other(
    pack: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    assert lines(pack(b"a\nb") + pack(b"c\n") + pack(b"d"), tmp_path) == [b"a", b"bc", b"d"]


@given(
    st.lists(st.binary(max_size=40).filter(lambda b: b"\n" not in b), max_size=20),
    st.integers(1, 30),
)
@settings(max_examples=100)
def test_a_line_over_the_limit_is_marked_and_the_next_one_is_whole(
    tmp_path_factory: pytest.TempPathFactory, wanted: list[bytes], limit: int
) -> None:
    wanted = [line.rstrip(b"\r") for line in wanted]
    if wanted and wanted[0].startswith((b"\xff\xfe", b"\xfe\xff", b"\xef\xbb\xbf", b"\x1f\x8b")):
        wanted[0] = b""
    found = lines(b"".join(line + b"\n" for line in wanted), tmp_path_factory.getbasetemp(), limit)
    assert len(found) == len(wanted)
    for line, original in zip(found, wanted, strict=True):
        assert isinstance(line, OverlongLine) == (len(original) > limit)
        assert original.startswith(line) if isinstance(line, OverlongLine) else line == original


@pytest.mark.parametrize("kind", PACKERS)
def test_a_line_without_end_takes_no_memory(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "data"
    # A few KiB of zstd: what one call makes of it must be bounded too.
    size = (200 if kind.startswith("zstd") else 30) * 1_000_000
    path.write_bytes(PACKERS[kind](b"a\n" + b"x" * size + b"\nb\n"))
    tracemalloc.start()
    try:
        with Source(str(path), limit=100_000) as source:
            found = list(source.lines())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert [found[0], found[2]] == [b"a", b"b"]
    assert isinstance(found[1], OverlongLine)
    assert peak < (40 if kind.startswith("zstd") else 3) * 1_000_000


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path: Path) -> None:
    for pack in PACKERS.values():
        assert lines(pack(b"\xef\xbb\xbfa\nb"), tmp_path) == [b"a", b"b"]


@packed
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_what_a_pipe_brings_is_told_also_when_it_comes_byte_by_byte(
    pack: Callable[[bytes], bytes], bom: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Trickle(io.BytesIO):
        def read1(self, _size: int | None = -1, /) -> bytes:
            return super().read1(1)

    for data in (b"device_id,colo\na,b\n", b"", b"a"):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(Trickle(pack(bom + data))))
        source = Source("-")
        assert source.first_byte == data[:1]
        assert list(source.lines()) == data.splitlines()


def test_zstd_whose_first_output_is_empty_is_told_by_its_content(tmp_path: Path) -> None:
    """256 bytes of a block that does not compress give nothing yet."""
    data = b"\xef\xbb\xbfdevice_id," + random.Random(1).randbytes(5000).hex().encode()
    path = tmp_path / "data"
    path.write_bytes(PACKERS["zstd stream"](data))
    with Source(str(path)) as source:
        assert source.first_byte == b"d"
        assert list(source.lines()) == [data[3:]]


def test_lines_with_their_ends_are_the_whole_text(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"a\r\n\nb\rc\n" + b"x" * 30 + b"\nlast")
    with Source(str(path), limit=20) as source:
        found = list(source.lines(ends=True))
    assert found == [b"a\r\n", b"\n", b"b\rc\n", b"x" * 30, b"last\n"]
    assert isinstance(found[3], OverlongLine)


def test_utf_16_is_refused_with_the_command_that_converts_it(tmp_path: Path) -> None:
    for data in ("a\nb".encode("utf-16"), b"\xfe\xff" + "a".encode("utf-16-be")):
        with pytest.raises(SourceError, match="is UTF-16; convert it with `iconv"):
            lines(data, tmp_path)


@pytest.mark.parametrize("kind", ["gzip", "zstd", "zstd stream"])
@pytest.mark.parametrize("left", [0.5, 0.99])
def test_a_cut_off_archive_gives_what_is_readable_and_then_says_so(
    kind: str, left: float, tmp_path: Path
) -> None:
    # Digits that do not compress much, so that the cut is in the middle of data.
    data = b"".join(b"%x\n" % (i * i * 2654435761 % 2**32) for i in range(200_000))
    whole = PACKERS[kind](data)
    path = tmp_path / "data"
    path.write_bytes(whole[: int(len(whole) * left)])
    got: list[bytes] = []
    said = rf"data is cut off: its {kind[:4]} data ends after"
    with Source(str(path)) as source, pytest.raises(SourceError, match=said):
        for line in source.lines():
            got.append(line)
    assert got == data.split(b"\n")[: len(got)]
    assert len(got) > 200_000 * left * 0.5


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
def test_a_broken_archive_is_named(kind: str, tmp_path: Path) -> None:
    # zstd knows only with a checksum, which its command line writes.
    pack = (
        zstandard.ZstdCompressor(write_checksum=True).compress if kind == "zstd" else gzip.compress
    )
    whole = bytearray(pack(b"".join(b"%x\n" % (i * 2654435761) for i in range(50_000))))
    whole[len(whole) // 2 : len(whole) // 2 + 40] = b"\xff" * 40
    with pytest.raises(SourceError, match=f"is broken: .*its {kind} data ends after"):
        lines(bytes(whole), tmp_path)


def test_what_can_not_be_opened_is_named_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="nowhere does not exist"):
        Source(str(tmp_path / "nowhere"))
    with pytest.raises(SourceError, match="is a directory; name its files"):
        Source(str(tmp_path))
    with pytest.raises(SourceError, match="can't be read: "):
        Source("/proc/self/mem/x")


def test_a_dash_is_standard_input_which_stays_open(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO(gzip.compress(b"a\nb\n"))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(raw))
    source = Source("-")
    assert (source.name, source.size) == ("<stdin>", None)
    assert list(source.lines()) == [b"a", b"b"]
    source.close()
    assert not raw.closed


def test_progress_counts_bytes_of_the_file_not_of_its_content(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(gzip.compress(b"x" * 1_000_000 + b"\n"))
    with Source(str(path), limit=1 << 21) as source:
        assert len(list(source.lines())) == 1
    assert source.size == source.consumed == path.stat().st_size


def test_a_pipe_gives_its_lines_before_it_ends(tmp_path: Path) -> None:
    """`tail -f agent.log | headrace publish …` must not wait for a full buffer."""
    import os

    reader, writer = os.pipe()
    os.write(writer, b"first\n")
    source = Source(f"/dev/fd/{reader}")
    found = source.lines()
    assert next(found) == b"first"
    os.write(writer, b"second\n")
    assert next(found) == b"second"
    os.close(writer)
    assert list(found) == []
    source.close()
    os.close(reader)
