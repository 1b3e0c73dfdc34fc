"""headrace.toml, the environment and the command line: which one wins, and each thing refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from declared import EVERYTHING_PROTO

from headrace.cli.options import destination_url
from headrace.config import Config, ConfigError, load
from headrace.stack import Stack, StackError
from headrace.stack.kafka import Kafka
from headrace.stack.model import Endpoints, ServiceStatus, State, Status
from headrace.stack.postgres import Postgres
from headrace.stack.state import Home
from ingest.descriptors import compile_proto
from ingest.streams import BUILT_IN

USER = '[streams.mine]\nproto = "everything.proto"\nmessage = "Everything"\nkey = "id"\n' \
       'time = "seen_at"\n'  # fmt: skip


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, without a stack."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def loaded(text: str = "", path: Path | None = None, **options: Any) -> Config:
    Path("headrace.toml").write_text(text)
    return load(path, environ=options.pop("environ", {}), **{"kafka": "k:1", **options})


def test_without_a_file_there_are_the_built_in_streams() -> None:
    config = load(kafka="k:1", environ={})
    assert dict(config.streams) == dict(BUILT_IN)
    assert config.kafka == {"bootstrap.servers": "k:1"}
    assert (config.postgres, config.chdb, config.state) == (None, None, Path(".headrace"))


def test_the_command_line_wins_over_the_environment_and_that_over_the_file() -> None:
    text = '[kafka]\n"bootstrap.servers" = "file:1"\n'
    environ = {"HEADRACE_KAFKA": "environment:1"}
    servers = [
        loaded(text, kafka="line:1", environ=environ),
        loaded(text, kafka=None, environ=environ),
        loaded(text, kafka=None),
    ]
    assert [c.kafka["bootstrap.servers"] for c in servers] == ["line:1", "environment:1", "file:1"]


def test_the_local_stack_is_the_last_resort(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "s").mkdir()
    ends = Endpoints("stack:1", "postgresql://stack", folder / "chdb")
    monkeypatch.setattr(Stack, "endpoints", lambda _self: ends)
    environ = {"HEADRACE_STATE": "s"}
    config = loaded(kafka=None, environ=environ)
    assert config.kafka["bootstrap.servers"] == "stack:1"
    assert (config.postgres, config.chdb) == ("postgresql://stack", folder / "chdb")
    assert loaded(kafka="k:1", environ=environ).kafka["bootstrap.servers"] == "k:1"


def test_what_up_exports_is_taken_from_the_environment() -> None:
    config = loaded(environ={"HEADRACE_POSTGRES": "postgresql://there", "HEADRACE_CHDB": "/there"})
    assert (config.postgres, config.chdb) == ("postgresql://there", Path("/there"))
    assert destination_url(config, "postgres") == "postgresql://there"
    assert destination_url(config, "chdb") == "chdb:/there"


def test_a_stack_of_which_a_part_is_gone_is_named_with_that_part(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "s").mkdir()

    def service(name: str, state: State) -> ServiceStatus:
        return ServiceStatus(name, state, None, None, None, None, folder / "log", "")

    found = Status(folder / "s", service("kafka", "running"), service("postgres", "crashed"))
    monkeypatch.setattr(Stack, "status", lambda _self: found)
    said = "of the local stack in s, kafka is running, postgres is crashed: .*`headrace up`"
    with pytest.raises(ConfigError, match=said):
        loaded(kafka=None, environ={"HEADRACE_STATE": "s"})
    config = loaded(environ={"HEADRACE_STATE": "s"})
    for name in ("postgres", "chdb"):
        with pytest.raises(ConfigError, match=said):
            destination_url(config, name)


def test_a_stack_that_can_not_be_read_is_in_the_way_only_of_who_needs_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As root's in a shared directory: its servers are seen to run, stack.json is not ours."""

    def load(_self: Home) -> None:
        raise StackError("it belongs to another user")

    (folder / ".headrace").mkdir()
    monkeypatch.setattr(Home, "load", load)
    for service in (Kafka, Postgres):
        monkeypatch.setattr(service, "pid", 1)
    config = loaded(kafka="k:1")
    assert (config.kafka["bootstrap.servers"], config.postgres, config.chdb) == ("k:1", None, None)
    assert loaded(kafka=None, environ={"HEADRACE_KAFKA": "k:1"}).postgres is None
    assert loaded('[kafka]\n"bootstrap.servers" = "k:1"\n', kafka=None).postgres is None
    with pytest.raises(StackError, match="belongs to another user"):
        loaded(kafka=None)
    with pytest.raises(StackError, match="belongs to another user"):
        destination_url(config, "postgres")


def test_an_empty_variable_is_none() -> None:
    environ = {"HEADRACE_CONFIG": "", "HEADRACE_STATE": "", "HEADRACE_KAFKA": "",
               "HEADRACE_POSTGRES": "", "HEADRACE_CHDB": ""}  # fmt: skip
    config = loaded(environ=environ)
    assert (config.state, config.postgres, config.chdb) == (Path(".headrace"), None, None)


def test_the_file_is_the_named_one_else_that_of_the_environment(folder: Path) -> None:
    (folder / "other.toml").write_text('[kafka]\n"linger.ms" = 7\n')
    for config in (
        loaded(path=Path("other.toml"), environ={"HEADRACE_CONFIG": "nowhere"}),
        loaded(environ={"HEADRACE_CONFIG": "other.toml"}),
    ):
        assert config.kafka["linger.ms"] == 7


def test_paths_in_the_file_start_at_the_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "sub").mkdir()
    shutil.copy(EVERYTHING_PROTO, folder / "sub")
    (folder / "sub" / "headrace.toml").write_text(USER)
    config = load(Path("sub/headrace.toml"), kafka="k:1", environ={})
    assert config.stream("mine").descriptor.full_name == "test.v1.Everything"


def test_a_proto_that_streams_share_is_compiled_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time is a process: with 45 streams every command began with seconds of them."""
    shutil.copy(EVERYTHING_PROTO, folder / "everything.proto")
    one = 'proto = "everything.proto"\nmessage = "test.v1.Everything"\nkey = "id"\n'
    one += 'time = "seen_at"\n'
    path = folder / "headrace.toml"
    path.write_text(f"[streams.a]\n{one}[streams.b]\n{one}")
    compiled = Mock(side_effect=compile_proto)
    monkeypatch.setattr("headrace.config.compile_proto", compiled)
    for times in (1, 2):  # the file may have changed by the next time
        streams = load(environ={"HEADRACE_KAFKA": "k:1"}).streams
        assert {"a", "b"} <= streams.keys()
        assert compiled.call_count == times


def test_streams_that_need_no_kafka_can_be_looked_at_without() -> None:
    assert "bootstrap.servers" not in loaded(kafka=None, need_kafka=False).kafka
    with pytest.raises(ConfigError, match="no Kafka is known: start the local stack with"):
        loaded(kafka=None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[streams", "headrace.toml is not TOML: "),
        ("[stream.x]", "headrace.toml: unknown section [stream]; known: collect, kafka, replay"),
        ("[replay]\nraw = 1", "headrace.toml: [replay] has one setting"),
        ('[replay]\nrow = "chdb"', "headrace.toml: [replay] has one setting"),
        ("kafka = 3", "headrace.toml: kafka must be a section: [kafka]"),
        ("[[streams]]", "headrace.toml: streams must be a section: [streams]"),
        ("[streams]\nx = 3", "headrace.toml: streams.x must be a section: [streams.x]"),
        ('[kafka]\nbootstrap.servers = "k:1"', "headrace.toml: kafka.bootstrap must be text, a "
         "number or true/false (write dotted keys in quotes"),
        ("[kafka]\nx = [1]", "headrace.toml: kafka.x must be text"),
        ('[streams.x]\nkey = "k"', 'headrace.toml: stream x: message = "…" is missing'),
        ('[streams.device_state]\ntopic = "http_test"',
         "headrace.toml: streams device_state and http_test share the topic 'http_test'"),
        ('[streams.device_state]\ntopic = "http_test.dlq"',
         "headrace.toml: streams device_state and http_test share the topic 'http_test.dlq'"),
        ('[streams.device_state]\ntable = "http_test"',
         "headrace.toml: streams device_state and http_test share the table 'http_test'"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file_is_said_with_its_name(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as raised:
        loaded(text)
    assert str(raised.value).startswith(said)


def test_a_file_that_was_named_must_be_there_and_readable(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml does not exist"):
        loaded(path=Path("nowhere.toml"))
    with pytest.raises(ConfigError, match="can't be read: Is a directory"):
        loaded(path=folder)
    (folder / "latin.toml").write_bytes(b'x = "\xff"')
    with pytest.raises(ConfigError, match=r"latin\.toml is not TOML"):
        loaded(path=Path("latin.toml"))


def test_a_file_from_windows_is_read(folder: Path) -> None:
    """A byte order mark, and lines that end in CR LF."""
    (folder / "windows.toml").write_bytes(
        b'\xef\xbb\xbf[kafka]\r\n"bootstrap.servers" = "k:9092"\r\n'
    )
    config = loaded(path=Path("windows.toml"), kafka=None)
    assert config.kafka == {"bootstrap.servers": "k:9092"}


def test_a_state_directory_that_this_user_may_not_look_for_is_none(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tests may run as root, who may look for all."""

    def closed(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_dir", closed)
    config = loaded(kafka="k:9092", environ={"HEADRACE_STATE": "s"})
    assert (config.postgres, config.chdb) == (None, None)
    with pytest.raises(ConfigError, match="no Kafka is known: start the local stack"):
        loaded(kafka=None, environ={"HEADRACE_STATE": "s"})


def test_an_unknown_stream_is_said_with_those_there_are() -> None:
    said = r"device_state, http_test, traceroute_test, raw_events, receipts\. Add \[streams\.x\]"
    with pytest.raises(ConfigError, match=rf"no stream 'x'; declared are: {said} to headrace"):
        loaded().stream("x")
