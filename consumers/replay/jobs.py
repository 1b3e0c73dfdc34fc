"""Where replay jobs are kept: a compacted topic with one partition; there is no other store.

key    the job's id
value  all of it as JSON, anew with each change; the last one counts. Fields that are not known
       are passed over: one without which a job means something else makes another `v`
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from consumers.client import QUIET, Settings, text
from consumers.errors import Systemic, Unavailable
from consumers.replay.job import Job, State
from consumers.replay.jobs_topic import TOPIC, JobsTopic
from ingest.settings import ONCE
from ingest.topics import TopicError, ensure

__all__ = ["Jobs"]

log = logging.getLogger(__name__)

_PATIENCE_S = 30.0
# Of a follower, in seconds: how long it rests before it begins anew, how often that is worth a
# line, and how long its end is waited for.
_AGAIN_S = 2.0
_SAY_EVERY_S = 30.0
_LEAVE_S = 2.0


class Jobs:
    """The topic. Makes it where it is missing, but not to `look`. Raises Unavailable throughout.

    Where Kafka does not let it be made, Systemic.
    """

    def __init__(self, kafka: Settings, *, look: bool = False) -> None:
        self._kafka = kafka
        try:
            if not look:
                ensure(kafka, {TOPIC: 1}, {"cleanup.policy": "compact"})
        except TopicError as error:
            raise (Systemic if error.denied else Unavailable)(str(error)) from error

    def all(self) -> dict[str, Job]:
        """Every job, oldest first. Raises Systemic where there is one that can't be read."""
        found, unread = self._read()
        for error in unread.values():
            raise error
        return found

    def readable(self) -> dict[str, Job]:
        """Those that can be read, oldest first: for who does not have to know of all."""
        found, unread = self._read()
        for error in unread.values():
            log.error("passed over: %s", error)
        return found

    def ids(self) -> set[str]:
        """Of all that there are, whether they can be read or not."""
        found, unread = self._read()
        return {*found, *unread}

    def get(self, job_id: str) -> Job:
        """Raises Systemic for one that there is not, or that can't be read."""
        found, unread = self._read()
        if job_id in unread:
            raise unread[job_id]
        try:
            return found[job_id]
        except KeyError:
            raise Systemic(
                f"there is no replay {job_id!r}; `headrace replay ls` shows those there are"
            ) from None

    def _read(self) -> tuple[dict[str, Job], dict[str, Systemic]]:
        """Those that can be read, oldest first; and of each other id why it can't."""
        found: dict[str, Job] = {}
        unread: dict[str, Systemic] = {}
        with JobsTopic(self._kafka) as reader:
            for message in reader.until(reader.end()):
                key = _key(message)
                try:
                    job = _job(message)
                except Systemic as error:
                    found.pop(key, None)
                    unread[key] = error
                    continue
                unread.pop(key, None)
                if job is None:
                    found.pop(key, None)
                elif not job.revives(found.get(job.id)):
                    found[job.id] = job
        return dict(sorted(found.items(), key=lambda item: item[1].created_us)), unread

    def go_on(self, job: Job) -> int | None:
        """Put a job that is not over; None, and nothing is changed, where somebody has ended it."""
        if self._ended(job.id) is None:
            at = self.put(job)
            ended = self._ended(job.id)
            if ended is None:
                return at
            self.put(ended)  # it was ended just before, and compaction would remove that
        return None

    def _ended(self, job_id: str) -> Job | None:
        job = self._read()[0].get(job_id)
        return job if job is not None and job.state.over else None

    def put(self, job: Job) -> int:
        """Return when the job's record is acknowledged; its offset."""
        failed: list[KafkaError] = []
        at: list[int] = []

        def delivered(error: KafkaError | None, message: Message) -> None:
            if error is not None:
                failed.append(error)
            else:
                at.append(int(message.offset() or 0))

        patience_ms = int(_PATIENCE_S * 1000)
        producer = Producer({
            **QUIET, **self._kafka,
            **ONCE, "delivery.timeout.ms": patience_ms,
        })  # fmt: skip
        try:
            # To the one partition that is read: somebody may have made the topic with more.
            producer.produce(TOPIC, job.value(), job.id, 0, on_delivery=delivered)
            left = producer.flush(_PATIENCE_S + 5)
        except KafkaException as error:
            raise Unavailable(f"the replay can't be noted: {text(error)}") from error
        if failed or left or not at:
            why = failed[0].str() if failed else "Kafka does not answer"
            raise Unavailable(f"the replay can't be noted: {why}")
        return at[0]

    def watch(
        self, job: Job, since: int, tell: Callable[[State], None]
    ) -> AbstractContextManager[None]:
        """While the block runs, `tell` of each state that others put the job into.

        From a thread of its own; `since` is the offset of the record that is known.
        """
        return self.follow(lambda one: tell(one.state) if one.id == job.id else None, since)

    @contextmanager
    def follow(self, tell: Callable[[Job], None], since: int = -1) -> Iterator[None]:
        """While the block runs, `tell` of each job behind an offset, from a thread of its own.

        Of each record once, also where it has to begin anew: it then reads on where it was.
        """
        over = threading.Event()

        def read() -> None:
            at, said_at = since, float("-inf")
            while not over.is_set():
                try:
                    with JobsTopic(self._kafka) as reader:
                        for message in reader.behind(at, over):
                            at = int(message.offset() or 0)
                            _tell(message, tell)
                except (Unavailable, Systemic) as away:
                    if time.monotonic() - said_at > _SAY_EVERY_S:
                        said_at = time.monotonic()
                        log.warning("replays can't be followed, trying on: %s", away)
                except Exception:
                    log.exception("following replays failed, trying on")
                over.wait(_AGAIN_S)

        thread = threading.Thread(target=read, name="watch-replays", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(_LEAVE_S)


def _tell(message: Message, tell: Callable[[Job], None]) -> None:
    try:
        found = _job(message)
    except Systemic as error:
        log.error("passed over: %s", error)  # noqa: TRY400 - for an operator
        return
    if found is not None:
        tell(found)


def _key(message: Message) -> str:
    key = message.key() or b""
    return key if isinstance(key, str) else key.decode(errors="replace")


def _job(message: Message) -> Job | None:
    value = message.value()
    return Job.read(value) if value else None
