"""Product events by way of a collector to three vendors, of which one goes down; a forwarder dies.

    with Play(place, settings, story) as play:
        …                      # the other acts; this one goes on beside them
        delivered = play.result()

It goes on in a thread and says nothing by itself: `notes` are sentences with their time, for
`act_vendors` to tell. The collector and the forwarder are `headrace` processes of their own, the
vendors are the stand-ins in another one; all are gone when the block is left, however.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from headrace.demo.model import DemoError, Settings
from headrace.demo.place import Place, end
from headrace.demo.published import receipts
from headrace.demo.story import Story
from headrace.demo.traffic import Background
from headrace.demo.vendor_count import Delivered, ForwarderKill, Outage, Stored, settle
from headrace.demo.vendor_events import Events
from headrace.demo.vendor_setup import ALLOWED, BROKEN, SECRET, configuration, event
from headrace.fleet import seeded
from headrace.vendors.client import Vendors, serve

__all__ = ["Note", "Play"]

_CONFIG = "vendors.toml"
_PATIENCE_S, _POLL_S = 60.0, 0.05
# How long a vendor takes for an answer: so a kill meets requests that are under way.
_SLOW_S = 0.2
_QUIET_S = 1.0
_MOST = 1_000_000


class Note(NamedTuple):
    """A sentence, and when it was true: seconds since the demo began."""

    at_s: float
    sentence: str
    style: str = ""


class _StoppedError(Exception):
    """The demo ends before this is over."""


class Play:
    """See the module's comment."""

    def __init__(self, place: Place, settings: Settings, story: Story) -> None:
        self.notes: list[Note] = []
        self._place, self._story = place, story
        # As long as the first half of the logs takes: ten seconds, and less in a smaller demo.
        self._outage_s = settings.live_s
        self._stopped = threading.Event()
        self._delivered: Delivered | None = None
        self._running: list[tuple[str, subprocess.Popen[bytes], Path]] = []
        self._count = 0
        self._events: tuple[Events, Background] | None = None
        self._thread: Background | None = None

    def __enter__(self) -> Self:
        self._thread = Background(self._play)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(_PATIENCE_S)

    def done(self) -> bool:
        """Whether `result` answers at once. Raises what went wrong."""
        if self._thread is None:
            return False
        if self._thread.done:
            self._thread.check()
        return self._thread.done

    def result(self) -> Delivered:
        """Wait for the end. Raises DemoError."""
        while not self.done():
            time.sleep(_POLL_S)
        if self._delivered is None:
            raise DemoError("the vendors' act has no result")
        return self._delivered

    # -- in the thread -----------------------------------------------------------------------------

    def _play(self) -> None:
        try:
            with ExitStack() as stack:
                stack.callback(self._end_all)
                vendors = stack.enter_context(serve())
                self._delivered = self._act(vendors)
        except _StoppedError:
            pass
        except (OSError, ValueError, RuntimeError) as error:
            raise DemoError(f"the stand-in vendors do not answer: {error}") from error

    def _act(self, vendors: Vendors) -> Delivered:
        (self._place.folder / _CONFIG).write_text(configuration(vendors.at))
        for name in ALLOWED:
            vendors.break_(name, slow_s=_SLOW_S)
        self._show_requests()
        spool = str(self._place.folder / "spool")
        collector = self._start("collect", "--spool", spool, "--listen", "127.0.0.1:0")
        forwarder = self._start("forward")
        events = Events(self._address(collector))
        sending = Background(events.run)
        self._events = events, sending
        self._until("no event reaches the vendors", lambda: self._all(vendors, lambda n: n > 0))
        self._note("Product events go to a collector (`headrace collect`), and by `headrace "
                   f"forward` (pid {forwarder.pid}) to {', '.join(ALLOWED)}.")  # fmt: skip
        outage = self._outage(vendors, events)
        kill = self._kill(vendors, forwarder)
        events.stop()
        self._until("the collector does not bring its events to Kafka", lambda: sending.done)
        sending.check()
        self._end_in_order(collector)
        total = sum(e.name in names for names in ALLOWED.values() for e in events.sent)
        return self._count_all(vendors, events, replace(kill, total=total), outage)

    def _outage(self, vendors: Vendors, events: Events) -> Outage:
        """Down, and up again, and the gap closed."""
        vendors.break_(BROKEN, down="reset")
        # What was under way when it broke is still taken.
        self._until(f"{BROKEN} is not down", lambda: vendors.stored(BROKEN)["waiting"] == 0)
        down_us = time.time_ns() // 1000
        before = vendors.stored(BROKEN)
        self._note(f"{BROKEN} goes down: it resets every connection.", "bold red")
        self._sleep(self._outage_s)
        after = vendors.stored(BROKEN)
        cut = after["answers"].get("reset", 0) - before["answers"].get("reset", 0)
        up_us = time.time_ns() // 1000
        vendors.break_(BROKEN, slow_s=_SLOW_S)
        outage = Outage(BROKEN, down_us, up_us, cut)
        missed = {e.event_id for e in list(events.sent)
                  if e.name in ALLOWED[BROKEN] and e.at_us < up_us}  # fmt: skip
        self._note(f"{BROKEN} is back after {outage.seconds:.1f} s; it cut off {cut:,} requests.")
        self._until(
            f"{BROKEN} does not get what it missed", lambda: missed <= set(vendors.keys(BROKEN))
        )
        self._note(f"{BROKEN} has all that it missed.")
        return outage

    def _kill(self, vendors: Vendors, forwarder: subprocess.Popen[bytes]) -> ForwarderKill:
        """SIGKILL while requests are under way; a new one starts and goes on."""

        def under_way() -> int:
            return sum(vendors.stored(name)["waiting"] for name in ALLOWED)

        self._until("no request is under way", lambda: under_way() > 0)
        at_s = self._story.elapsed_s
        self._running = [one for one in self._running if one[1] is not forwarder]
        end(forwarder)
        waiting = under_way()
        stored = sum(vendors.stored(name)["count"] for name in ALLOWED)
        killed = f"SIGKILL to the forwarder (pid {forwarder.pid})"
        self._note(f"{killed}; requests under way: {waiting}.", "bold red")
        again = self._start("forward")
        self._until("what was under way is not settled", lambda: under_way() == 0)
        known = {name: vendors.stored(name)["count"] for name in ALLOWED}
        self._until(
            "the forwarder that was started again does not go on",
            lambda: all(vendors.stored(name)["count"] > count for name, count in known.items()),
        )
        self._note(f"Started again (pid {again.pid}), it goes on once Kafka has missed the dead "
                   "one's heartbeat for 6 s.")  # fmt: skip
        self._sleep(_QUIET_S)
        self._end_in_order(again)
        return ForwarderKill(forwarder.pid, at_s, waiting, stored, 0)

    def _count_all(
        self, vendors: Vendors, events: Events, kill: ForwarderKill, outage: Outage
    ) -> Delivered:
        # Whatever is left in Kafka now has been final when this one ends.
        self._finish(self._start("forward", "--drain"))
        found = receipts(self._place.bootstrap, self._place.config.stream("receipts"))
        lines = []
        for name, names in ALLOWED.items():
            told = vendors.stored(name, list="events", limit=_MOST)
            stored = [Stored(e["key"], e["name"], e["came_us"]) for e in told["list"]]
            lines.append(
                settle(
                    name, names, events.sent, stored, found.get(name, {}), outage, told["repeated"]
                )
            )
        self._note("The vendors were asked what they have stored, and Kafka for the receipts.")
        return Delivered(tuple(lines), kill, outage, len(events.sent))

    def _show_requests(self) -> None:
        """What would leave, as an operator asks for it beforehand. Raises DemoError."""
        random = seeded(1, "samples")
        file = self._place.folder / "samples.ndjson"
        with file.open("w") as lines:
            for n in range(4):
                made = event(n, f"sample-{n}", time.time_ns() // 1000, random)
                lines.write(json.dumps(made) + "\n")
        log = self._finish(self._start("trace", "check", str(file), *[
            part for name in ALLOWED for part in ("--vendor", name)]))  # fmt: skip
        said = log.read_text(errors="replace")
        # Bodies are indented; above them is what was taken out, which is for the operator's eyes.
        bodies = [line for line in said.splitlines() if line.startswith(("  {", "  ["))]
        leaving = "".join(bodies)
        if len(bodies) != len(ALLOWED) or SECRET in leaving or "mouse moved" in leaving:
            raise DemoError(f"[trace] lets something leave that it does not list:\n{said[-2000:]}")
        self._note(
            "`headrace trace check` shows the requests that would leave: the event `mouse moved` "
            "and the property `note`, which [trace] does not list, are in none."
        )

    # -- processes and waits -----------------------------------------------------------------------

    def _start(self, *args: str) -> subprocess.Popen[bytes]:
        self._count += 1
        log = self._place.folder / f"vendors-{self._count}-{args[0]}.log"
        process = self._place.start(list(args), log, _CONFIG)
        self._running.append((args[0], process, log))
        return process

    def _log(self, process: subprocess.Popen[bytes]) -> Path:
        return next(log for _name, one, log in self._running if one is process)

    def _address(self, collector: subprocess.Popen[bytes]) -> str:
        log = self._log(collector)

        def said() -> re.Match[str] | None:
            return re.search(r"listening at (http://\S+)", log.read_text(errors="replace"))

        self._until("the collector does not listen", lambda: said() is not None)
        found = said()
        return found[1] if found else ""

    def _end_in_order(self, process: subprocess.Popen[bytes]) -> None:
        """SIGTERM, and the exit code 0. Raises DemoError."""
        process.send_signal(signal.SIGTERM)
        self._finish(process)

    def _finish(self, process: subprocess.Popen[bytes]) -> Path:
        """Wait for its end; its log. Raises DemoError."""
        one = next(one for one in self._running if one[1] is process)
        name, _process, log = one
        self._running.remove(one)
        try:
            self._until(f"`headrace {name}` does not come to its end",
                        lambda: process.poll() is not None)  # fmt: skip
        finally:
            end(process)
        if process.returncode != 0:
            raise DemoError(f"`headrace {name}` ended with {process.returncode}:\n{_tail(log)}")
        return log

    def _end_all(self) -> None:
        for _name, process, _log in self._running:
            end(process)
        self._running.clear()
        if self._events is not None:
            self._events[0].stop()

    def _until(self, trouble: str, what: Callable[[], bool]) -> None:
        give_up = time.monotonic() + _PATIENCE_S
        while not what():
            self._sleep(_POLL_S)
            if time.monotonic() > give_up:
                logs = "\n".join(f"{name}: {_tail(log)}" for name, _, log in self._running)
                raise DemoError(f"{trouble} within {_PATIENCE_S:.0f} s\n{logs}")

    def _sleep(self, seconds: float) -> None:
        """Meanwhile everything has to go on. Raises DemoError, _StoppedError."""
        if self._stopped.wait(seconds):
            raise _StoppedError
        for name, process, log in self._running:
            code = process.poll()
            if code is not None:
                raise DemoError(f"`headrace {name}` ended by itself with {code}:\n{_tail(log)}")
        if self._events is not None:
            self._events[1].check()

    def _all(self, vendors: Vendors, enough: Callable[[int], bool]) -> bool:
        return all(enough(vendors.stored(name)["count"]) for name in ALLOWED)

    def _note(self, sentence: str, style: str = "") -> None:
        self.notes.append(Note(self._story.elapsed_s, sentence, style))


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-8:])
