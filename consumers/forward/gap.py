"""A gap: what live events leave out after an outage, to be at fresh ones at once.

The commit that leaps over it says so in the offset's metadata: which ranges, and the id of the replay
job that they belong to. That commit is fenced as any other is, so there is one owner of a range: the
live group below and above, the job in between. The job's record is written by whoever places such a
partition next, before anything behind the gap is read: so no crash loses it, and until then nothing
has happened. An id is given once, so the record may be written twice.

What Kafka has forgotten of a vendor that is not new (forgotten.py) is left out in the same way, when it is placed.
"""  # noqa: E501

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import orjson

from consumers.batch import Partition, Span
from consumers.errors import Moved
from consumers.intent import Intent
from consumers.sinks import Known, Log

__all__ = ["Gap", "Gaps", "Mine"]

log = logging.getLogger(__name__)

# Of one note, see consumers/intent.py.
_MOST_PARTITIONS = 60


@dataclass(frozen=True, slots=True)
class Gap:
    """Ranges of one topic that belong to a job; times in Unix milliseconds."""

    job_id: str
    topic_id: str
    spans: Mapping[Partition, Span]
    # When the vendor was first found away, and when it was back.
    since_ms: int
    until_ms: int
    # Somebody who died may have sent some of it.
    begun: bool
    # What has an accepted receipt is not sent again.
    only_missing: bool = False

    def note(self) -> str:
        """The metadata that says it: an intent of what somebody else will do."""
        intent = Intent(self.topic_id, dict(self.spans), self.until_ms).note()
        body = orjson.loads(intent) | {"job": [self.job_id, self.since_ms, self.begun]}
        if self.only_missing:
            body["only_missing"] = True
        return orjson.dumps(body).decode()

    @staticmethod
    def read(note: str) -> Gap | None:
        """The gap in an offset's metadata; None where there is none. Raises Systemic."""
        intent = Intent.read(note)
        if intent is None or (job := (body := orjson.loads(note)).get("job")) is None:
            return None
        job_id, since_ms, begun = job
        return Gap(
            job_id, intent.topic_id, intent.spans, since_ms, intent.at_ms, begun,
            body.get("only_missing", False),
        )  # fmt: skip


class Mine(Log, Protocol):
    """What it asks of Kafka."""

    def owned(self) -> set[Partition]: ...

    def all_ends(self) -> dict[Partition, int]: ...


class Gaps:
    """How long a vendor has been away, and what is left out then. Belongs to a lane's thread."""

    def __init__(
        self,
        kafka: Mine,
        outage_s: float,
        keep: Callable[[Gap], None],
        clock: Callable[[], float] = time.monotonic,
        sent: Callable[[Mapping[Partition, Span]], Collection[Partition]] = lambda _spans: (),
    ) -> None:
        """`keep` returns when the gap's job is noted. Raises Unavailable.

        `sent` answers of which partitions the vendor has had some of these events.
        """
        self._log = kafka
        self._outage_s = outage_s
        self._keep = keep
        self._clock = clock
        self._sent = sent
        # Of each partition the committed position.
        self._positions: dict[Partition, int] = {}
        # Those that have leapt and were not placed since.
        self._leapt: set[Partition] = set()
        self._since: float | None = None
        self._asked = 0.0

    # -- where partitions are ----------------------------------------------------------------------

    def recalled(self, known: Mapping[Partition, Known]) -> dict[Partition, Known]:
        """Those without a position of which the vendor has had events; with one now, at the end.

        What is in their logs is a job's. Raises Fenced, Unavailable, Systemic.
        """
        there = {p: Span(k.earliest, k.latest) for p, k in known.items() if k.committed is None}
        asked = {p: span for p, span in there.items() if span.start < span.end}
        old = sorted(self._sent(asked)) if asked else []
        now_ms = time.time_ns() // 1_000_000
        found: dict[Partition, Known] = {}
        for n in range(0, len(old), _MOST_PARTITIONS):
            some = {p: asked[p] for p in old[n : n + _MOST_PARTITIONS]}
            topic_id = known[next(iter(some))].topic_id
            gap = Gap(
                secrets.token_hex(4), topic_id, some, now_ms, now_ms, begun=True, only_missing=True
            )
            self._log.commit({p: span.end for p, span in some.items()}, gap.note())
            log.warning(
                "Kafka has forgotten up to where %s was sent: going on with fresh events; what has "
                "no accepted receipt of those before is the replay %s",
                ", ".join(map(str, some)), gap.job_id,
            )  # fmt: skip
            found |= {p: replace(known[p], committed=span.end, note=gap.note())
                      for p, span in some.items()}  # fmt: skip
        return found

    def settle(self, known: Mapping[Partition, Known]) -> None:
        """Before partitions are placed: the jobs that their notes tell of are there."""
        for partition in known:
            self._positions.pop(partition, None)
        for k in known.values():
            gap = Gap.read(k.note) if k.committed is not None else None
            if gap is not None and gap.topic_id == k.topic_id:
                self._keep(gap)

    def placed(self, positions: Mapping[Partition, int]) -> None:
        """They go on from there."""
        self._positions.update(positions)
        self._leapt -= positions.keys()

    def check(self, partitions: Collection[Partition]) -> None:
        """Raises Moved for records from before a leap."""
        if not self._leapt.isdisjoint(partitions):
            raise Moved("these records are left to a replay")

    # -- an outage ---------------------------------------------------------------------------------

    def asked(self) -> None:
        """The vendor is sent to, which shows whether it is there."""
        self._asked = self._clock()

    def away(self) -> None:
        """It does not answer."""
        if self._since is None:
            self._since = self._clock()

    def after(
        self, ends: Mapping[Partition, int], topic_id: str, begun: Mapping[Partition, int]
    ) -> list[Gap]:
        """What is to be left out once a batch with these ends is done; all partitions are looked at.

        Below `begun` somebody may have sent events before. Raises Unavailable.
        """  # noqa: E501
        if self._since is None or self._asked - self._since < self._outage_s:
            return []
        mine = self._log.owned() - self._leapt
        at = {p: position for p, position in self._positions.items() if p in mine} | {**ends}
        latest = self._log.all_ends()
        spans = [(p, Span(at[p], end)) for p in sorted(at) if (end := latest.get(p, 0)) > at[p]]
        until_ms = time.time_ns() // 1_000_000
        since_ms = until_ms - round((self._clock() - self._since) * 1000)
        gaps = []
        for n in range(0, len(spans), _MOST_PARTITIONS):
            some = dict(spans[n : n + _MOST_PARTITIONS])
            repeated = any(begun.get(p, 0) > span.start for p, span in some.items())
            gaps.append(Gap(secrets.token_hex(4), topic_id, some, since_ms, until_ms, repeated))
        return gaps

    def leapt(self, gap: Gap) -> None:
        """The commit that leaves it out is durable."""
        self._leapt |= gap.spans.keys()
        log.warning(
            "going on with fresh events; %d offsets from the outage are the replay %s",
            sum(end - start for start, end in gap.spans.values()), gap.job_id,
        )  # fmt: skip

    def done(self, ends: Mapping[Partition, int]) -> None:
        """A batch is done: the vendor answers."""
        self._positions.update(ends)
        self._since = None
