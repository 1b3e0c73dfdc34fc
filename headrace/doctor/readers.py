"""Databases, vendors, replays: whether they answer, whether somebody reads, what time there is."""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Iterator, Sequence
from shlex import quote

from consumers.behind import waiting
from consumers.destinations import destination, inserter_group, place_of
from consumers.errors import Systemic, Unavailable
from consumers.forward.live import allowed
from consumers.forward.settings import VendorSettings
from consumers.members import all_committed, groups, members
from consumers.replay.job import State
from consumers.vendors import VendorError
from headrace.config import Config
from headrace.doctor.check import Check, fail, ok, warn
from headrace.doctor.kafka import Topics, receipts_of
from headrace.doctor.retention import in_danger, left, lengthen
from headrace.doctor.unread import unread_together
from headrace.readers import Standing, removed, standings
from headrace.words import counted, lasting, without_password
from ingest.topics import Retention, topic_ids

__all__ = ["database", "former_topics", "judge", "not_landed", "others", "replays", "vendor"]

# As HeadraceBehind in deploy/alerts.yml.
_BEHIND_S = 300.0
_COMMAND = re.compile(r"`(headrace [^`]+)`")


def database(
    config: Config, name: str, url: str, found: Topics | None, group: str | None
) -> list[Check]:
    """A database: does it answer, are its tables as needed, who lands what in it.

    `found` is None while Kafka does not answer.
    """
    place = destination(url)
    known = _standings(config, {name: url}, group) if found is not None else []
    if problem := next((one.problem for one in known if one.problem is not None), None):
        return [_unfit(name, url, problem, in_use=True)]
    begun = [one for one in known if one.begun]
    unfit: list[Check] = []
    # Of one process: with an inserter in it, that one has looked at its tables.
    if not place.one_process or not (found is None or any(one.members for one in begun)):
        try:
            place.check([one.reader.stream for one in begun])
        except (Systemic, Unavailable) as error:
            unfit = [_unfit(name, url, str(error), in_use=bool(begun) or found is None)]
    if found is None:
        # Of chDB nothing is known then.
        answers = [] if place.one_process else [ok(name, "it answers, and its tables are there")]
        return unfit or answers
    if not begun and not unfit:
        among = known[0].reader.among if known else ""
        text = f"its tables are there, but nobody{among} has begun to land anything in it"
        return [warn(name, text, f"headrace insert --to {quote(name)}", _IN_KAFKA)]
    judged = [(one, _judged(config, one, found)) for one in begun]
    told = unread_together(config, name, judged, found, group)
    return unfit + told + not_landed(name, known, group)


def not_landed(name: str, known: Sequence[Standing], group: str | None = None) -> list[Check]:
    """Streams with records that a database does not take, where it takes others.

    It need not take all that are declared (`headrace insert --stream`), so this is no warning. But
    of ClickHouse it is also what is seen of a stream that somebody left out since: its positions
    are the group's, which Kafka forgets after a week.
    """
    begun = any(one.begun for one in known)
    idle = [one.reader.stream.name for one in known if not one.begun and one.behind]
    if not begun or not idle:
        return []
    reader = known[0].reader
    since, among = ", or not for a week" if reader.by_group else "", reader.among
    do = f"headrace insert --to {quote(name)} --stream NAME"
    if group:
        do += f" --group {quote(group)}"
    text = (
        f"not landed here, though Kafka has records: {', '.join(idle)}. Nobody{among} has begun "
        f"with {'it' if len(idle) == 1 else 'them'}{since}; `{do}` would"
    )
    return [ok(name, text)]


_IN_KAFKA = "yes, records wait in Kafka as long as it keeps them"
_NOT_AGAIN = (
    "yes, what it has accepted by its receipts is not sent again, and the others wait in Kafka as "
    "long as it keeps them"
)


def _unfit(name: str, url: str, said: str, *, in_use: bool) -> Check:
    """A database that does not answer, or not as it should; a new one may be left alone."""
    found = _COMMAND.search(said)
    if found is not None:
        do = found[1].replace("--to URL", f"--to {quote(name)}")
        if "--to" not in do:
            do += f" --to {quote(name)}"
        return (fail if in_use else warn)(name, said, do, _IN_KAFKA)
    place = destination(url)
    do = {
        "postgres": f"psql {quote(without_password(url))} -c 'SELECT 1'",
        "clickhouse": f"curl http{'s' if url.startswith('clickhouses') else ''}://"
        f"{place.where.partition('/')[0]}/ping",
    }.get(place.kind, f"headrace lag --to {quote(name)}")
    return fail(name, said, do, _IN_KAFKA)


def others(config: Config, asked: Collection[str]) -> list[Check]:
    """Databases that Kafka has heard of, and that are not among these URLs."""
    here = {inserter_group(destination(url)) for url in asked}
    return [
        warn(
            place, "Kafka knows inserters of it, and it was not asked, for nothing here names it",
            "headrace doctor --to URL    # as its inserters have it", _IN_KAFKA,
        )
        for group in groups(config.kafka)
        if group not in here and (place := place_of(group)) is not None
    ]  # fmt: skip


def former_topics(config: Config) -> list[Check]:
    """Topics that no stream has, of which inserters have read a part and nobody reads the rest.

    They were a stream's until somebody changed its `topic`.
    """
    named = {stream.topic for stream in config.streams.values()}
    found = []
    for group in groups(config.kafka):
        if (place := place_of(group)) is None:
            continue
        at = all_committed(config.kafka, group)
        if not (there := topic_ids(config.kafka, {p.topic for p in at} - named)):
            continue
        read = members(config.kafka, [group])[group]
        for topic in sorted(there.keys() - read.keys()):
            positions = {p: offset for p, offset in at.items() if p.topic == topic}
            if behind := sum(one.behind for one in waiting(config.kafka, topic, positions)):
                waits = counted(behind, "offset waits", "offsets wait")
                text = f"no stream has it, {waits} for {place}, and nobody reads"
                # Without --stream it would begin with streams that nobody lands there.
                do = "headrace insert --to URL --stream NAME --drain --config FILE"
                do += "    # where a stream has it"
                found.append(warn(f"topic {topic}", text, do, _IN_KAFKA))
    return found


def vendor(config: Config, name: str, found: Topics | None) -> list[Check]:
    """A vendor: its credentials, who forwards to it."""
    if not allowed(config.trace, name):
        text, do = "[trace] lets no event leave for it", "headrace trace suggest --from -1h"
        return [warn(name, text, do, "yes, events are in Kafka")]
    known = _standings(config, {name: None}, None) if found is not None else []
    checks = []
    # A forwarder that runs has what it needs.
    if not any(one.members for one in known) and (check := _credentials(config.vendors[name])):
        checks.append(check)
    for one in known:
        if one.begun or one.problem is not None:
            checks.append(_judged(config, one, found))
        else:
            text = "nobody has begun to forward to it, or not for a week: Kafka forgets that then"
            checks.append(warn(name, text, one.reader.start, _NOT_AGAIN))
    return checks


def _credentials(settings: VendorSettings) -> Check | None:
    """Whether a forwarder could be started here."""
    try:
        settings.vendor()
    except VendorError as error:
        named = {v for k, v in settings.table.items() if k.endswith("_env") and isinstance(v, str)}
        missing = sorted(named - settings.credentials.keys())
        do = f"headrace forward --vendor {settings.name}    # once that is mended"
        if missing:
            do = f"export {' '.join(f'{variable}=…' for variable in missing)}"
        text = f"{error}: a forwarder that is started from this shell would stop"
        return warn(settings.name, text, do, _IN_KAFKA)
    return None


def replays(config: Config, found: Topics) -> list[Check]:
    """The replays that are not over, wherever they go."""
    known = list(standings(config, {}, list(config.streams.values())))
    return [_judged(config, one, found) for one in known] or [ok("replays", "none is open")]


def _standings(
    config: Config, places: dict[str, str | None], group: str | None
) -> Sequence[Standing]:
    """Without replays, which have checks of their own."""
    found = standings(config, places, list(config.streams.values()), group, only=True)
    return [one for one in found if one.reader.job is None]


def _judged(config: Config, one: Standing, found: Topics | None) -> Check:
    stream = one.reader.stream
    limits = (found or {}).get(stream.topic, Retention())
    return judge(one, limits, time.time(), receipts_of(config, stream, found or {}))


def judge(
    one: Standing, limits: Retention, now_s: float, receipts: tuple[str, Retention] | None = None
) -> Check:
    """What is to be said of one reader whose topic keeps so much; `receipts` is to as well."""
    longer = lengthen(one.reader.stream.topic, limits, receipts)
    return next(_worst_first(one, limits, now_s, longer))


def _worst_first(one: Standing, limits: Retention, now_s: float, longer: str) -> Iterator[Check]:
    reader, job = one.reader, one.reader.job
    name = f"{reader.to} {reader.stream.name}" if job is None else reader.name
    if one.problem is not None:
        yield fail(name, one.problem, "headrace replay ls" if job else "headrace lag", _IN_KAFKA)
    if beyond := sum(part.beyond for part in one.partitions):
        what = counted(beyond, "offset that has landed is", "offsets that have landed are")
        text = f"{what} no longer in Kafka: it has lost records"
        yield fail(name, text, "headrace audit", "no: what else it lost has not landed", lost=True)
    if lost := sum(part.lost for part in one.partitions):
        text = removed(lost)
        safe = (
            "no, those are gone from Kafka. Once it keeps the others for longer, and those were "
            f"looked for elsewhere, to go on without: {reader.start} --skip-lost"
        )
        yield fail(name, text, longer, safe, lost=True)
    age_s = 0.0 if one.oldest_ms is None else max(0.0, now_s - one.oldest_ms / 1000)
    reads = counted(one.members, "process reads", "processes read")
    waits = "nothing waits"
    if one.behind:
        offsets = counted(one.behind, "offset waits", "offsets wait")
        waits = f"{offsets}, the oldest record for {lasting(age_s)}"
    safe = _IN_KAFKA
    if limits != Retention():
        safe = f"yes, Kafka keeps them for {left(limits, age_s, ' more')}"
    if one.behind and in_danger(limits, age_s):
        do = longer if one.members else reader.start
        time_left = left(limits, age_s)
        text = f"{waits}, and Kafka removes it in {time_left}; {reads}"
        yield fail(name, text, do, f"for {time_left}; then not")
    if job is not None and job.state is State.PAUSED:
        yield warn(name, f"it is paused; {waits}", reader.start, safe)
    if not one.members and (one.behind or (job is not None and job.table_until_us is not None)):
        grade = fail if job is None else warn
        yield grade(name, f"{waits}, and nobody reads", reader.start, safe)
    if not one.members and job is None:
        yield warn(name, f"{waits}, but nobody reads", reader.start, _IN_KAFKA)
    if age_s > _BEHIND_S:
        yield warn(name, f"{waits}; {reads}", f"headrace lag --to {quote(reader.to)} --watch", safe)
    yield ok(name, f"{waits}; {reads}" if one.members else waits)
