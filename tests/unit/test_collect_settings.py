"""[collect]: what it may say, and the sentence for what it may not."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from headrace.config import ConfigError, load
from ingest.collector.node import Node
from ingest.collector.server import check
from ingest.collector.settings import CollectError, CollectSettings, host_and_port
from ingest.settings import SettingError
from ingest.spool import Limits, Spool


def loaded(tmp_path: Path, text: str) -> CollectSettings:
    file = tmp_path / "headrace.toml"
    file.write_text(text, encoding="utf-8")
    return load(file, kafka="k:1", environ={}).collect


def test_without_the_section_the_defaults_hold(tmp_path: Path) -> None:
    assert loaded(tmp_path, "") == CollectSettings()


def test_what_the_file_says_is_what_the_collector_knows_and_paths_begin_at_the_file(
    tmp_path: Path,
) -> None:
    found = loaded(
        tmp_path,
        '[collect]\nspool = "s"\nkeys = "/etc/k.json"\nworkers = 2\nbody_timeout_s = 1\n'
        'origins = ["https://a.example"]\nforwarded = ["10.0.0.0/8"]\nmax_depth = 5\n',
    )
    assert (found.spool, found.keys) == (tmp_path / "s", Path("/etc/k.json"))
    assert (found.workers, found.body_timeout_s, found.limits.depth) == (2, 1, 5)
    assert (found.origins, str(found.proxies[0])) == (("https://a.example",), "10.0.0.0/8")


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("max_recrods = 5", "collect.max_recrods is no setting"),
        ("workers = true", "collect.workers = True must be a whole number"),
        ("workers = 0", "workers = 0 must be 1 at least"),
        ('body_timeout_s = "x"', "must be a number"),
        ("store_network = 1", "must be true or false"),
        ("origins = [5]", "must be a list of text"),
        ('origins = ["https://a.example/path"]', "no path"),
        ('origins = ["*"]', "no path"),
        ('listen = "8080"', "must be HOST:PORT"),
        ('listen = "127.0.0.1:99999"', "must be HOST:PORT"),
        ('tls_cert = "c.pem"', "go together"),
        ('store_headers = ["authorization"]', "can't be kept"),
        ('store_headers = ["user agent"]', "can't be kept"),
        ('store_headers = ["Cookie"]', "can't be kept"),
        ('forwarded = ["10.0.0.1/8"]', "forwarded:"),
        ("max_inflight_bytes = 5000", "room for one request"),
        ("max_decoded_bytes = 5000\nmax_inflight_bytes = 6000", "room for one request"),
        ('http2 = "yes"', "one of tls, always, never"),
    ],
)
def test_what_can_not_be_names_the_file_and_the_setting(
    line: str, sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as raised:
        loaded(tmp_path, f"[collect]\n{line}\n")
    assert str(raised.value).startswith(str(tmp_path / "headrace.toml"))
    assert sentence in str(raised.value)


def test_an_option_that_is_not_given_changes_nothing(tmp_path: Path) -> None:
    found = CollectSettings(workers=3).with_options(workers=None, listen="127.0.0.1:1")
    assert (found.workers, found.listen) == (3, "127.0.0.1:1")
    with pytest.raises(CollectError, match="workers"):
        found.with_options(workers=1000)


@pytest.mark.parametrize(
    ("address", "found"),
    [
        ("127.0.0.1:80", ("127.0.0.1", 80)),
        ("[::1]:80", ("::1", 80)),
        (":80", ("0.0.0.0", 80)),
        ("here:0", ("here", 0)),
    ],
)
def test_addresses_are_read(address: str, found: tuple[str, int]) -> None:
    assert host_and_port(address, "listen") == found


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0", ":0"])
def test_without_keys_no_other_machine_may_send(listen: str, tmp_path: Path) -> None:
    with pytest.raises(CollectError, match="without keys only this machine may send"):
        check(CollectSettings(spool=tmp_path, listen=listen))


def test_a_free_port_is_found_and_a_taken_one_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    host, port = check(CollectSettings(spool=tmp_path, listen="localhost:0"))
    assert host in ("127.0.0.1", "::1")
    assert port > 0
    monkeypatch.setattr("ingest.collector.server._LOCK_WAIT_S", 0.0)
    with socket.socket() as taken:
        # As the server's own sockets: it would share the port with another collector.
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(CollectError, match="can't listen at"):
            check(CollectSettings(spool=tmp_path, listen=listen))


def test_origins_and_headers_may_be_written_in_any_case(tmp_path: Path) -> None:
    found = loaded(
        tmp_path,
        '[collect]\norigins = ["https://A.example"]\nstore_headers = ["User-Agent"]\n',
    )
    assert (found.origins, found.store_headers) == (("https://a.example",), ("user-agent",))


def test_origins_are_kept_as_browsers_send_them(tmp_path: Path) -> None:
    """Without the port that the scheme has anyway."""
    said = '"https://p.example.com:443", "http://p.example.com:80", "https://p.example.com:80/"'
    found = loaded(tmp_path, f"[collect]\norigins = [{said}]\n")
    assert found.origins == (
        "https://p.example.com", "http://p.example.com", "https://p.example.com:80",
    )  # fmt: skip


def test_metrics_and_socket_are_tried_before_anything_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    monkeypatch.setattr("ingest.collector.server._LOCK_WAIT_S", 0.0)
    settings = CollectSettings(
        spool=tmp_path / "spool", listen="127.0.0.1:0", socket=tmp_path / "s", workers=2
    )
    check(settings)
    assert not (tmp_path / "s").exists()
    with pytest.raises(CollectError, match="can't be made"):
        check(replace(settings, socket=tmp_path / "none" / "s"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(CollectError, match=r"can't listen at .*--metrics"):
            check(replace(settings, metrics=f"127.0.0.1:{port - 1}"))


@pytest.mark.parametrize(
    ("record_bytes", "kafka", "fits"),
    [
        (900_000, {}, True),
        (999_000, {}, False),
        (2_000_000, {"message.max.bytes": 3_000_000}, True),
        (2_000_000, {"message.max.bytes": "2000000"}, False),
    ],
)
def test_a_record_that_kafka_would_never_take_is_not_to_be_accepted(
    record_bytes: int, kafka: dict[str, str | int | float | bool], fits: bool, tmp_path: Path
) -> None:
    settings = CollectSettings(spool=tmp_path, listen="127.0.0.1:0", max_record_bytes=record_bytes)
    if fits:
        check(settings, kafka)
    else:
        with pytest.raises(CollectError, match=r"message\.max\.bytes"):
            check(settings, kafka)


def test_a_directory_that_is_a_spool_itself_is_refused(tmp_path: Path) -> None:
    from ingest.spool import Spool

    Spool(tmp_path).close()
    with pytest.raises(CollectError, match="is a spool itself"):
        check(CollectSettings(spool=tmp_path, listen="127.0.0.1:0"))


@pytest.mark.parametrize(
    ("kafka", "said"),
    [
        ({"foo.bar": "1"}, "foo.bar"),
        ({"security.protocol": "tls"}, "security.protocol"),
        ({"message.max.bytes": "x"}, "message.max.bytes"),
        # librdkafka reads it as a number, and the relay can't.
        ({"message.max.bytes": "0x200000"}, "message.max.bytes"),
        ({"batch.size": "1000000.0"}, "batch.size"),
        ({"linger.ms": 10**9}, "queue.buffering.max.ms"),
        ({"acks": 1}, "acks"),
    ],
)
def test_what_librdkafka_refuses_is_said_before_anything_is_accepted(
    kafka: dict[str, str | int | float | bool], said: str, tmp_path: Path
) -> None:
    with pytest.raises(SettingError, match=re.escape(said)):
        check(
            CollectSettings(spool=tmp_path, listen="127.0.0.1:0"),
            {"bootstrap.servers": "127.0.0.1:1", **kafka},
        )


def test_what_librdkafka_refuses_ends_no_thread_with_a_traceback(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kafka: dict[str, str | int | float | bool] = {
        "bootstrap.servers": "127.0.0.1:1",
        "foo.bar": "1",
    }
    with Spool(tmp_path / "0") as spool:
        node = Node(spool, Limits(), kafka, ["t"], 900_000)
        node._look_for_topics()
        node._reader.close()
    assert "foo.bar" in caplog.text
