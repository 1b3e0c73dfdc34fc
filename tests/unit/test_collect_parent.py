"""The parent of the workers, and what a worker does beside its requests."""

from __future__ import annotations

import errno
import multiprocessing
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from granian.constants import Interfaces
from granian.log import LogLevels
from granian.server.mp import WorkerProcess

from ingest.collector import metrics
from ingest.collector.parent import (
    Bell,
    Loader,
    Parent,
    Up,
    _answers,
    _held_back,
    _how,
    pause_s,
)
from ingest.collector.probe import Probe
from ingest.collector.server import _LOGS, _room
from ingest.collector.silent import Silent, _look, end_unread, listening


def test_a_worker_that_dies_once_is_started_at_once_and_then_ever_later_up_to_half_a_minute() -> (
    None
):
    pauses = [pause_s(failures) for failures in range(1, 12)]
    assert pauses[:5] == [0, 1, 2, 4, 8]
    assert pauses == sorted(pauses)
    assert pause_s(10**6) == max(pauses) == 30


@pytest.fixture
def handlers() -> Iterator[None]:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


@pytest.mark.usefixtures("handlers")
def test_a_stop_ends_a_worker_that_is_still_starting() -> None:
    """With the parent's handler, which it has from the fork, it would be lost."""
    signal.signal(signal.SIGTERM, lambda *_: None)
    during = []
    made = Loader(lambda: during.append(signal.getsignal(signal.SIGTERM)) or print)()  # type: ignore[func-returns-value]  # its None is what `or` is for
    assert made is print
    assert during == [signal.SIG_DFL]


def test_a_stop_that_comes_while_a_worker_is_made_is_heard_by_it() -> None:
    """It waits where the parent's handler would have taken it, until it means something."""
    code = (
        "import signal\n"
        "from ingest.collector.parent import Loader, _held_back\n"
        "signal.signal(signal.SIGTERM, lambda *_: None)\n"
        "with _held_back():\n"
        "    signal.raise_signal(signal.SIGTERM)\n"
        "    Loader(print)()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, timeout=60)
    assert done.returncode == -signal.SIGTERM


@pytest.mark.usefixtures("handlers")
def test_a_bell_may_be_rung_by_a_signal_whatever_it_interrupts() -> None:
    """Thousands of times, in the middle of a wait or a clear; an Event is stuck soon."""
    bell, rung = Bell(), []
    before = signal.signal(signal.SIGALRM, lambda *_: (rung.append(1), bell.set()))
    signal.setitimer(signal.ITIMER_REAL, 0.000_3, 0.000_3)
    try:
        while len(rung) < 2000:
            assert bell.wait(10)
            bell.clear()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    bell.clear()
    assert not bell.wait(0.01)
    bell.set()
    bell.set()
    assert bell.wait()
    bell.clear()
    assert not bell.wait(0)


class FakeWorker:
    """A process that is none; `start` may fail."""

    def __init__(self, on_start: Callable[[], object] = lambda: None) -> None:
        sentinel, end = multiprocessing.Pipe(duplex=False)
        end.close()
        self.inner = SimpleNamespace(pid=1, exitcode=-9, sentinel=sentinel)
        self.birth, self.idx = 0.0, 0
        self._on_start = on_start
        self.terminated = False

    def start(self) -> None:
        self._on_start()

    def terminate(self) -> None:
        self.terminated = True

    def join(self, timeout: float | None = None) -> None:
        pass

    kill = join


def parent(on_up: Callable[[], object] = lambda: None) -> Any:
    """With two workers that are up, the first of which has died."""
    made: Any = Parent(
        "t", up=Up(), on_up=on_up, workers=2, interface=Interfaces.ASGI, log_dictconfig=_LOGS,
        log_level=LogLevels.warning, workers_kill_timeout=30,
    )  # fmt: skip
    # What it makes when it serves.
    made._sso, made._ipc_sig = None, threading.Event()
    made.wrks = [FakeWorker(), FakeWorker()]
    made._answers = True
    made.interrupt_children = [0]
    made.main_loop_interrupt.set()
    return made


def test_a_worker_that_can_not_be_made_is_tried_again_and_the_others_go_on() -> None:
    tried: list[set[int]] = []
    made = parent()
    dead, other = made.wrks

    def start() -> None:
        tried.append(set(signal.pthread_sigmask(signal.SIG_BLOCK, ())))
        if len(tried) == 1:
            raise BlockingIOError(errno.EAGAIN, "no more processes")
        made.signal_handler_interrupt()

    made._spawn_worker = lambda **_: FakeWorker(start)
    made._serve_loop(None, None)
    assert len(tried) == 2
    assert all({signal.SIGTERM, signal.SIGINT} <= held for held in tried), "a stop waits meanwhile"
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & {signal.SIGTERM, signal.SIGINT}
    assert made.wrks[0] is not dead
    assert made.wrks[1] is other
    made.shutdown()
    assert other.terminated


def test_a_parent_that_fails_stops_its_workers_and_ends_with_1() -> None:
    def on_up() -> None:
        raise ZeroDivisionError

    made = parent(on_up)
    workers = list(made.wrks)
    with pytest.raises(SystemExit) as ended:
        made._serve_loop(None, None)
    assert ended.value.code == 1
    assert all(worker.terminated for worker in workers)


def test_a_stop_is_no_failure_whoever_ends_during_it() -> None:
    """As where a service manager sends SIGTERM to each process."""
    made = parent()
    made.signal_handler_interrupt()
    made._serve_loop(None, None)
    made.interrupt_children = [1]
    made.shutdown()


class Killed(WorkerProcess):
    """A real one that waits for a signal; `kills` counts those that were not SIGTERM."""

    def __init__(self, parent: Parent) -> None:
        super().__init__(parent, 0, signal.pause, ())  # type: ignore[no-untyped-call]  # granian's has no types
        self.kills = 0

    def kill(self) -> None:
        self.kills += 1
        super().kill()  # type: ignore[no-untyped-call]  # granian's has no types


def test_a_worker_that_has_ended_is_not_killed_though_another_thread_has_its_exit_code(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """To multiprocessing it lives until that thread, which granian has for each, says otherwise."""

    class Waited(Killed):
        def terminate(self) -> None:
            super().terminate()  # type: ignore[no-untyped-call]  # granian's has no types
            os.waitpid(self.inner.pid, 0)

    made = parent()
    worker = Waited(made)
    worker.inner.start()
    made.wrks = [worker]
    made._stop_workers()
    assert worker.kills == 0
    assert "it is killed" not in caplog.text


def test_a_worker_that_does_not_end_in_time_is_killed_and_it_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    made = parent()
    worker = Killed(made)
    with _held_back():  # for ever, in this one
        worker.inner.start()
    made.wrks, made.workers_kill_timeout = [worker], 0
    made._stop_workers()
    assert worker.kills == 1
    assert worker.inner.exitcode == -signal.SIGKILL
    assert f"process {worker.inner.pid}, has not ended 0 s after" in caplog.text


def test_who_has_started_is_told_with_its_process() -> None:
    up = Up()
    up.tell()
    assert up.next() == os.getpid()


def test_a_port_answers_when_somebody_listens_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        assert _answers("127.0.0.1", port)
        assert _answers("0.0.0.0", port)
    assert not _answers("127.0.0.1", port)


def test_how_a_worker_ended_is_said_in_words() -> None:
    assert _how(-9) == "killed by SIGKILL"
    assert _how(-63) == "killed by signal 63"
    assert _how(3) == "exit code 3"


# -- connections that say nothing ------------------------------------------------------------------


def pair(server: socket.socket) -> tuple[socket.socket, socket.socket]:
    client = socket.create_connection(server.getsockname())
    client.settimeout(10)
    taken, _ = server.accept()
    return client, taken


def test_what_was_silent_is_closed_and_what_was_not_is_left() -> None:
    now = 100.0
    with socket.create_server(("127.0.0.1", 0)) as server:
        client, taken = pair(server)
        with client, taken:
            # Silent for as long as it takes to be so: nothing is slept over.
            closed, shut = 0, Silent(0.05)
            while not closed:
                closed = shut.close()
            assert closed == 1
            assert client.recv(1) == b""
        client, taken = pair(server)
        with client, taken:
            shut = Silent(30, clock=lambda: now)
            assert shut.close() == 0
            now += 60  # it is open for as long, and has spoken since
            client.sendall(b"x")
            assert shut.close() == 0
            assert taken.recv(1) == b"x"


def test_whoever_waits_to_be_let_in_is_not_taken_for_silent() -> None:
    """What it has said is from long ago, for nobody has read it yet."""
    now = 100.0
    shut = Silent(0.05, clock=lambda: now)
    with socket.create_server(("127.0.0.1", 0)) as server:
        client, taken = pair(server)
        with client, taken:
            client.sendall(b"GET")
            while _look(taken) <= (0.05, True):
                pass
            for _ in range(3):
                assert shut.close() == 0
                now += 60
            assert shut.close() == 0
            assert taken.recv(2) == b"GE"  # it is let in, and is silent from now on
            now += 0.04
            assert shut.close() == 0
            now += 0.02
            assert shut.close() == 1


def test_a_connection_of_ours_to_another_is_never_closed() -> None:
    """Such as the one to Kafka: only what came to a port that listens here is looked at."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours, theirs = pair(server)
    with ours, theirs:  # nobody listens any more
        assert Silent(-1).close() == 0
        theirs.sendall(b"x")
        assert ours.recv(1) == b"x"


@pytest.mark.parametrize("is_first", [False, True])
def test_whoever_takes_nothing_of_what_is_sent_is_cut_off(*, is_first: bool) -> None:
    """Over HTTP/1 too the server waits to send without an end. The first ones are there before it
    is seen to listen."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert is_first or end_unread(0.5)
        client, taken = pair(server)
        assert not is_first or end_unread(0.5)
        with client, taken:
            taken.settimeout(30)
            with pytest.raises(OSError) as raised:
                while True:
                    taken.sendall(b"x" * 1_000_000)
    assert raised.value.errno == errno.ETIMEDOUT


def test_what_listens_for_something_else_is_not_taken_for_the_server() -> None:
    """The metrics' port is there before the server's."""
    with socket.create_server(("127.0.0.1", 0)):
        others = listening()
        assert not end_unread(30, others)
        with socket.create_server(("127.0.0.1", 0)) as server:
            assert end_unread(30, others)
            set_ms = server.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
            assert set_ms == 30_000


@pytest.mark.parametrize(
    ("files", "room"),
    [(4096, 1024), (1408, 1024), (resource.RLIM_INFINITY, 1024), (1024, 640), (256, 64)],
)
def test_a_worker_takes_no_more_connections_than_leave_it_files_of_its_own(
    files: int, room: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (files, files))
    assert _room(1024) == room
    assert ("max_connections = 1024" in caplog.text) == (room < 1024)
    assert _room(1) == 1


def test_without_files_to_open_it_is_said_and_not_taken_for_silence() -> None:
    """As a program of its own, which may have few."""
    code = (
        "import errno, os, resource\n"
        "from ingest.collector.silent import Silent\n"
        "_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))\n"
        "held = []\n"
        "try:\n"
        "    while True:\n"
        "        held.append(os.dup(0))\n"
        "except OSError:\n"
        "    pass\n"
        "try:\n"
        "    Silent(1).close()\n"
        "except OSError as error:\n"
        "    assert error.errno == errno.EMFILE\n"
        "else:\n"
        "    raise AssertionError\n"
        "os.close(held.pop())\n"
        "assert Silent(1).close() == 0\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, stdin=subprocess.DEVNULL)


# -- how long the disk takes -----------------------------------------------------------------------


def syncs() -> float:
    return next(
        sample.value
        for metric in metrics.FSYNC_SECONDS.collect()
        for sample in metric.samples
        if sample.name.endswith("_count")
    )


def test_each_sync_of_the_disk_is_counted_and_leaves_one_page_and_then_nothing(
    tmp_path: Path,
) -> None:
    before = syncs()
    probe = Probe(tmp_path)
    for _ in range(3):
        probe.sync()
    assert syncs() == before + 3
    assert [path.stat().st_size for path in tmp_path.iterdir()] == [4096]
    probe.close()
    probe.close()
    assert not list(tmp_path.iterdir())


def test_a_probe_is_closed_behind_a_sync_that_is_under_way_and_makes_no_file_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its page might be written to whatever file has the number by then."""
    probe = Probe(tmp_path)
    probe.sync()
    other = tmp_path / "other"
    other.write_bytes(b"other")
    write, begun, may = os.pwrite, threading.Event(), threading.Event()

    def slow(file: int, data: bytes, at: int) -> int:
        begun.set()
        assert may.wait(30)
        return write(file, data, at)

    monkeypatch.setattr(os, "pwrite", slow)
    syncing, closing = (threading.Thread(target=work) for work in (probe.sync, probe.close))
    syncing.start()
    assert begun.wait(30)
    closing.start()
    closing.join(0.1)
    with other.open("r+b"):  # where a closed number is free, this has it
        may.set()
        syncing.join()
        closing.join()
    probe.sync()
    assert [path.name for path in tmp_path.iterdir()] == ["other"]
    assert other.read_bytes() == b"other"


def test_a_disk_that_can_not_be_asked_counts_nothing_and_raises_nothing(tmp_path: Path) -> None:
    before = syncs()
    probe = Probe(tmp_path / "missing")
    probe.sync()
    probe.close()
    assert syncs() == before
