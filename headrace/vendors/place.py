"""Each vendor with its rules, what it stored and how it is broken; and the time of all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from headrace.vendors.amplitude import Amplitude
from headrace.vendors.faults import NO_FAULTS, Dice, Faults
from headrace.vendors.ga4 import Ga4
from headrace.vendors.heap import Heap
from headrace.vendors.mixpanel import Mixpanel
from headrace.vendors.model import StandIn
from headrace.vendors.posthog import PostHog
from headrace.vendors.shelf import Shelf
from headrace.vendors.webhook import Webhook

__all__ = ["WEBHOOK_SECRET", "Place", "Vendors"]

# What the webhook's signature is made with. It guards nothing.
WEBHOOK_SECRET = "headrace-stand-in"  # noqa: S105


class Place:
    """One vendor: its rules, what it stored, how it is broken, whom it lets wait."""

    def __init__(self, rules: StandIn, faults: Faults = NO_FAULTS) -> None:
        self.rules = rules
        self.paths = rules.paths()
        self.shelf = Shelf(rules.window_us)
        self._held: set[asyncio.Future[bool]] = set()
        self.set(faults)

    def set(self, faults: Faults) -> None:
        """Break it so, with fresh dice; what is held goes on."""
        self.faults = faults
        self.dice = Dice(faults, self.rules.name)
        self.let_go(True)

    async def hold(self, seconds: float) -> bool:
        """Wait so long, or until let go; False for what is to be cut off."""
        loop = asyncio.get_running_loop()
        held: asyncio.Future[bool] = loop.create_future()
        timer = loop.call_later(seconds, _end, held, True)
        self._held.add(held)
        self.shelf.waiting += 1
        try:
            return await held
        finally:
            timer.cancel()
            self._held.discard(held)
            self.shelf.waiting -= 1

    def let_go(self, to_be_judged: bool) -> None:
        """All that is held."""
        for held in self._held:
            _end(held, to_be_judged)


def _end(held: asyncio.Future[bool], to_be_judged: bool) -> None:
    if not held.done():
        held.set_result(to_be_judged)


class Vendors:
    """All of them, by name. `clock` gives microseconds since 1970."""

    def __init__(self, clock: Callable[[], int], faults: Mapping[str, Faults]) -> None:
        self._clock = clock
        self.advanced_us = 0
        rules: tuple[StandIn, ...] = (
            Ga4(), Amplitude(), Heap(), Mixpanel(), PostHog(), Webhook(WEBHOOK_SECRET),
        )  # fmt: skip
        self.places = {r.name: Place(r, faults.get(r.name, NO_FAULTS)) for r in rules}

    def now_us(self) -> int:
        """The vendors' time."""
        return self._clock() + self.advanced_us
