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
import subprocess
import threading
import time
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType
from typing import NamedTuple, Self

from headrace.demo.model import DemoError, Settings
from headrace.demo.place import Place
from headrace.demo.published import receipts
from headrace.demo.story import Story
from headrace.demo.traffic import Background
from headrace.demo.vendor_count import Delivered, ForwarderKill, Outage, Stored, settle
from headrace.demo.vendor_crew import StoppedError, VendorCrew
from headrace.demo.vendor_events import Events
from headrace.demo.vendor_setup import (
    ALLOWED,
    BROKEN,
    CONFIG,
    OUTAGE_S,
    SECRET,
    configuration,
    event,
)  # fmt: skip
from headrace.fleet import seeded
from headrace.vendors.client import Vendors, serve

__all__ = ["Note", "Play"]

_PATIENCE_S, _POLL_S = 60.0, 0.05
# How long a vendor takes for an answer; and when none is to come before the kill.
_SLOW_S, _HELD_S = 0.2, 600.0
_QUIET_S = 1.0
# More than is between the first event of a batch and its last.
_BATCH_US = 1000
_MOST = 1_000_000


class Note(NamedTuple):
    """A sentence, and when it was true: seconds since the demo began."""

    at_s: float
    sentence: str
    style: str = ""


class Play:
    """See the module's comment."""

    def __init__(self, place: Place, settings: Settings, story: Story) -> None:
        self.notes: list[Note] = []
        self._place, self._story = place, story
        # As long as the first half of the logs takes: ten seconds, and less in a smaller demo.
        self._outage_s = settings.live_s
        self._stopped = threading.Event()
        self._delivered: Delivered | None = None
        self._crew = VendorCrew(place, CONFIG, self._stopped)
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
                stack.callback(self._crew.end_all)
                vendors = stack.enter_context(serve())
                self._delivered = self._act(vendors, stack)
        except StoppedError:
            pass
        except (OSError, ValueError, RuntimeError) as error:
            raise DemoError(f"the stand-in vendors do not answer: {error}") from error

    def _act(self, vendors: Vendors, stack: ExitStack) -> Delivered:
        crew = self._crew
        (self._place.folder / CONFIG).write_text(configuration(vendors.at))
        _slow(vendors, _SLOW_S)
        self._show_requests()
        spool = str(self._place.folder / "spool")
        collector = crew.start("collect", "--spool", spool, "--listen", "127.0.0.1:0")
        forwarder = crew.start("forward")
        events = Events(crew.address(collector))
        stack.callback(events.stop)
        crew.beside = sending = Background(events.run)
        crew.until("no event reaches the vendors", lambda: _all_have(vendors))
        self._note("Product events go to a collector (`headrace collect`), and by `headrace "
                   f"forward` (pid {forwarder.pid}) to {', '.join(ALLOWED)}.")  # fmt: skip
        outage = self._outage(vendors, events, forwarder)
        kill = self._kill(vendors, forwarder)
        events.stop()
        crew.until("the collector does not bring its events to Kafka", lambda: sending.done)
        sending.check()
        crew.end_in_order(collector)
        total = sum(e.name in names for names in ALLOWED.values() for e in events.sent)
        return self._count_all(vendors, events, replace(kill, total=total), outage)

    def _outage(
        self, vendors: Vendors, events: Events, forwarder: subprocess.Popen[bytes]
    ) -> Outage:
        """Down for so long, or until all of it is shown; up again, and the gap closed."""
        crew = self._crew
        vendors.break_(BROKEN, down="reset")
        # What was under way when it broke is still taken.
        crew.until(f"{BROKEN} is not down", lambda: vendors.stored(BROKEN)["waiting"] == 0)
        down_us, began = _now_us(), time.monotonic()
        before = _resets(vendors)
        self._note(f"{BROKEN} goes down: it resets every connection.", "bold red")
        crew.sleep(self._outage_s / 2)
        crew.until("no event is sent", lambda: events.sent[-1].at_us > down_us + _BATCH_US)
        half_us = _now_us()

        def others_go_on() -> bool:
            # Events are sent one batch after the other: behind a later one all are known.
            first = [e for e in list(events.sent) if down_us <= e.at_us < half_us]
            return events.sent[-1].at_us >= half_us and all(
                {e.event_id for e in first if e.name in names} <= set(vendors.keys(name))
                for name, names in ALLOWED.items() if name != BROKEN
            )  # fmt: skip

        crew.until(f"the others do not get their events while {BROKEN} is down", others_go_on)
        crew.until_said(
            f"the forwarder does not find {BROKEN} away",
            forwarder,
            f"({BROKEN}) waits, trying again",
        )
        crew.sleep(max(OUTAGE_S, began + self._outage_s - time.monotonic()))
        # Asked once more in vain, the forwarder knows that it has been away for that long.
        so_far = _resets(vendors)
        crew.until(f"{BROKEN} is not asked while it is down", lambda: _resets(vendors) > so_far)
        cut = _resets(vendors) - before
        up_us = _now_us()
        vendors.break_(BROKEN, slow_s=_SLOW_S)
        missed = {e.event_id for e in list(events.sent)
                  if e.name in ALLOWED[BROKEN] and e.at_us < up_us}  # fmt: skip
        down_s = (up_us - down_us) / 1e6
        self._note(f"{BROKEN} is back after {down_s:.1f} s; it cut off {cut:,} requests.")
        replay = crew.until_said(
            f"{BROKEN} does not get fresh events first", forwarder, r"are the replay (\w+)"
        )
        self._note(f"{BROKEN} gets fresh events at once; what it missed is the replay {replay}, "
                   "which the forwarder runs beside them.")  # fmt: skip
        crew.until(
            f"{BROKEN} does not get what it missed", lambda: missed <= set(vendors.keys(BROKEN))
        )
        crew.until_said(
            f"the replay {replay} is not done", forwarder, f"replay ({replay}) of {BROKEN} is done"
        )
        self._note(f"{BROKEN} has all that it missed, and the replay {replay} is done.")
        return Outage(BROKEN, down_us, half_us, up_us, cut, replay)

    def _kill(self, vendors: Vendors, forwarder: subprocess.Popen[bytes]) -> ForwarderKill:
        """SIGKILL while requests are under way; a new one starts and goes on.

        No vendor answers meanwhile: what is under way stays so, however long this takes.
        """
        crew = self._crew

        def under_way() -> int:
            return sum(vendors.stored(name)["waiting"] for name in ALLOWED)

        _slow(vendors, _HELD_S)
        crew.until("no request is under way", lambda: under_way() > 0)
        at_s = self._story.elapsed_s
        crew.kill(forwarder)
        killed_us = _now_us()
        waiting = under_way()
        stored = sum(vendors.stored(name)["count"] for name in ALLOWED)
        killed = f"SIGKILL to the forwarder (pid {forwarder.pid})"
        self._note(f"{killed}; requests under way: {waiting}.", "bold red")
        _slow(vendors, _SLOW_S)
        again = crew.start("forward")
        crew.until(
            "the forwarder that was started again does not go on",
            lambda: _all_have(vendors, since_us=killed_us),
        )
        self._note(f"Started again (pid {again.pid}), it goes on once Kafka has missed the dead "
                   "one's heartbeat for 6 s.")  # fmt: skip
        crew.sleep(_QUIET_S)
        crew.end_in_order(again)
        return ForwarderKill(forwarder.pid, at_s, waiting, stored, 0)

    def _count_all(
        self, vendors: Vendors, events: Events, kill: ForwarderKill, outage: Outage
    ) -> Delivered:
        # Whatever is left in Kafka now has been final when this one ends.
        self._crew.finish(self._crew.start("forward", "--drain"))
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
        log = self._crew.finish(self._crew.start("trace", "check", str(file), *[
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

    def _note(self, sentence: str, style: str = "") -> None:
        self.notes.append(Note(self._story.elapsed_s, sentence, style))


def _slow(vendors: Vendors, seconds: float) -> None:
    """Each takes so long for an answer; what it has not answered yet, it answers now."""
    for name in ALLOWED:
        vendors.break_(name, slow_s=seconds)


def _all_have(vendors: Vendors, since_us: int = 0) -> bool:
    """Whether each has stored an event of that time or later."""
    return all(vendors.stored(name, time_from=since_us)["count"] > 0 for name in ALLOWED)


def _resets(vendors: Vendors) -> int:
    """Requests that the broken one has cut off."""
    return int(vendors.stored(BROKEN)["answers"].get("reset", 0))


def _now_us() -> int:
    return time.time_ns() // 1000
