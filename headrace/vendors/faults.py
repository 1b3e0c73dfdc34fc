"""How a vendor is broken on purpose: one frozen value, and the dice that go with it.

    down = "reset"       connections are reset before an answer; "503" answers 503
    slow_s = 2.5         so long before anything is judged, or until the faults change; a client
                         that leaves is still taken
    revoked = true       the credentials are refused, in the vendor's way
    over_quota = true    PostHog answers 200 with quota_limited, Google 204, and both drop
    quiet = true         PostHog drops bad events with 200, as its documentation says; without, it
                         answers 400, as its code does
    vague = true         Google's validation says what is wrong in an event, not in which one
    retry_after_s = 5    the header Retry-After of a 429 or 503 that is a fault

Shares of requests, 0 to 1, of which one at most happens to a request:

    throttle             answered 429
    fail                 answered 500, nothing taken
    fail_after           answered 500, although all was taken
    reset_after          the connection breaks in the middle of the answer, all was taken

and a share of events:

    drop                 lost, with nothing in the answer to say so

The dice are seeded: the same requests in the same order meet the same fate.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

__all__ = ["NO_FAULTS", "Dice", "FaultError", "Faults"]

_DOWN = ("", "reset", "503")
# In the order in which a request's lot is compared with them.
_LOTS = ("throttle", "fail", "fail_after", "reset_after")
_SHARES = (*_LOTS, "drop")
# A request is not held longer, whatever is asked for.
_MOST_S = 3600.0


class FaultError(ValueError):
    """A fault is not known, or its value is not possible; the text says which."""


@dataclass(frozen=True, slots=True)
class Faults:
    down: str = ""
    slow_s: float = 0.0
    revoked: bool = False
    over_quota: bool = False
    quiet: bool = False
    vague: bool = False
    retry_after_s: float = 0.0
    throttle: float = 0.0
    fail: float = 0.0
    fail_after: float = 0.0
    reset_after: float = 0.0
    drop: float = 0.0
    seed: int = 0

    @staticmethod
    def read(table: Mapping[str, Any]) -> Faults:
        """From JSON or TOML. Raises FaultError."""
        known = {field.name: type(field.default) for field in fields(Faults)}
        values: dict[str, Any] = {}
        for name, value in table.items():
            kind = known.get(name)
            if kind is None:
                raise FaultError(f"{name} is no fault; there are: {', '.join(known)}")
            whole = isinstance(value, int) and not isinstance(value, bool)
            if not (isinstance(value, kind) and (kind is not int or whole)) and not (
                kind is float and whole
            ):
                raise FaultError(f"{name} must be {_WORDS[kind]}")
            values[name] = float(value) if kind is float else value
        faults = Faults(**values)
        faults._check()
        return faults

    def _check(self) -> None:
        if self.down not in _DOWN:
            raise FaultError(f'down must be "reset", "503" or "", not {self.down!r}')
        for name in _SHARES:
            if not 0 <= getattr(self, name) <= 1:
                raise FaultError(f"{name} is a share and must be 0 to 1")
        if sum(getattr(self, name) for name in _LOTS) > 1.000001:
            raise FaultError(f"{', '.join(_LOTS)} together must not be more than 1")
        for name in ("slow_s", "retry_after_s"):
            if not 0 <= getattr(self, name) <= _MOST_S:
                raise FaultError(f"{name} must be 0 to {_MOST_S:g} seconds")


_WORDS = {str: "text", float: "a number", bool: "true or false", int: "a whole number"}
NO_FAULTS = Faults()


class Dice:
    """Decides for one vendor; new ones with each change of its faults."""

    def __init__(self, faults: Faults, vendor: str) -> None:
        self._faults = faults
        # Two, so that a request's size does not change the lots of those after it.
        self._requests = random.Random(f"{faults.seed} {vendor} requests")  # noqa: S311 (not a secret)
        self._events = random.Random(f"{faults.seed} {vendor} events")  # noqa: S311 (not a secret)

    def lot(self) -> str:
        """What happens to the next request: the name of a share, or ""."""
        drawn = self._requests.random()
        for name in _LOTS:
            drawn -= getattr(self._faults, name)
            if drawn < 0:
                return name
        return ""

    def drop(self) -> Callable[[], bool] | None:
        """Says of each event in turn whether it is lost; None when none is."""
        share = self._faults.drop
        return (lambda: self._events.random() < share) if share else None
