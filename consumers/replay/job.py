"""A replay: what is to be read again and where to, and what may become of it.

    open ──► done          an open job may be running, or wait for `headrace replay resume`
    open ◄─► paused
    open, paused ──► cancelled

How far a job has come is not in its record: that is the committed offsets of its group.

Jobs are made by a command, or by a forwarder after an outage of its vendor (keeper.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from enum import StrEnum

import orjson

from consumers.batch import Partition, Span
from consumers.errors import Systemic
from consumers.replay.jobs_topic import TOPIC
from ingest.units import DAY_US

__all__ = ["Job", "Origin", "State"]

# What the id of a leg by way of the table ends with; it is that of its group, so it stays.
_OF_TABLE = "-table"
# Kafka keeps a group's positions for 7 days after somebody was there last, unless it is told
# otherwise (offsets.retention.minutes): those of a job that is older may be forgotten.
_REMEMBERED_US = 6 * DAY_US


class State(StrEnum):
    """See the module's comment."""

    OPEN = "open"
    PAUSED = "paused"
    CANCELLED = "cancelled"
    DONE = "done"

    @property
    def over(self) -> bool:
        """Nothing changes it any more."""
        return self in (State.CANCELLED, State.DONE)


class Origin(StrEnum):
    """Who has made it."""

    COMMAND = "command"
    OUTAGE = "outage"


@dataclass(frozen=True, slots=True)
class Job:
    """What is replayed, and where to. Times in microseconds since 1970.

    Of an outage's job all of its ranges is meant; the times are from when on they were published, 0
    if nobody knows any more, until the vendor was back.
    """

    id: str
    # A vendor's name, "postgres", or a URL without its password.
    to: str
    stream: str
    # Of the topic that the offsets belong to.
    topic_id: str
    begin_us: int
    end_us: int
    lateness_s: float
    spans: Mapping[int, Span]
    created_us: int
    # Only events of this name.
    event: str | None = None
    # Only events that the vendor has not accepted by its receipts.
    only_missing: bool = False
    # Of those only what is not in this file, the vendor's export; receipts are not asked then.
    against: str | None = None
    # Records read in a second, at most.
    rate: float | None = None
    # See consumers.vendors.Sending.
    allow_redate: bool = False
    allow_duplicates: bool = False
    # What was taken before comes from the table of raw events, see legs.py.
    table_until_us: int | None = None
    state: State = State.OPEN
    origin: Origin = Origin.COMMAND
    # Whether events may have been sent before.
    repeated: bool = True
    # Only of an outage's job, which others run: see `headrace replay resume --skip-lost`.
    skip_lost: bool = False

    @property
    def group(self) -> str:
        """The consumer group whose offsets say how far it has come."""
        return f"headrace-replay-{self.id}"

    @property
    def of_table(self) -> bool:
        """Whether it is what the table gives of another one, see legs.py."""
        return self.id.endswith(_OF_TABLE)

    def may_be_forgotten(self, now_us: int) -> bool:
        """Whether no position may mean one that Kafka has forgotten, and not only a beginning."""
        return now_us - self.created_us > _REMEMBERED_US

    def from_table(self, span: Span, end_us: int) -> Job:
        """What the table gives of this one: rows by their numbers, taken before that time."""
        return replace(
            self, id=self.id + _OF_TABLE, end_us=end_us, spans={0: span}, only_missing=False,
            table_until_us=None,
        )  # fmt: skip

    def spans_of(self, topic: str) -> dict[Partition, Span]:
        """Its ranges, as those of the topic's partitions."""
        return {Partition(topic, number): span for number, span in self.spans.items()}

    @property
    def offsets(self) -> int:
        """How many it spans; not all of them are records."""
        return sum(span.end - span.start for span in self.spans.values())

    def asks_the_same(self, other: Job) -> bool:
        """Whether both came of the same command; how fast is no part of it."""
        return _asked(self) == _asked(other)

    def moved(self, state: State) -> Job:
        """The job in another state. Raises Systemic for one that is over."""
        if self.state.over and state is not self.state:
            raise Systemic(f"the replay {self.id} is {self.state}: that is final; start another")
        return replace(self, state=state)

    def revives(self, known: Job | None) -> bool:
        """Whether this would undo what is final: written by who did not know of it yet."""
        return known is not None and known.state.over and not self.state.over

    def value(self) -> bytes:
        """As its record has it."""
        return orjson.dumps(
            {"v": 1, **asdict(self), "spans": {str(n): list(s) for n, s in self.spans.items()}}
        )

    @staticmethod
    def read(value: bytes) -> Job:
        """From its record. Raises Systemic for what is none of ours."""
        try:
            body = orjson.loads(value)
            if body.pop("v") != 1:
                raise ValueError
            spans = {int(n): Span(*s) for n, s in body.pop("spans").items()}
            origin = Origin(body.pop("origin", Origin.COMMAND))
            state = State(body.pop("state"))
            body = {name: value for name, value in body.items() if name in _FIELDS}
            return Job(**body, spans=spans, state=state, origin=origin)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise Systemic(
                f"the topic {TOPIC} holds a record that is no replay: {value[:80]!r}; was it "
                "written by a newer headrace? Then that one is needed for this."
            ) from error


_FIELDS = {field.name for field in fields(Job)}


def _asked(job: Job) -> tuple[object, ...]:
    return (
        job.to, job.stream, job.topic_id, job.begin_us, job.end_us, job.lateness_s, job.event,
        job.only_missing, job.against, job.allow_redate, job.allow_duplicates, job.origin,
    )  # fmt: skip
