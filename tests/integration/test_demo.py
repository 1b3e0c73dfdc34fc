"""`headrace demo` as a stranger runs it, made small: its story, its exit code, what it leaves."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

SMALL = ("--devices", "600", "--hours", "1", "--live", "4s")
DEADLINE_S = 270.0
# A shell that runs the tests in the background has them ignore SIGINT, and their children too.
_MAIN = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from headrace.cli import main
main()
"""


@dataclass(frozen=True)
class Run:
    """A demo under way in a temporary directory of its own."""

    process: subprocess.Popen[bytes]
    log: Path
    temp: Path

    @property
    def output(self) -> str:
        return self.log.read_text(encoding="utf-8")

    def until(self, pattern: str) -> re.Match[str]:
        """Wait until it says that."""
        give_up = time.monotonic() + DEADLINE_S
        while (found := re.search(pattern, self.output)) is None:
            assert self.process.poll() is None, self.output
            assert time.monotonic() < give_up, self.output
            time.sleep(0.05)
        return found

    def left(self) -> list[str]:
        """What of it still runs: everything that it starts has its directory from it."""
        found = []
        for process in psutil.process_iter(["pid", "cmdline", "environ"]):
            line = " ".join(process.info["cmdline"] or ())
            temp = (process.info["environ"] or {}).get("TMPDIR", "")
            ours = Path(temp).is_relative_to(self.temp)
            if (ours or str(self.temp) in line) and process.pid != self.process.pid:
                found.append(f"{process.info['pid']}: {line[:200]}")
        return found


Start = Callable[..., Run]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts demos; those still running afterwards are ended."""
    runs = []

    def begin(*args: str) -> Run:
        temp, log = tmp_path / "temp", tmp_path / "out.log"
        temp.mkdir()
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-c", _MAIN, "demo", *args],
                stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, cwd=tmp_path,
                env={**os.environ, "TMPDIR": str(temp)},
            )  # fmt: skip
        runs.append(Run(process, log, temp))
        return runs[-1]

    yield begin
    for run in runs:
        run.process.terminate()
        run.process.wait(60)


def test_a_short_demo_kills_inserters_counts_every_row_and_leaves_nothing(
    start: Start, tmp_path: Path
) -> None:
    run = start(*SMALL)
    code = run.process.wait(DEADLINE_S)
    said = run.output
    assert code == 0, said
    # A line of the closing table for each stream and database; its figures add up.
    lines = re.findall(r"^ ?(\w+) +(PostgreSQL|ClickHouse) +([\d,]+(?: +[\d,]+){4})$", said, re.M)
    figures = {
        (stream, to): [int(n.replace(",", "")) for n in numbers.split()]
        for stream, to, numbers in lines
    }
    streams = ("device_state", "http_test", "traceroute_test", "noisy_state")
    assert set(figures) == {(s, to) for s in streams for to in ("PostgreSQL", "ClickHouse")}, said
    for published, landed, dead, duplicated, lost in figures.values():
        assert published == landed + dead > 0
        assert (duplicated, lost) == (0, 0)
    assert figures["device_state", "PostgreSQL"] == [18_000, 18_000, 0, 0, 0]
    # 600 / 9 devices, 30 reports each, one in a hundred spoilt.
    assert figures["noisy_state", "ClickHouse"] == [1_980, 1_960, 20, 0, 0]
    # One inserter of each kind was killed, and some, not all, had landed then.
    kills = re.findall(
        r"SIGKILL after [\d.]+ s: inserter (\w+).*?with\s+([\d,]+)\s+of\s+([\d,]+)", said, re.S
    )
    assert [to for to, _landed, _total in kills] == ["PostgreSQL", "ClickHouse"], said
    for _to, landed, total in kills:
        assert 0 < int(landed.replace(",", "")) < int(total.replace(",", "")) == 18_000
    assert "gives the same figures" in said
    # A line for each vendor: what may leave of a quarter of searches, half of checkouts.
    rows = re.findall(
        r"^ ?(\w+) +([\d,]+) +([\d,]+) +([\d,]+) +(\d+) +(\d+) +(never down|[\d.]+ s)$", said, re.M
    )
    assert [row[0] for row in rows] == ["amplitude", "mixpanel", "posthog"], said
    for vendor, *numbers, gap in rows:
        sent, accepted, dropped, missing, doubled = (int(n.replace(",", "")) for n in numbers)
        assert sent == accepted > 0
        assert dropped == (sent if vendor == "mixpanel" else sent // 3)
        assert (missing, doubled) == (0, 0)
        assert (gap == "never down") == (vendor != "amplitude")
    # What the collector acknowledged and what is in Kafka, in one hour or two.
    crossed = re.findall(r"raw_events +kafka +([\d,]+) +([\d,]+) +0 +0 +0$", said, re.M)
    product = re.search(r"of ([\d,]+) product events", said)
    assert product is not None
    for counted in zip(*crossed, strict=True):
        assert sum(int(n.replace(",", "")) for n in counted) == int(product[1].replace(",", ""))
    assert crossed
    assert re.search(r"amplitude is back after [\d.]+ s", said)
    assert re.search(r"SIGKILL after [\d.]+ s: the forwarder", said)
    # Not a terminal: plain text.
    assert not any(c != "\n" and not c.isprintable() for c in said), said
    assert run.left() == []
    assert list(run.temp.iterdir()) == []
    assert not (tmp_path / ".headrace").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_demo_that_is_ended_in_the_middle_leaves_no_process(
    start: Start, number: signal.Signals, code: int
) -> None:
    run = start(*SMALL)
    pids = run.until(r"\(pid (\d+), (\d+)\)\s+and one for ClickHouse\s+\(pid\s+(\d+)\)")
    run.until("Publishing begins")
    # The vendors' act has begun beside it.
    while not any("vendors serve" in line for line in run.left()):
        assert run.process.poll() is None, run.output
        time.sleep(0.05)
    assert all(psutil.pid_exists(int(pid)) for pid in pids.groups())
    assert len(run.left()) >= 6, "Kafka, PostgreSQL, three inserters and the stand-in vendors"
    run.process.send_signal(number)
    assert run.process.wait(60) == code, run.output
    # After SIGKILL nobody cleans up but the guard of the stack and the inserters themselves.
    give_up = time.monotonic() + 60
    while left := run.left():
        assert time.monotonic() < give_up, left
        time.sleep(0.1)
    if number == signal.SIGINT:
        assert list(run.temp.iterdir()) == []
        assert "Interrupted" in run.output
        assert "Traceback" not in run.output
