"""What a check says: a verdict, a sentence; where it is not good, what to type and what is safe."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from headrace.words import printable

__all__ = ["Check", "Verdict", "bounded", "fail", "ok", "warn"]

# How long one check may take, in seconds: PostgreSQL, ClickHouse and Kafka give up after 10 to 15.
_MOST_S = 45.0


class Verdict(StrEnum):
    """FAIL: a person has to act. WARN: it may wait for the morning, or pass by itself."""

    OK = "OK"
    WARN = "WARN"
    FAIL = "FAIL"


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the answer."""

    name: str
    verdict: Verdict
    text: str
    # The command to type.
    do: str = ""
    # Whether data is safe meanwhile, and for how long.
    safe: str = ""
    # Something that was acknowledged is gone.
    lost: bool = False


def ok(name: str, text: str) -> Check:
    """Nothing to do."""
    return _check(name, Verdict.OK, text)


def warn(name: str, text: str, do: str, safe: str) -> Check:
    """To be looked at."""
    return _check(name, Verdict.WARN, text, do, safe)


def fail(name: str, text: str, do: str, safe: str, *, lost: bool = False) -> Check:
    """To be mended."""
    return _check(name, Verdict.FAIL, text, do, safe, lost=lost)


def _check(
    name: str, verdict: Verdict, text: str, do: str = "", safe: str = "", *, lost: bool = False
) -> Check:
    """What a server or a file has said may be in any of it."""
    name, text, do, safe = map(printable, (name, text, do, safe))
    return Check(name, verdict, text, do, safe, lost)


def bounded(name: str, ask: Callable[[], list[Check]], most_s: float = _MOST_S) -> list[Check]:
    """What `ask` finds; one failed check where it raises, or takes too long and is left behind."""
    answer: queue.SimpleQueue[list[Check]] = queue.SimpleQueue()

    def run() -> None:
        try:
            answer.put(ask())
        except Exception as error:
            text = f"it can't be said: {error or type(error).__name__}"
            answer.put([fail(name, text, "headrace doctor", "not known: look again")])

    threading.Thread(target=run, name=f"check {name}", daemon=True).start()
    try:
        return answer.get(timeout=most_s)
    except queue.Empty:
        text = f"no answer within {most_s:g} s"
        return [fail(name, text, "headrace doctor", "not known: look again")]
