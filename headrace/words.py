"""How commands say how many, and how long."""

from __future__ import annotations

__all__ = ["counted", "lasting"]


def counted(n: int, one: str, many: str = "") -> str:
    """ "1 event", "2,000 events"; `many` where it is not `one` with an s."""
    return f"{n:,} {one if n == 1 else many or f'{one}s'}"


def lasting(seconds: float) -> str:
    """ "90 s", "3 min", "5 h", "2 d": in whole units, of which there are two at least."""
    whole = max(0, int(seconds))
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if whole >= 2 * size:
            return f"{whole // size} {unit}"
    return f"{whole} s"
