"""librdkafka's clients end with what holds them: nobody may have to wait for the cycle collector.

A client is four threads and as many files. The processes that run for months make the collector's
rounds rare (consumers.fetch.calm_gc), so a circle around a client would be there for a long time.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from typing import Any

import pytest
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from consumers import lookup
from consumers.batch import Partition
from consumers.deadletters import DeadLetters
from consumers.errors import Unavailable
from consumers.forward.receipts import Receipts
from consumers.lookup import Lookup
from ingest import topics
from ingest.settings import SettingError
from ingest.streams import BUILT_IN
from ingest.topics import TopicError, TopicIds, ensure, largest_messages, topic_ids

NOBODY = {"bootstrap.servers": "127.0.0.1:1"}
TIMES = 5
# librdkafka's threads end a moment after their client.
PATIENCE_S = 20.0

pytestmark = pytest.mark.skipif(
    not os.path.isdir("/proc/self/task"),  # noqa: PTH112 - a look, not a path
    reason="threads and files are counted in /proc",
)


def there() -> tuple[int, int]:
    """Threads and files of this process."""
    return len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))  # noqa: PTH208


@pytest.fixture(autouse=True)
def uncollected(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No cycle is found, and nobody is waited for for long."""
    monkeypatch.setattr(topics, "_TIMEOUT_S", 0.2)
    monkeypatch.setattr(lookup, "_ASK_S", 0.2)
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def leaves_nothing(act: Callable[[], object]) -> None:
    # The first one loads what is loaded once; of what ends with it some may be counted, which is
    # less than what the others would leave.
    act()
    threads, files = there()
    for _ in range(TIMES):
        act()
    deadline = time.monotonic() + PATIENCE_S
    while (now := there())[0] > threads or now[1] > files:
        assert time.monotonic() < deadline, f"{threads} threads, {files} files; then {now}"
        time.sleep(0.05)


IDS = TopicIds(NOBODY)


@pytest.mark.parametrize("first", [TimeoutError, KafkaException])
@pytest.mark.parametrize(
    "ask",
    [
        pytest.param(lambda: IDS(["a", "b"]), id="again and again"),
        pytest.param(lambda: topic_ids(NOBODY, ["a", "b"]), id="once"),
        pytest.param(lambda: ensure(NOBODY, {"a": 1, "b": 1}), id="ensure"),
        pytest.param(lambda: largest_messages(NOBODY, ["a", "b"]), id="settings"),
    ],
)
def test_a_question_that_fails(
    monkeypatch: pytest.MonkeyPatch, ask: Callable[[], object], first: type[Exception]
) -> None:
    """By our patience, or by librdkafka's: its answer keeps the error."""
    ours_s, its_s = (0.1, 5.0) if first is TimeoutError else (5.0, 0.1)
    monkeypatch.setattr(topics, "_TIMEOUT_S", ours_s)
    for name in ("create_topics", "describe_configs", "describe_topics"):
        monkeypatch.setattr(AdminClient, name, patient(getattr(AdminClient, name), its_s))

    causes = []

    def fail() -> None:
        try:  # pytest.raises would keep the error, and its frames the client
            ask()
        except TopicError as error:
            causes.append(type(error.__cause__))

    leaves_nothing(fail)
    assert causes == [first] * (TIMES + 1)


def patient(asks: Callable[..., Any], seconds: float) -> Callable[..., Any]:
    """The same, but that it waits for so long."""

    def ask(*given: Any, **how: Any) -> Any:
        return asks(*given, **{**how, "request_timeout": seconds})

    return ask


def test_a_lookup_that_is_closed() -> None:
    def ask(questions: Callable[[Lookup], object] | None = None) -> None:
        with closing(Lookup(NOBODY, "group", ["a"])) as found, suppress(Unavailable):
            if questions is not None:
                questions(found)

    leaves_nothing(ask)
    partition = Partition("a", 0)
    leaves_nothing(lambda: ask(lambda found: found.known([partition])))
    leaves_nothing(lambda: ask(lambda found: found.unchanged([partition])))
    leaves_nothing(lambda: ask(lambda found: found.committed([partition])))


def test_a_lookup_makes_a_client_for_ids_only_when_it_is_asked_for_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[object] = []
    monkeypatch.setattr(topics, "AdminClient", made.append)
    with closing(Lookup(NOBODY, "group", ["a"])) as found, suppress(Unavailable):
        found.committed([Partition("a", 0)])
    assert not made


def test_a_lookup_refuses_settings_with_the_words_of_the_others() -> None:
    with pytest.raises(SettingError, match="No such configuration property"):
        Lookup({**NOBODY, "linger.mss": 5}, "group", ["a"])


def test_receipts() -> None:
    leaves_nothing(lambda: Receipts(NOBODY, BUILT_IN["receipts"]))


def test_dead_letters() -> None:
    leaves_nothing(lambda: DeadLetters(NOBODY, "postgres"))
