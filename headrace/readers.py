"""Who reads which stream: inserters of databases, forwarders of vendors, replays; and where they are.

Positions are asked for where the truth is; then Kafka, what waits behind them.
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from shlex import quote

from consumers.batch import Partition
from consumers.behind import Waiting, waiting
from consumers.client import Settings
from consumers.destinations import destination, inserter_group
from consumers.errors import Systemic, Unavailable
from consumers.forward.live import forwarder_group
from consumers.ledger.account import positions_of
from consumers.members import members
from consumers.replay.job import Job, Origin, State
from consumers.replay.jobs import Jobs
from consumers.replay.legs import legs
from consumers.replay.standing import passed
from consumers.together import together
from headrace.config import Config
from headrace.words import counted, without_password
from ingest.streams import Stream
from ingest.topics import topic_ids

__all__ = ["Reader", "Standing", "in_groups", "removed", "standings"]


@dataclass(frozen=True, slots=True)
class Reader:
    """Who reads a stream: the processes of one group, of a replay of two legs those of two."""

    # A destination or a vendor as --to takes it.
    to: str
    stream: Stream
    groups: tuple[str, ...]
    # The command that starts a process of it.
    start: str
    # Up to where a topic of this id is read. Raises Unavailable, Systemic.
    ask: Callable[[str], Mapping[Partition, int]]
    # Of a replay.
    job: Job | None = None
    # Its positions are those of its group: somebody in another one may have landed all of it.
    by_group: bool = False

    @property
    def of_vendor(self) -> bool:
        """Whether it is a vendor's forwarders."""
        return self.job is None and self.groups == (forwarder_group(self.to),)

    @property
    def name(self) -> str:
        return self.to if self.job is None else f"replay {self.job.id} to {self.to}"

    @property
    def among(self) -> str:
        """Behind "nobody", which has begun: among whom that is meant."""
        return in_groups(self.groups) if self.by_group else ""


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a reader is; a `problem` says why that is not known."""

    reader: Reader
    partitions: Sequence[Waiting] = ()
    # Processes that have partitions of the topic now.
    members: int = 0
    problem: str | None = None

    @property
    def begun(self) -> bool:
        """Whether it reads this stream at all: somebody does, or did."""
        return bool(self.members or any(one.position is not None for one in self.partitions))

    @property
    def behind(self) -> int:
        return sum(one.behind for one in self.partitions)

    @property
    def oldest_ms(self) -> int | None:
        """When the first record that waits was published, in Unix milliseconds."""
        return min((one.oldest_ms for one in self.partitions if one.oldest_ms), default=None)


def in_groups(names: Iterable[str]) -> str:
    """Behind "nobody", where somebody of another group may have done it."""
    known = list(dict.fromkeys(names))
    groups = f"group{'' if len(known) == 1 else 's'} {', '.join(known)}"
    return f" in the {groups} (another one is given with --group)"


def removed(offsets: int) -> str:
    """What is to be said of so many that Kafka no longer has."""
    gone = "removed by Kafka's retention before"
    return counted(offsets, f"offset was {gone} it was read", f"offsets were {gone} they were read")


def standings(
    config: Config,
    places: Mapping[str, str | None],
    streams: Sequence[Stream],
    group: str | None = None,
    *,
    only: bool = False,
) -> Iterator[Standing]:
    """Where these destinations and the replays that are not over are, of streams with a topic.

    `group` is that of the databases' inserters, if it is not the default; with `only` replays to
    other destinations are left out. Of a destination that can't be asked one standing says so.
    Raises TopicError, Unavailable.
    """
    ids = topic_ids(config.kafka, {stream.topic for stream in streams})
    there = [stream for stream in streams if stream.topic in ids]
    asked = list(_readers(config, places, there, group))
    for job in Jobs(config.kafka, look=True).readable().values():
        stream = next((stream for stream in there if stream.name == job.stream), None)
        meant = not only or without_password(job.to) in places
        if stream is not None and not job.state.over and meant:
            asked.append(_replay(config.kafka, stream, job, config.vendors))
    present = members(config.kafka, {group for reader in asked for group in reader.groups})
    failed: set[str] = set()

    def look(reader: Reader) -> Standing | None:
        if reader.name in failed:
            return None  # it would keep each of its streams waiting for an answer
        topic = reader.stream.topic
        try:
            ends = _ends(reader, ids[topic])
            positions = reader.ask(ids[topic])
            found = waiting(config.kafka, topic, positions, ends)
        except (Unavailable, Systemic) as error:
            failed.add(reader.name)
            return Standing(reader, problem=str(error))
        here = sum(present[group][topic] for group in reader.groups)
        return Standing(reader, found, here)

    told = set()
    for one in together(look, asked):
        if one is not None and one.reader.name not in told:
            yield one
            if one.problem is not None:
                told.add(one.reader.name)


def _readers(
    config: Config, places: Mapping[str, str | None], streams: Sequence[Stream], group: str | None
) -> Iterator[Reader]:
    """Inserters and forwarders."""
    for name, url in places.items():
        for stream in streams:
            if url is not None:
                place = destination(url)
                of_group = group or inserter_group(place)
                with_group = f" --group {quote(group)}" if group else ""
                yield Reader(
                    name, stream, (of_group,),
                    f"headrace insert --to {quote(name)} --stream {stream.name}{with_group}",
                    partial(_landed, config.kafka, url, stream, of_group),
                    by_group=not place.own_positions,
                )  # fmt: skip
            elif stream.name == "raw_events":
                of_group = forwarder_group(name)
                yield Reader(
                    name, stream, (of_group,), f"headrace forward --vendor {name}",
                    partial(positions_of, config.kafka, of_group, stream),
                )  # fmt: skip


def _landed(
    kafka: Settings, url: str, stream: Stream, group: str, topic_id: str
) -> Mapping[Partition, int]:
    return destination(url).positions(kafka, stream, topic_id, group)


def _replay(kafka: Settings, stream: Stream, job: Job, vendors: Container[str]) -> Reader:
    table, leg = legs(job)
    groups = (job.group,) if table is None else (job.group, table.group)
    # An older headrace may have noted more of its URL than is shown now.
    to = without_password(job.to)
    start = f"headrace replay resume {quote(job.id)}"
    if job.origin is Origin.OUTAGE and to not in vendors:
        # No forwarder could be started that goes on with it.
        start = (
            f"headrace replay cancel {quote(job.id)}    # or put its vendor's section back into "
            "headrace.toml"
        )
    elif job.origin is Origin.OUTAGE and job.state is State.OPEN:
        start = f"headrace forward --vendor {quote(to)}"

    def ask(_topic_id: str) -> dict[Partition, int]:
        done = passed(kafka, stream, leg)
        return {p: span.start + done[p] for p, span in leg.spans_of(stream.topic).items()}

    return Reader(to, stream, groups, start, ask, job)


def _ends(reader: Reader, topic_id: str) -> dict[Partition, int] | None:
    """Up to where a replay is to read. Raises Systemic where that is another topic's."""
    job = reader.job
    if job is None:
        return None
    if job.topic_id != topic_id:
        raise Systemic(
            f"the topic {reader.stream.topic} was deleted and made anew since, so it can't go on: "
            f"headrace replay cancel {quote(job.id)}"
        )
    return {p: span.end for p, span in legs(job).kafka.spans_of(reader.stream.topic).items()}
