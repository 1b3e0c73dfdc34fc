"""What `--drain` waits for: all partitions, ours or not, have landed up to where they ended."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping

from consumers.batch import Partition
from consumers.errors import SinkError, Unavailable
from consumers.source import Source
from consumers.work import Cursor

__all__ = ["Ask", "Goal", "without_waiting"]

log = logging.getLogger(__name__)

# Up to where these partitions have landed; without those that nobody has begun. Raises SinkError.
Ask = Callable[[Collection[Partition]], Mapping[Partition, int]]

# Between two questions how far others are, in seconds; and how often it is said that there is no
# answer.
_ASK_EVERY_S = 0.5
_SAY_EVERY_S = 30.0


def without_waiting(ask: Ask) -> Ask:
    """The same in a thread of its own, for what may take long: Unavailable until it has answered.

    The loop has to stay in its group, and to hear a stop, however long a database thinks.
    """
    found: list[Mapping[Partition, int] | SinkError] = []
    asking: list[threading.Thread] = []
    said_at = time.monotonic()

    def look(partitions: Collection[Partition]) -> None:
        try:
            found.append(ask(partitions))
        except SinkError as error:
            found.append(error)

    def answer(partitions: Collection[Partition]) -> Mapping[Partition, int]:
        nonlocal said_at
        if found:
            asking.clear()
            one = found.pop()
            if not isinstance(one, SinkError):
                return one
            if time.monotonic() - said_at > _SAY_EVERY_S:
                said_at = time.monotonic()
                log.warning("how far others have come is not known: %s", one)
        if not asking:
            asking.append(threading.Thread(target=look, args=(partitions,), daemon=True))
            asking[0].start()
        raise Unavailable("it is being asked")

    return answer


class Goal:
    """An offset for each partition to land up to.

    `ask` says how far those of others are, and until we have any, all. Without it the group's
    offsets do, which is for destinations that have no other positions: they follow behind those of
    a database, and are ahead of one that was restored or made anew.
    """

    def __init__(
        self, source: Source, ends: Mapping[Partition, int], ask: Ask | None = None
    ) -> None:
        self._ask = ask or source.committed
        self._ends = ends
        self._ask_at = 0.0

    def read(self, cursors: Mapping[Partition, Cursor]) -> bool:
        """Whether nothing more is to be read of ours: no batch needs to wait for more."""
        return all(c.next >= self._ends[p] for p, c in cursors.items() if p in self._ends)

    def landed(self, cursors: Mapping[Partition, Cursor]) -> bool:
        """Whether ours have landed, and by what `ask` says those of others."""
        if any(c.landed < self._ends[p] for p, c in cursors.items() if p in self._ends):
            return False
        others = [partition for partition in self._ends if partition not in cursors]
        if not others:
            return True
        if time.monotonic() < self._ask_at:
            return False
        try:
            reached = self._ask(others)
        except SinkError:
            return False  # whoever has them says what is wrong
        finally:
            self._ask_at = time.monotonic() + _ASK_EVERY_S
        return all(reached.get(partition, -1) >= self._ends[partition] for partition in others)
