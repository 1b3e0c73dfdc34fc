"""The engine: all I/O of one vendor. What it sends and what answers mean, others decide.

    1 take      a unit that is first in its lines, if breaker, window and rates let one go
    2 make      its request, anew for each attempt: ages and signatures depend on the time
    3 send      within a time; an answer is read up to 1 MiB (client.py)
    4 judge     the vendor's verdict
    5 account   accepted and rejected events are final; the others are units again, in their place

A request without an answer may have been taken all the same: its events are marked `repeated`,
which vendors are told and receipts say. Belongs to one thread, but for `stop`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import httpx
import uvloop

from consumers import metrics
from consumers.errors import Fenced, Systemic, Unavailable
from consumers.forward.again import jitter, units_again
from consumers.forward.breaker import State
from consumers.forward.budget import Budget
from consumers.forward.client import Client
from consumers.forward.delivery import Delivery
from consumers.forward.engine_settings import EngineSettings
from consumers.forward.lines import Unit, users_of
from consumers.forward.opinion import Opinion
from consumers.forward.pace import Window
from consumers.forward.refusals import Refusals
from consumers.forward.tell import Teller
from consumers.vendors import (
    WHOLE,
    Accepted,
    Answer,
    Code,
    Reason,
    Request,
    RetryAfter,
    Sending,
    Stop,
    Validating,
    Vendor,
    Verdict,
    account,
)

__all__ = ["Engine"]

log = logging.getLogger(__name__)

# A request that waited longer is made anew, in seconds: signatures are good for minutes.
_STALE_S = 30.0
# A rest of the whole vendor that is longer is the run loop's to wait for, in seconds.
_PATIENCE_S = 5.0
# A request of which not a byte has left.
_NEVER_LEFT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError)
# Attempts at the last event of a batch, behind which it is told of.
_ALWAYS = 20
_LOOK_S = 0.05
# How long a stop waits for what is under way, in seconds: a process has a second for its end
# (consumers/lanes.py), also for the receipts of these.
_LAST_S = 0.5


class _Done(NamedTuple):
    """What came of one attempt; `answer` is None where there was none."""

    unit: Unit
    request: Request
    verdict: Verdict
    answer: Answer | None
    findings: Mapping[int, Reason]
    sent_at: float


class Engine:
    """Sends events to one vendor. `close` ends it."""

    def __init__(
        self,
        name: str,
        vendor: Vendor,
        settings: EngineSettings,
        teller: Teller,
        *,
        backfill: bool = False,
        unjudged: bool = False,
        budget: Budget | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """`budget` is shared by all that sends to this vendor, backfill behind what is live.

        `unjudged` is that of `Terms`; `transport` stands in for the network in tests.
        """
        self.name = name
        self._vendor = vendor
        self._teller = teller
        self._runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self._loop = self._runner.get_loop()
        # Done once it is to stop.
        self._told: asyncio.Future[None] = self._loop.create_future()
        self._client = Client(settings, transport)
        self._window = Window(settings.concurrency)
        self._share = (budget or Budget()).share(vendor.limits(backfill=backfill), last=backfill)
        self.breaker = self._share.breaker
        # The request that asks whether a vendor that was away is back, and the question's number.
        self._asking: asyncio.Task[_Done] | None = None
        self._question = 0
        self._refusals = Refusals(name) if unjudged or not backfill else None
        self._shown = not backfill
        # Why the vendor was last left alone.
        self._why = "it does not answer"
        self._opinion = (
            Opinion(name, vendor, self._client, teller) if isinstance(vendor, Validating) else None
        )
        self._show()

    def deliver(self, delivery: Delivery) -> None:
        """Send until all of its events are final.

        Raises Unavailable while the vendor is away, and may be called again with the same delivery;
        Systemic when a person has to act; Fenced after `stop`.
        """
        if not delivery.done:
            self._runner.run(self._deliver(delivery))

    def stop(self) -> None:
        """Send nothing more, and have `deliver` end within a second. From any thread."""
        with suppress(RuntimeError):  # it is closed
            self._loop.call_soon_threadsafe(self._tell_to_stop)

    def _tell_to_stop(self) -> None:
        if not self._told.done():
            self._told.set_result(None)

    def close(self) -> None:
        """Close the connections."""
        self._runner.run(self._client.close())
        self._runner.close()

    # -- the loop ----------------------------------------------------------------------------------

    async def _deliver(self, delivery: Delivery) -> None:
        if not delivery.begun:
            self._begin(delivery)
        under_way: set[asyncio.Task[_Done]] = set()
        try:
            while not (delivery.done or self._told.done()):
                wait_s = self._send_due(delivery, under_way)
                if not under_way:
                    self._check_patience()
                    await asyncio.wait({self._told}, timeout=wait_s or 0.0)
                    continue
                waited: set[asyncio.Future[Any]] = {self._told, *under_way}
                await asyncio.wait(waited, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
                self._account_all(delivery, under_way)
                self._show()
            if under_way:
                await asyncio.wait(under_way, timeout=_LAST_S)
                self._account_all(delivery, under_way)
            if not delivery.done:
                raise Fenced("it was told to stop")
            if self._refusals is not None:
                self._refusals.end()
        finally:
            if under_way:
                for task in under_way:
                    task.cancel()
                await asyncio.gather(*under_way, return_exceptions=True)
            if self._asking is not None:
                # Others who send to this vendor wait for what it says.
                self._asking = None
                self.breaker.gave_up(self._question)
            self._show()

    def _account_all(self, delivery: Delivery, under_way: set[asyncio.Task[_Done]]) -> None:
        """5, for those that have ended."""
        ended = {task for task in under_way if task.done()}
        under_way -= ended
        for task in ended:
            self._account(delivery, task.result())
            if task is self._asking:
                self._asking = None

    def _begin(self, delivery: Delivery) -> None:
        """Make all requests once: the more events are seen together, the fuller they are."""
        delivery.begun = True
        if self._refusals is not None:
            self._refusals.begin()
        for events, repeated in ((delivery.repeated, True), (delivery.fresh, False)):
            root = Unit(events, users_of(self._vendor, ()), repeated=repeated)
            for unit in self._made(delivery, root):
                delivery.lines.add(unit)

    def _made(self, delivery: Delivery, unit: Unit) -> list[Unit]:
        """2: units with requests, of the events of this one; what is refused is final."""
        now_us, now = time.time_ns() // 1000, time.monotonic()
        terms = delivery.terms
        sending = Sending(
            now_us, backfill=terms.backfill, repeated=unit.repeated, first_us=unit.first_us,
            allow_redate=terms.allow_redate, allow_duplicates=terms.allow_duplicates,
        )  # fmt: skip
        requests, refused = self._vendor.requests(unit.events, sending)
        for event, reason in refused:
            delivery.refuse(unit, event, reason, now_us)
        units = []
        for request in requests:
            made = unit.part(self._vendor, request.events)
            made.request, made.made_at = request, now
            units.append(made)
        return units

    def _send_due(self, delivery: Delivery, under_way: set[asyncio.Task[_Done]]) -> float | None:
        """1 to 3, for as many as may go; how long until that may change by itself, if it does."""
        lines = delivery.lines
        while len(under_way) < int(self._window.size):
            now = time.monotonic()
            if not self.breaker.may_send(now):
                # Half open, another one's request asks: its answer is looked for now and then.
                return max(_LOOK_S, self.breaker.due - now) if not under_way else None
            if self._window.rests_until > now:
                return self._window.rests_until - now
            unit = lines.take(now)
            if unit is None:
                due = lines.due()
                return max(0.0, due - now) if due is not None else None
            if unit.request is None or now - unit.made_at > _STALE_S:
                lines.replace(unit, self._made(delivery, unit))
                continue
            count = len(unit.events)
            wait_s, resting_s = self._share.take(now, count, unit.users)
            if wait_s > 0:
                lines.put_back(unit, unit.not_before)
                return wait_s
            if resting_s > 0:
                lines.put_back(unit, now + resting_s)
                continue
            question = self.breaker.sent()
            unit.attempts += 1
            unit.sent_us = time.time_ns() // 1000
            under_way.add(task := asyncio.create_task(self._attempt(unit, unit.request)))
            if question:
                self._asking, self._question = task, question
        return None

    def _check_patience(self) -> None:
        """The vendor is away, or asks to be left alone: the run loop waits, and says so."""
        now = time.monotonic()
        if self.breaker.state is State.OPEN and now < self.breaker.due:
            raise Unavailable(self._why)
        if self._window.rests_until - now > _PATIENCE_S:
            raise Unavailable(f"it asks for {self._window.rests_until - now:.0f} s: {self._why}")

    # -- one attempt -------------------------------------------------------------------------------

    async def _attempt(self, unit: Unit, request: Request) -> _Done:
        """3 and 4."""
        sent_at = time.monotonic()
        found: Mapping[int, Reason] = {}
        if self._opinion is not None and self._opinion.due():
            (verdict, answer), found = await asyncio.gather(
                self._ask(unit, request), self._opinion.ask(request)
            )
        else:
            verdict, answer = await self._ask(unit, request)
        return _Done(unit, request, verdict, answer, found, sent_at)

    async def _ask(self, unit: Unit, request: Request) -> tuple[Verdict, Answer | None]:
        began = time.monotonic()
        try:
            answer = await self._client.send(request)
        except httpx.RequestError as error:
            why = request.masked(f"{type(error).__name__}: {error}".rstrip(": "))
            metrics.VENDOR_ANSWERS.labels(self.name, "none").inc()
            self._teller.no_answer(request, why, unit.attempts)
            return RetryAfter(None, why, unknown=not isinstance(error, _NEVER_LEFT)), None
        metrics.VENDOR_SECONDS.labels(self.name).observe(time.monotonic() - began)
        metrics.VENDOR_ANSWERS.labels(self.name, str(answer.status)).inc()
        verdict = self._vendor.verdict(request, answer, time.time_ns() // 1000)
        # A 2xx may be a login's page, or say that all is dropped.
        if not (200 <= answer.status < 300 and isinstance(verdict, Accepted)):
            self._teller.answered(request, answer, unit.attempts)
        return self._teller.cleaned(verdict), answer

    # -- what an answer means ----------------------------------------------------------------------

    def _account(self, delivery: Delivery, done: _Done) -> None:
        """5."""
        unit, request, verdict, answer, findings, sent_at = done
        now, now_us = time.monotonic(), time.time_ns() // 1000
        asked = self.breaker.state is State.HALF_OPEN
        self._learn(verdict, answer, now, sent_at)
        accepted, rejected, again = account(verdict, len(request.events))
        # What a second opinion finds wrong is not stored, whatever the answer was.
        wrong = {n: findings.get(n, findings.get(WHOLE)) for n in accepted} if findings else {}
        delivery.accept(
            unit, [request.events[n] for n in sorted(accepted) if wrong.get(n) is None], now_us
        )
        for n, reason in [*rejected.items(), *wrong.items()]:
            if reason is not None:
                delivery.refuse(unit, request.events[n], reason, now_us)
        if self._refusals is not None:
            refused = [r for r in rejected.values() if r.code is Code.REJECTED]
            was_rest = len(request.events) if unit.rest else 0
            # HTTP V2 of Amplitude names the first bad one of each kind only, batch names all.
            unit.rest |= delivery.terms.backfill and bool(refused)
            self._refusals.add(len(accepted), refused, len(again) * unit.rest - was_rest)
        left = [request.events[n] for n in sorted(again)]
        if len(left) == 1 and unit.attempts >= _ALWAYS and delivery.stands_still:
            delivery.told = True
            log.warning(
                "%s has taken or refused all that it could of a batch, and fails on one event, %s; "
                "what comes behind waits. If it answers others, take this event's name out of "
                "[trace] for it, and start again", self.name, left[0].key,
            )  # fmt: skip
        away = self.breaker.state is not State.CLOSED
        delivery.lines.replace(
            unit,
            units_again(self._vendor, unit, verdict, left, now, away=away, asked=asked)
            if left else (),
        )  # fmt: skip

    def _learn(self, verdict: Verdict, answer: Answer | None, now: float, sent_at: float) -> None:
        """What an answer says of the vendor as a whole. Raises Systemic."""
        match verdict:
            case Stop(why):
                # It does answer, and what else is sent to it must not wait for this to say so.
                self.breaker.answered()
                raise Systemic(
                    f"{self.name} refuses us: {why}. Check its credentials, address and plan in "
                    f"[vendors.{self.name}] and the environment, then start again: nothing of this "
                    "batch is committed, and it is sent anew"
                )
            case RetryAfter(seconds, why) if answer is not None and answer.status == 429:
                self._why = why
                self.breaker.answered()
                self._window.refused(now, sent_at, seconds)
                self._share.throttled(now)
            case RetryAfter(seconds, why):
                self._why = why
                self.breaker.failed(now, jitter(), seconds)
            case _:
                self.breaker.answered()
                self._window.taken(sent_at)

    def _show(self) -> None:
        if not self._shown:
            return
        metrics.VENDOR_BREAKER.labels(self.name).set(self.breaker.state)
        metrics.VENDOR_CONCURRENCY.labels(self.name).set(int(self._window.size))
