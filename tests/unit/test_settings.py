"""librdkafka's settings of a Publisher: the promise can't be set away, everything else can."""

from __future__ import annotations

import socket

import pytest

from ingest.publisher import Publisher
from ingest.settings import SettingError, for_publisher
from ingest.topics import TopicError, ensure, topic_ids


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"acks": 1}, "acks=1 is refused; a Publisher always has acks=all"),
        ({"request.required.acks": "0"}, "acks=0 is refused"),
        ({"enable.idempotence": False}, "enable.idempotence=False is refused"),
        ({"max.in.flight": 5}, "max.in.flight.requests.per.connection=5 is refused"),
        ({"transactional.id": "x"}, "transactional.id can't be set: a Publisher is not"),
        ({"delivery.report.only.error": True}, "delivery.report.only.error can't be set"),
        ({"linger.mss": 5}, 'librdkafka refuses a setting: No such configuration property: "linge'),
        ({"linger.ms": "x"}, "librdkafka refuses a setting: "),
    ],
)  # fmt: skip
def test_a_setting_that_would_break_the_promise_or_is_none_is_refused(
    given: dict[str, str | int | bool], said: str
) -> None:
    with pytest.raises(SettingError) as raised:
        Publisher("127.0.0.1:1", config=given)
    assert str(raised.value).startswith(said)
    assert isinstance(raised.value, ValueError)


def test_the_promise_may_be_repeated_and_the_rest_be_changed() -> None:
    made = for_publisher(
        "k:1",
        {"acks": "-1", "enable.idempotence": "true", "compression.codec": "zstd", "linger.ms": 9,
         "bootstrap.servers": "ignored:1", "message.timeout.ms": 5},
    )  # fmt: skip
    assert made["acks"] == "all"
    assert made["enable.idempotence"] is True
    assert made["max.in.flight.requests.per.connection"] == 1
    assert made["compression.type"] == "zstd"
    assert made["bootstrap.servers"] == "k:1"
    assert (made["linger.ms"], made["delivery.timeout.ms"]) == (9, 5)


def test_a_record_is_never_given_up_by_a_clock_unless_asked_for() -> None:
    assert for_publisher("k:1", {})["delivery.timeout.ms"] == 0


def test_administration_refuses_the_same_settings_with_the_same_words() -> None:
    wrong = {"bootstrap.servers": "127.0.0.1:1", "linger.mss": 5}
    with pytest.raises(SettingError, match="No such configuration property"):
        topic_ids(wrong, ["x"])
    with pytest.raises(SettingError, match="No such configuration property"):
        ensure(wrong, {"x": 1})


def test_a_kafka_that_does_not_answer_is_named_with_the_reason_and_what_to_check(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ingest.topics._TIMEOUT_S", 0.4)
    # A port that is bound and does not listen refuses every connection.
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        for ask in (lambda k: topic_ids(k, ["x"]), lambda k: ensure(k, {"x": 1})):
            with pytest.raises(TopicError) as raised:
                ask({"bootstrap.servers": address})
            text = str(raised.value)
            assert text.startswith(f"Kafka at {address} does not answer (")
            assert "Connection refused" in text
            assert "--kafka, HEADRACE_KAFKA or headrace.toml; `headrace status`" in text
