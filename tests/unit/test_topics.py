"""Topics that are missing are made, and nobody needs leave to make those that are there."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from confluent_kafka import KafkaError, KafkaException, TopicCollection

from headrace.cli import cli, schema
from ingest import topics
from ingest.topics import Retention, TopicError, ensure


class Admin:
    """A Kafka with these topics; `denied` are the questions that it does not take from us."""

    there = frozenset({"old"})
    denied: frozenset[str] = frozenset()

    def __init__(self, _settings: object) -> None: ...

    def poll(self, _timeout_s: float) -> None: ...

    def describe_topics(self, names: TopicCollection, **_: object) -> dict[str, Future[Any]]:
        answers = {}
        for name in names.topic_names:
            code = None if name in self.there else KafkaError.UNKNOWN_TOPIC_OR_PART
            known = SimpleNamespace(topic_id=f"id of {name}")
            answers[name] = self.answer("describe", name, code, known)
        return answers

    def create_topics(self, wanted: Sequence[Any], **_: object) -> dict[str, Future[Any]]:
        exists = KafkaError.TOPIC_ALREADY_EXISTS
        return {
            name: self.answer("create", name, exists if name in self.there else None, None)
            for name in (one.topic for one in wanted)
        }

    def answer(self, question: str, name: str, code: int | None, value: object) -> Future[Any]:
        found: Future[Any] = Future()
        if not self.denied.isdisjoint({question, f"{question} {name}"}):
            code = KafkaError.TOPIC_AUTHORIZATION_FAILED
        if code is None:
            found.set_result(value)
        else:
            found.set_exception(KafkaException(KafkaError(code)))
        return found


@pytest.mark.parametrize(
    ("denied", "wanted", "made"),
    [
        ((), ["old", "new"], ["new"]),
        (("create",), ["old"], []),
        # It is not known which are there, and found out by making them.
        (("describe",), ["old", "new"], ["new"]),
        # Not of this one: the other one is known to be there all the same.
        (("describe new",), ["old", "new"], ["new"]),
        (("describe new", "create old"), ["old", "new"], ["new"]),
        (("create",), ["old", "new"], None),
        (("create", "describe"), ["old"], None),
    ],
)
def test_what_is_there_is_not_asked_for(
    denied: Sequence[str],
    wanted: list[str],
    made: list[str] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(topics, "AdminClient", Admin)
    monkeypatch.setattr(Admin, "denied", frozenset(denied))
    if made is not None:
        assert ensure({}, dict.fromkeys(wanted, 1)) == made
        return
    with pytest.raises(TopicError) as raised:
        ensure({}, dict.fromkeys(wanted, 1))
    assert raised.value.denied


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        (Retention(30 * 86_400.0), {"retention.ms": "2592000000"}),
        (Retention(), {"retention.ms": "-1"}),
        (TopicError("not for you", denied=True), {}),
    ],
)
def test_receipts_are_made_to_be_kept_as_long_as_the_events_that_are_there(
    said: Retention | TopicError, wanted: dict[str, str], monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    """Somebody has made raw_events keep more, and connects the first vendor now."""
    made: dict[str, object] = {}

    def ensure(
        _kafka: object, names: Sequence[str], config: object = None, **_: object
    ) -> list[str]:
        made.update(dict.fromkeys(names, config))
        return []

    def retentions(_kafka: object, names: Sequence[str]) -> dict[str, Retention]:
        assert "raw_events" in made, "it may have just been made"
        if isinstance(said, TopicError):
            raise said
        return dict.fromkeys(names, said)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(schema, "ensure", ensure)
    monkeypatch.setattr(schema, "retentions", retentions)
    done = CliRunner().invoke(cli, ["migrate", "--kafka", "k:1"])
    assert done.exit_code == 0, done.output
    assert (made["raw_events"], made["receipts"]) == (None, wanted)


def test_where_no_topic_is_asked_about_nothing_is_said() -> None:
    """`headrace doctor` said of a Kafka without topics that it was broken, and asked no further."""
    assert topics.retentions({"bootstrap.servers": "127.0.0.1:1"}, []) == {}


def test_what_is_refused_is_said_with_the_acl_and_the_topics(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A company's Kafka said "Topic authorization failed", of one of ten topics."""
    monkeypatch.setattr(topics, "AdminClient", Admin)
    monkeypatch.setattr(Admin, "denied", frozenset({"describe a", "describe b", "create"}))
    with pytest.raises(TopicError, match=r"needs DESCRIBE on the topics a, b$") as raised:
        topics.topic_ids({}, ["b", "old", "a"])
    assert (raised.value.denied, raised.value.topics) == (True, {"a", "b"})
    with pytest.raises(TopicError, match=r"needs CREATE, .* on the topic a$"):
        ensure({}, {"a": 1, "old": 1})


@pytest.mark.parametrize("code", [KafkaError.POLICY_VIOLATION, KafkaError.INVALID_CONFIG])
@pytest.mark.parametrize("least", [1, 50, 99])
def test_where_a_kafka_has_bounds_a_topic_has_what_it_takes_of_what_would_be_better(
    least: int, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Confluent Cloud takes no segment.bytes below 50 MiB, so no audit could ever begin there, and
    no max.message.bytes above 8 MiB, so there were no topics for dead letters, and no inserter."""
    made: list[dict[str, str]] = []

    class Managed(Admin):
        def create_topics(self, wanted: Sequence[Any], **_: object) -> dict[str, Future[Any]]:
            (one,) = wanted
            unfit = int(one.config.get("segment.bytes", 99)) < least
            made.append(one.config)
            return {one.topic: self.answer("create", one.topic, code if unfit else None, None)}

    monkeypatch.setattr(topics, "AdminClient", Managed)
    kept, sizes = {"cleanup.policy": "compact"}, [{"segment.bytes": n} for n in ("1", "50")]
    assert ensure({}, {"new": 1}, kept, better=sizes) == ["new"]
    tried = [{**kept, **size} for size in (*sizes, {})]
    assert made == tried[: {1: 1, 50: 2, 99: 3}[least]]
    if least > 1:
        with pytest.raises(TopicError):
            ensure({}, {"new": 1}, {**kept, "segment.bytes": "1"})
