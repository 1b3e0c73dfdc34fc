"""What a position and a log say of what waits, of what is lost, and of what was cut off."""

from __future__ import annotations

import pytest

from consumers.batch import Partition, Span
from consumers.behind import Waiting
from headrace.words import lasting


@pytest.mark.parametrize(
    ("position", "there", "oldest_ms", "behind", "lost", "beyond"),
    [
        (10, Span(0, 15), 1, 5, 0, 0),
        # Markers of transactions are all that is left.
        (14, Span(0, 15), None, 0, 0, 0),
        # Retention was faster.
        (10, Span(12, 15), 1, 3, 2, 0),
        (10, Span(15, 15), None, 0, 5, 0),
        # Nobody has begun: reading begins with what is there.
        (None, Span(12, 15), 1, 3, 0, 0),
        # The log ends below what was read.
        (20, Span(0, 15), None, 0, 0, 5),
    ],
)
def test_positions(
    position: int | None, there: Span, oldest_ms: int | None, behind: int, lost: int, beyond: int
) -> None:
    found = Waiting(Partition("t", 0), position, there, oldest_ms)
    assert (found.behind, found.lost, found.beyond) == (behind, lost, beyond)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(-3, "0 s"), (119.9, "119 s"), (120, "2 min"), (7199, "119 min"), (7200, "2 h"),
     (47 * 3600, "47 h"), (48 * 3600, "2 d")],
)  # fmt: skip
def test_how_long_is_said_in_whole_units(seconds: float, said: str) -> None:
    assert lasting(seconds) == said
