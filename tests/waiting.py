"""Waiting for what another thread or process does."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["DEADLINE_S", "until"]

DEADLINE_S = 60.0
_LONGEST_PAUSE_S = 0.05


def until(
    condition: Callable[[], object], what: str = "it", deadline_s: float = DEADLINE_S
) -> None:
    """Return once it holds; AssertionError after the deadline."""
    give_up, pause_s = time.monotonic() + deadline_s, 0.002
    while not condition():
        assert time.monotonic() < give_up, f"after {deadline_s:g} s there is not yet: {what}"
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
