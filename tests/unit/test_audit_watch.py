"""An audit that is watched goes on through outages, whoever says that Kafka is away."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from consumers.errors import Systemic, Unavailable
from headrace.cli.audit_watch import Watcher
from ingest.topics import TopicError


@pytest.mark.parametrize("away", [TopicError("Kafka is away"), Unavailable("Kafka is away")])
def test_an_outage_is_waited_out_and_said(
    away: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    handlers: dict[int, Callable[[int, None], None]] = {}
    monkeypatch.setattr("signal.signal", handlers.__setitem__)
    watcher = Watcher(0.0)
    seen: list[str | None] = []

    def once() -> bool:
        seen.append(watcher.problem)
        if len(seen) == 1:
            raise away
        handlers[signal.SIGTERM](signal.SIGTERM, None)
        return True

    assert watcher.run(once)
    assert seen == ["the first audit is under way", "Kafka is away"]
    assert watcher.problem is None
    assert "trying again: Kafka is away" in capsys.readouterr().err


def test_what_a_person_has_to_mend_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("signal.signal", lambda *_: None)

    def once() -> bool:
        raise Systemic("no such table")

    with pytest.raises(Systemic):
        Watcher(0.0).run(once)
