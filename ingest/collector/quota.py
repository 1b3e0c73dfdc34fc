"""How much a key may send: a token bucket (records a second, and at once) and records a UTC day.

Pure: `now` is an argument, in seconds since 1970, and nothing here waits, reads or writes but
`DailyFile`. For one thread. Rules:

* In any time t a key gets at most burst + rate × t records. The one exception: a request that alone
  is larger than the burst is taken when the bucket is full, and paid for before the next one; else
  it could never be taken.
* What is not taken costs nothing. Who waits as long as `Wait.seconds` says, and has the key alone,
  is taken then.
* A clock that steps back gives nothing and takes nothing away.
* Memory: one small entry for each key that sent something today; keys are those of the file.
* Daily counts are kept across restarts in a small file that is written some seconds apart: a kill
  forgets those seconds (`every_s`), a power cut or a file that can't be read up to the whole day.
  Then a key gets more than its day's records, never less. Buckets begin full.

Each worker process counts for itself: with N workers a key may get up to N times its limits.
"""

from __future__ import annotations

import json
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ingest.collector.key import Key

__all__ = ["DailyFile", "Quota", "Used", "Wait"]

_LOG = logging.getLogger(__name__)
_DAY_S = 86_400
# A limit is kept to this much time, so that rounding refuses nobody who waited long enough.
_SLACK_S = 1e-6
# Without a burst of its own a key may send this many seconds of its rate at once, and at least one
# full request of the SDKs.
_BURST_S = 10
_BURST_LEAST = 1_000


@dataclass(frozen=True, slots=True)
class Wait:
    """Not taken. `seconds`, at least 1, are for Retry-After; `code` is "rate" or "daily"."""

    seconds: int
    code: str
    reason: str


class Used(NamedTuple):
    """Records a key by its id, taken on a day (days since 1970, UTC)."""

    day: int
    records: dict[str, int]


@dataclass(slots=True)
class _Level:
    """A bucket seen from below: how much of the burst is used, at a time."""

    used: float
    at: float
    rate: float


class Quota:
    """What each key has used."""

    def __init__(self, used: Used | None = None, *, every_s: float = 5.0) -> None:
        """`used` as `DailyFile.load` gave it, which must be a copy nobody else changes."""
        self._levels: dict[str, _Level] = {}
        self._day = used.day if used else 0
        self._daily = dict(used.records) if used else {}
        self._every_s = every_s
        self._unsaved_since: float | None = None

    def take(self, key: Key, records: int, now: float) -> Wait | None:
        """None: the records are the key's. Otherwise none of them are, and when to ask again."""
        if not key.daily and not key.rate:
            return None
        if (wait := self.wait(key, now, records)) is not None:
            return wait
        if key.rate:
            self._levels[key.id].used += records
        if key.daily:
            self._daily[key.id] = self._daily.get(key.id, 0) + records
            if self._unsaved_since is None:
                self._unsaved_since = now
        return None

    def give_back(self, key: Key, records: int, now: float, taken: float) -> None:
        """Records that were taken (then) and not stored, as when the spool is full."""
        if key.rate:
            level = self._level(key, now)
            level.used = max(0.0, level.used - records)
        # Of a day that is over nothing is left to give back.
        of_today = int(taken // _DAY_S) == self._day
        if key.daily and of_today and (used := self._daily.get(key.id)):
            self._daily[key.id] = max(0, used - records)

    def wait(self, key: Key, now: float, records: int = 1) -> Wait | None:
        """What `take` would say, taking nothing: before a body is read, of which one record at
        least will come."""
        if key.daily:
            self._turn(now)
            used = self._daily.get(key.id, 0)
            if used + records > key.daily:
                return Wait(
                    max(1, math.ceil((self._day + 1) * _DAY_S - now)),
                    "daily",
                    f"the key has {max(0, key.daily - used)} of its {key.daily} records left until "
                    "midnight UTC",
                )
        if key.rate:
            level = self._level(key, now)
            burst = key.burst or max(_BURST_LEAST, math.ceil(key.rate * _BURST_S))
            # One that is larger than the bucket needs it full.
            over = level.used + min(records, burst) - burst
            if over > _SLACK_S * key.rate:
                return Wait(
                    max(1, math.ceil(over / key.rate)),
                    "rate",
                    f"the key may send {key.rate:g} records a second, {burst} at once",
                )
        return None

    def due(self, now: float) -> Used | None:
        """The daily counts, when they changed and it is time to write them; they count as written.

        Infinity as `now` is always late enough: at the end.
        """
        if self._unsaved_since is None or now - self._unsaved_since < self._every_s:
            return None
        self._unsaved_since = None
        return Used(self._day, dict(self._daily))

    def __len__(self) -> int:
        """Keys that something is remembered of."""
        return len(self._levels.keys() | self._daily.keys())

    def _level(self, key: Key, now: float) -> _Level:
        """The key's bucket as it is now."""
        level = self._levels.get(key.id)
        if level is None:
            self._turn(now)
            level = self._levels[key.id] = _Level(0.0, now, key.rate)
        elif now != level.at:
            # Behind a step back of the clock it goes on from there.
            level.used = max(0.0, level.used - max(0.0, now - level.at) * key.rate)
            level.at = now
            level.rate = key.rate
        return level

    def _turn(self, now: float) -> None:
        """A new day: counts begin at 0, and full buckets are forgotten.

        A clock that went back by little stays in its day, so that nobody gets a day twice; by more
        than a day it was wrong before.
        """
        day = int(now // _DAY_S)
        if day == self._day or day == self._day - 1:
            return
        self._day = day
        self._daily.clear()
        self._levels = {
            name: level
            for name, level in self._levels.items()
            if level.used > (now - level.at) * level.rate
        }


class DailyFile:
    """Where daily counts are kept between two runs, beside the spool."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def load(self) -> Used | None:
        """What was written last; None where nothing was or it can't be read, which is logged."""
        try:
            found = json.loads(self.path.read_bytes())
            day, records = found["day"], found["records"]
            if type(day) is int and all(type(n) is int and n >= 0 for n in records.values()):
                return Used(day, records)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            pass
        _LOG.warning("%s can't be read: daily quotas begin at 0 for today", self.path)
        return None

    def write(self, used: Used) -> bool:
        """Replace the file; not fsync'd. False, and a line in the log, where that fails.

        Takes about a millisecond, and longer on a slow disk: not for an event loop's own thread.
        """
        beside = self.path.with_name(self.path.name + ".new")
        try:
            beside.write_text(json.dumps(used._asdict()), encoding="utf-8")
            beside.replace(self.path)
        except OSError as error:
            _LOG.warning("%s can't be written: %s", self.path, error.strerror)
            return False
        return True
