"""Keys: what is in the file, who may change it, and what a request presents."""

from __future__ import annotations

import base64
import errno
import json
import logging
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from headrace.cli import cli
from headrace.config import ConfigError
from ingest.collector import keyfile
from ingest.collector.key import Key, KeyFileError, digest, new_secret, refuse_weak
from ingest.collector.keyfile import add, read, revoke
from ingest.collector.keys import Keys, presented_key, write_key


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def put(file: Path, source: str = "web", secret: str = "", **entry: object) -> tuple[Key, str]:
    secret = secret or new_secret()
    return add(file, secret, {"source": source, **entry}), secret


def edit(file: Path, **changes: object) -> None:
    """What a person does in an editor, to the first key."""
    document = json.loads(file.read_text())
    document["keys"][0].update(changes)
    file.write_text(json.dumps(document))


# -- the file --------------------------------------------------------------------------------------


def test_a_key_is_read_back_as_it_was_added(file: Path) -> None:
    added, _ = put(
        file, account="acme", streams=["raw_events"], origins=["HTTPS://Shop.example:443/"],
        rate=2.5, burst=9, daily=1000,
    )  # fmt: skip
    put(file, "billing")
    first, second = read(file)
    assert first == added
    assert first.origins == {"https://shop.example"}
    assert (first.rate, first.burst, first.daily) == (2.5, 9, 1000)
    assert (second.source, second.streams, second.rate) == ("billing", frozenset(), 0)


def test_the_file_and_what_is_shown_of_a_key_hold_nothing_of_the_secret(file: Path) -> None:
    key, secret = put(file)
    assert secret not in file.read_text()
    shown = repr(key)
    assert key.id in shown
    assert secret not in shown and key.hash.hex() not in shown and repr(key.hash) not in shown


def test_only_the_owner_may_read_the_file(file: Path) -> None:
    previous = os.umask(0)
    try:
        put(file)
    finally:
        os.umask(previous)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_change_gives_others_no_rights_and_keeps_the_groups_reading(file: Path) -> None:
    put(file)
    file.chmod(0o666)
    put(file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o640


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_a_change_by_root_leaves_the_file_to_its_owner(file: Path) -> None:
    put(file)
    os.chown(file, 12345, 12346)
    put(file)
    assert (file.stat().st_uid, file.stat().st_gid) == (12345, 12346)


def test_a_link_to_the_file_stays_a_link(file: Path, tmp_path: Path) -> None:
    put(file)
    link = tmp_path / "link.json"
    link.symlink_to(file)
    put(link)
    assert link.is_symlink()
    assert len(read(file)) == 2


def test_the_new_content_is_on_disk_before_it_has_the_name(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fsync of the new file, rename, fsync of the directory; never a moment with half a file."""
    done: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def synced(handle: int) -> None:
        done.append("directory" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        fsync(handle)

    def renamed(self: Path, target: Path) -> Path:
        done.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    put(file)
    assert done == ["file", "rename", "directory"]


def test_a_change_that_fails_leaves_the_file_and_nothing_beside_it(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(file)
    before = file.read_bytes()

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(KeyFileError, match=r"keys\.json can't be written: No space left"):
        put(file)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_keys_that_are_added_at_the_same_time_are_all_kept(file: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from ingest.collector.keyfile import add\n"
        "from ingest.collector.key import new_secret\n"
        "for n in range(10): add(Path(sys.argv[1]), new_secret(), {'source': sys.argv[2]})\n"
    )
    others = [
        subprocess.Popen([sys.executable, "-c", script, str(file), f"s{n}"]) for n in range(4)
    ]
    assert [other.wait(60) for other in others] == [0] * 4
    sources = sorted(key.source for key in read(file))
    assert sources == sorted(f"s{n}" for n in range(4) for _ in range(10))


def test_a_lock_that_is_not_let_go_of_is_an_error_and_no_hang(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keyfile, "_LOCK_WAIT_S", 0.05)
    with keyfile._locked(file.parent), pytest.raises(KeyFileError, match="another process"):
        put(file)
    put(file)


def test_a_secret_that_was_there_once_can_not_come_back(file: Path) -> None:
    key, secret = put(file)
    with pytest.raises(KeyFileError, match="already, or was revoked"):
        put(file, secret=secret)
    revoke(file, key.id)
    with pytest.raises(KeyFileError, match="already, or was revoked"):
        put(file, secret=secret)


def test_revoking_twice_keeps_the_first_time(file: Path) -> None:
    key, _ = put(file)
    first = revoke(file, key.id)
    assert first.revoked_at
    before = file.stat().st_ino
    assert revoke(file, key.id) == first
    assert file.stat().st_ino == before


BROKEN = {
    "not JSON: Expecting": '{"version": 1, "keys": [}',
    "UTF-8": "{}",
    "must be an object": "[]",
    "version 2": '{"version": 2, "keys": []}',
}


@pytest.mark.parametrize(("said", "text"), BROKEN.items())
def test_a_file_that_is_no_file_of_keys_says_what_is_wrong(
    file: Path, said: str, text: str
) -> None:
    file.write_bytes(text.encode("utf-16") if said == "UTF-8" else text.encode())
    with pytest.raises(KeyFileError, match=said):
        read(file)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("id", "web"), ("source", "Web"), ("source", "unix"), ("source", "a:b"), ("source", 3),
        ("sha256", "00"), ("account", "two\nlines"), ("streams", "raw_events"), ("streams", [1]),
        ("streams", ["a b"]), ("origins", ["*"]), ("origins", ["https://x/y"]),
        ("origins", ["x.com"]), ("rate", -1), ("rate", float("nan")), ("rate", True),
        ("rate", "5"), ("burst", 1.5), ("daily", -1), ("burst", 5), ("brust", 5),
        ("revoked_at", 5), ("rate", None),
    ],
)  # fmt: skip
def test_a_field_that_can_not_be_is_named(file: Path, field: str, value: object) -> None:
    put(file)
    edit(file, **{field: value})
    with pytest.raises(KeyFileError, match=rf"keys\.json: (key k_\w+|entry 0 of keys): .*{field}"):
        read(file)


def test_an_id_or_a_hash_is_there_once(file: Path) -> None:
    (one, _), (two, _) = put(file), put(file)
    for change in ({"id": two.id}, {"id": one.id, "sha256": two.hash.hex()}):
        edit(file, **change)
        with pytest.raises(KeyFileError, match="there twice"):
            read(file)


# -- secrets ---------------------------------------------------------------------------------------


def test_a_secret_that_is_made_is_new_and_strong() -> None:
    made = {new_secret() for _ in range(200)}
    assert len(made) == 200
    for secret in made:
        refuse_weak(secret)


@pytest.mark.parametrize(
    "secret",
    [
        "", "short", "x" * 40, "changeme" * 5, "0123456789" * 4, "with a space in the middle 12345",
        "aB3:dE6fG7hI8jK9lM0nO1pQ", "ключключключключключключ", "abc" * 30, "A1b2" * 60,
    ],
)  # fmt: skip
def test_what_could_be_guessed_or_not_be_sent_is_no_secret(secret: str) -> None:
    with pytest.raises(KeyFileError) as caught:
        refuse_weak(secret)
    assert not secret or secret not in str(caught.value)


@given(st.binary(min_size=16, max_size=16))
def test_what_other_systems_make_at_random_is_taken(noise: bytes) -> None:
    """Hexadecimal, base64url and UUIDs of random bytes; Hypothesis' own are not random."""
    import hashlib
    import uuid

    random = hashlib.sha256(noise).digest()
    refuse_weak(random[:16].hex())
    refuse_weak(base64.urlsafe_b64encode(random[:24]).decode())
    refuse_weak(str(uuid.UUID(bytes=random[:16])))


# -- finding ---------------------------------------------------------------------------------------


def test_a_key_is_found_by_its_secret_and_by_nothing_else(file: Path) -> None:
    key, secret = put(file)
    keys = Keys(file)
    assert keys.find(secret) == key
    for other in ("", secret[:-1], secret + "x", secret.lower(), key.id, key.hash.hex(), "x" * 9999,
                  "\ud800", "é"):  # fmt: skip
        assert keys.find(other) is None


def test_what_is_found_is_compared_in_constant_time(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import hmac

    _, secret = put(file)
    keys = Keys(file)
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: False)
    assert keys.find(secret) is None


def test_a_key_may_do_what_its_entry_says(file: Path) -> None:
    all_streams, _ = put(file)
    page, _ = put(file, streams=["raw_events"], origins=["https://a.example"])
    assert all_streams.allows_stream("device_state")
    assert page.allows_stream("raw_events") and not page.allows_stream("device_state")
    assert Keys(file).origins() == {"https://a.example"}


def test_a_revoked_key_stops_at_the_next_look_and_a_new_one_works(file: Path) -> None:
    old, secret = put(file, origins=["https://a.example"])
    clock = Clock()
    keys = Keys(file, now=clock)
    assert keys.find(secret) == old
    revoke(file, old.id)
    new, another = put(file)
    clock.now += 0.9
    assert keys.find(secret) == old, "it looks once a second"
    clock.now += 0.2
    assert keys.find(secret) is None
    assert keys.find(another) == new
    assert keys.origins() == frozenset()


def test_the_file_is_looked_at_once_a_second_and_read_only_when_it_changed(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(file)
    clock = Clock()
    keys = Keys(file, now=clock)
    looks: list[float] = []
    reads: list[float] = []
    from ingest.collector import keys as module

    signature, reader = module._signature, module.read
    monkeypatch.setattr(module, "_signature", lambda p: (looks.append(clock.now), signature(p))[1])
    monkeypatch.setattr(module, "read", lambda p: (reads.append(clock.now), reader(p))[1])
    for _ in range(1000):
        clock.now += 0.01
        keys.find("x")
    assert 9 <= len(looks) <= 10
    assert not reads
    put(file)
    clock.now += 1
    keys.find("x")
    keys.find("x")
    assert len(reads) == 1


def test_an_edit_of_the_same_size_is_noticed(file: Path) -> None:
    _, secret = put(file, "web")
    clock = Clock()
    keys = Keys(file, now=clock)
    size = file.stat().st_size
    file.write_bytes(file.read_bytes().replace(b'"web"', b'"app"'))
    assert file.stat().st_size == size
    clock.now += 1
    found = keys.find(secret)
    assert found is not None and found.source == "app"


def test_a_file_that_could_not_be_read_once_is_read_again_as_it_is(
    file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As while a process has no file left: what was revoked then must not stay."""
    key, secret = put(file)
    clock = Clock()
    keys = Keys(file, now=clock)
    revoke(file, key.id)

    def none_left(_: Path) -> bytes:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", none_left)
        for _ in range(3):
            clock.now += 1
            assert keys.find(secret) == key
    assert [record.levelno for record in caplog.records].count(logging.ERROR) == 1
    clock.now += 1
    assert keys.find(secret) is None


@pytest.mark.parametrize("harm", ["cut", "gone", "typo"])
def test_a_broken_file_leaves_the_keys_and_says_so_once(
    file: Path, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    key, secret = put(file)
    good = file.read_bytes()
    clock = Clock()
    keys = Keys(file, now=clock)
    if harm == "gone":
        file.unlink()
    else:
        file.write_bytes(good[:-20] if harm == "cut" else good.replace(b'"source"', b'"sorce"'))
    with caplog.at_level(logging.INFO):
        for _ in range(20):
            clock.now += 1
            assert keys.find(secret) == key
    assert keys.problem() is not None and keys.problem() == keys.broken
    assert keys.broken is not None and "keys.json" in keys.broken
    (said,) = caplog.records
    assert said.levelno == logging.ERROR and "keys of before stay" in said.getMessage()
    assert secret not in caplog.text and key.hash.hex() not in caplog.text
    file.write_bytes(good)
    clock.now += 1
    assert keys.problem() is None
    assert keys.find(secret) == key


def test_a_collector_does_not_start_with_a_file_that_it_can_not_read(file: Path) -> None:
    with pytest.raises(KeyFileError, match="headrace keys add"):
        Keys(file)


# -- what a request presents -----------------------------------------------------------------------


def basic(pair: str) -> bytes:
    return b"Basic " + base64.b64encode(pair.encode())


@pytest.mark.parametrize(
    ("header", "found"),
    [
        (b"Bearer hr_abc", "hr_abc"),
        (b"bearer  hr_abc ", "hr_abc"),
        (basic("hr_abc:"), "hr_abc"),
        (basic("hr_abc"), "hr_abc"),
        (basic("hr_abc:pass:word"), "hr_abc"),
        (b"BASIC " + base64.b64encode(b"k:"), "k"),
        (b"Bearer", None),
        (b"Bearer ", None),
        (b"", None),
        (b"Basic !!!", None),
        (b"Basic \xff\xff", None),
        (basic(":x"), None),
        (b"Digest hr_abc", None),
        (b"Bearer " + b"x" * 10_000, None),
        (b"hr_abc", None),
    ],
)
def test_the_authorization_header_is_bearer_or_basics_user(
    header: bytes, found: str | None
) -> None:
    assert presented_key([(b"host", b"x"), (b"authorization", header)]) == found


def test_none_or_two_authorizations_are_no_key() -> None:
    assert presented_key([]) is None
    twice = [(b"authorization", b"Bearer a"), (b"authorization", b"Bearer a")]
    assert presented_key(twice) is None


@given(st.lists(st.tuples(st.just(b"authorization"), st.binary(max_size=60)), max_size=2))
def test_no_header_is_an_error(headers: list[tuple[bytes, bytes]]) -> None:
    presented_key(headers)


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (b'{"writeKey": "abc", "batch": []}', "abc"),
        (b'{"batch": [{"writeKey": "inner"}]}', None),
        (b'{"batch": [{"writeKey": "inner"}], "writeKey": "outer"}', "outer"),
        (b'{"writeKey": 3}', None),
        (b'{"writeKey": null}', None),
        (b'[{"writeKey": "abc"}]', None),
        (b'{"writeKey": "abc"', None),
        (b'{"writeKey": "\xff"}', None),
        (b"", None),
        (b'{"writeKey":' + b"[" * 200_000, None),
        (b'{"a": ' + b'{"a": ' * 200_000, None),
        (b'{"a":' + b"[" * 5_000 + b"]" * 5_000 + b', "writeKey": 7}', None),
        # A door takes halves of emojis, and names as JSON may write them.
        (rb'{"writeKey": "w", "events": [{"t": "cut \ud83d"}]}', "w"),
        (rb'{"write\u004bey": "w"}', "w"),
        (rb'{"write\u004bey": "w", "t": "\udc00"}', "w"),
    ],
)
def test_the_write_key_of_a_body_is_text_at_the_top_of_an_object(
    body: bytes, found: str | None
) -> None:
    assert write_key(body) == found


@given(st.binary(max_size=40), st.binary(max_size=40))
def test_no_body_is_an_error(before: bytes, after: bytes) -> None:
    write_key(before + b'"writeKey"' + after)


# -- the commands ----------------------------------------------------------------------------------


def invoke(*args: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(cli, ["keys", *args], input=stdin)


def test_ls_shows_every_limit(file: Path) -> None:
    put(file, rate=7, burst=1234, daily=98765)
    listed = invoke("ls", "--keys", str(file)).output
    assert all(limit in listed for limit in ("7/s", "1,234", "98,765"))


def test_add_prints_the_secret_once_and_alone_on_stdout(file: Path) -> None:
    done = invoke("add", "web", "--keys", str(file), "--origin", "https://www.example.com")
    secret = done.stdout.strip()
    assert done.stdout == secret + "\n" and secret.startswith("hr_")
    assert secret not in done.stderr
    found = Keys(file).find(secret)
    assert found is not None
    assert found.streams == {"raw_events"}, "a page's key is public: it may write only events"
    listed = invoke("ls", "--keys", str(file)).output
    assert found.id in listed and "https://www.example.com" in listed
    assert secret not in listed and found.hash.hex() not in listed


def test_add_takes_a_key_that_is_in_use_elsewhere_and_does_not_print_it(file: Path) -> None:
    theirs = "Zq7xWm2LrT9bNc4VyK8sPd3HfJ6gAe1u"
    done = invoke(
        "add", "ios", "--keys", str(file), "--key-from-stdin", "--stream", "device_state",
        "--rate", "5", "--burst", "7", "--daily", "9", "--account", "acme", stdin=theirs + "\n",
    )  # fmt: skip
    assert done.exit_code == 0
    assert theirs not in done.output
    found = Keys(file).find(theirs)
    assert found is not None
    assert found.streams == {"device_state"}
    assert (found.account, found.rate, found.burst, found.daily) == ("acme", 5, 7, 9)


def test_a_key_for_a_stream_that_is_not_declared_is_refused(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its records would be: that is found out here, and not by whoever sends."""
    monkeypatch.chdir(tmp_path)
    options = ("add", "fleet", "--keys", str(file), "--stream", "device_state")
    refused = invoke(*options, "--stream", "device_stat")
    assert isinstance(refused.exception, ConfigError)
    said = str(refused.exception)
    assert "device_stat'" in said and "device_state" in said and "--config" in said
    assert not file.exists() and refused.stdout == ""
    assert invoke(*options).exit_code == 0
    (declared,) = read(file)
    assert declared.streams == {"device_state"}


def test_the_streams_and_the_file_of_keys_may_be_those_of_another_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    home = tmp_path / "etc"
    home.mkdir()
    (home / "state.proto").write_text(
        'syntax = "proto3"; import "google/protobuf/timestamp.proto";'
        "message State { string id = 1; google.protobuf.Timestamp at = 2; }"
    )
    (home / "headrace.toml").write_text(
        '[collect]\nkeys = "mine.json"\n[streams.states]\nproto = "state.proto"\n'
        'message = "State"\nkey = "id"\ntime = "at"\n'
    )
    options = ("add", "fleet", "--stream", "states")
    assert invoke(*options).exit_code != 0
    done = invoke(*options, "--config", "etc/headrace.toml")
    assert done.exit_code == 0, done.exception
    assert [key.streams for key in read(home / "mine.json")] == [{"states"}]


def test_without_a_name_the_file_is_that_of_the_collectors_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert invoke("add", "web").exit_code == 0
    assert len(read(tmp_path / "keys.json")) == 1
    (tmp_path / "headrace.toml").write_text('[collect]\nkeys = "mine.json"\n')
    assert invoke("add", "web").exit_code == 0
    assert len(read(tmp_path / "mine.json")) == 1
    assert len(read(tmp_path / "keys.json")) == 1


@pytest.mark.parametrize("command", [["ls"], ["revoke", "k_1"]])
def test_a_file_that_is_missing_and_that_nobody_has_named_is_said_to_be_a_guess(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.toml").write_text("")
    hint = "(no [collect] keys in {}; give --config or --keys)"
    for options, where in ([], "headrace.toml"), (["--config", "other.toml"], "other.toml"):
        said = str(invoke(*command, *options).exception)
        assert said.startswith(("keys.json does not exist", f"{tmp_path}/keys.json does not"))
        assert said.endswith(hint.format(where))
    with monkeypatch.context() as environ:
        environ.setenv("HEADRACE_CONFIG", "other.toml")
        assert str(invoke(*command).exception).endswith(hint.format("other.toml"))
    assert "give --config" not in str(invoke(*command, "--keys", "keys.json").exception)
    (tmp_path / "headrace.toml").write_text('[collect]\nkeys = "mine.json"\n')
    assert "give --config" not in str(invoke(*command).exception)
    (tmp_path / "headrace.toml").unlink()
    (tmp_path / "keys.json").write_text("{}")
    assert "give --config" not in str(invoke(*command).exception)


def test_revoke_says_what_it_did_and_ls_shows_it_last(file: Path) -> None:
    (one, _), (two, _) = put(file, "one"), put(file, "two")
    done = invoke("revoke", one.id, "--keys", str(file))
    assert done.exit_code == 0 and one.id in done.output and "revoked since" in done.output
    lines = invoke("ls", "--keys", str(file)).output.splitlines()
    assert two.id in lines[1] and "revoked" not in lines[1]
    assert one.id in lines[2] and "revoked 2" in lines[2]


def test_a_secret_that_is_typed_where_an_id_belongs_is_not_said_again(file: Path) -> None:
    _, secret = put(file)
    with pytest.raises(KeyFileError) as caught:
        revoke(file, secret)
    assert secret not in str(caught.value) and "give its id" in str(caught.value)


def test_a_hash_is_sha256_so_that_sha256sum_finds_a_key() -> None:
    import hashlib

    assert digest("abc") == hashlib.sha256(b"abc").digest()
