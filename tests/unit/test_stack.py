"""The local stack without a server: pins, downloads, state directory, identity of processes."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import requests
from click.testing import CliRunner
from jgo.maven import PythonResolver

from headrace.cli import stack as cli
from headrace.stack import Endpoints, Stack, StackError, jars, ports, process, state, warmstart
from headrace.stack.kafka_node import Node, _escape
from headrace.stack.unprivileged import postgres_user

GOOD = "a" * 64


def silent(_: str) -> None:
    pass


@pytest.fixture
def home(tmp_path: Path) -> state.Home:
    found = state.Home(tmp_path / "state")
    found.create()
    return found


@pytest.fixture
def foreign() -> Iterator[subprocess.Popen[bytes]]:
    """A process that is none of ours."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as p:
        yield p
        p.kill()


# --- pins and downloads


def test_the_checked_in_pins_name_a_whole_broker() -> None:
    names = {p.artifact for p in jars.pins()}
    assert {"kafka_2.13", "kafka-clients", "kafka-server", "log4j-slf4j-impl"} <= names
    versions = {p.version for p in jars.pins() if p.group == "org.apache.kafka"}
    assert versions == {jars.kafka_version()}


def test_pins_skip_comments_and_blank_lines() -> None:
    assert jars.parse_pins(f"# why\n\n g:a:1.0 {GOOD} \n") == [jars.Pin("g", "a", "1.0", GOOD)]


@pytest.mark.parametrize(
    "line", ["g:a:1.0", f"g:a {GOOD}", f"g:a:1.0 {GOOD[:-1]}", f"https://x/g:a:1.0 {GOOD}"]
)
def test_a_line_that_is_no_pin_is_refused_by_number(line: str) -> None:
    with pytest.raises(ValueError, match="line 2"):
        jars.parse_pins(f"g:b:1.0 {GOOD}\n{line}\n")


def test_two_pins_cannot_share_a_file() -> None:
    with pytest.raises(ValueError, match="same file name"):
        jars.parse_pins(f"g:a:1.0 {GOOD}\nh:a:1.0 {GOOD}\n")


@pytest.fixture
def one_pin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache that wants one jar, whose content is `b"jar"`; its path."""
    pin = jars.Pin("g", "kafka_2.13", "1.0", hashlib.sha256(b"jar").hexdigest())
    monkeypatch.setattr(jars, "pins", lambda: (pin,))
    monkeypatch.setenv("HEADRACE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "kafka" / pin.file


def serve(monkeypatch: pytest.MonkeyPatch, content: bytes | Exception) -> list[str]:
    """Puts `content` in the place of the Maven repository; the list counts the requests."""
    asked: list[str] = []

    def download(_: PythonResolver, artifact: object) -> Path:
        asked.append(str(artifact))
        if isinstance(content, Exception):
            raise content
        path: Path = artifact.cached_path  # type: ignore[attr-defined]
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
        return path

    monkeypatch.setattr(PythonResolver, "download", download)
    return asked


def test_a_jar_is_downloaded_once(one_pin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = serve(monkeypatch, b"jar")
    assert jars.ensure_jars(silent, progress=False) == [one_pin]
    assert jars.ensure_jars(silent, progress=False) == [one_pin]
    assert asked == ["g:kafka_2.13:jar:1.0"]
    assert one_pin.read_bytes() == b"jar"


def test_a_jar_with_another_checksum_is_refused_and_not_kept(
    one_pin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(monkeypatch, b"evil")
    with pytest.raises(StackError, match=r"refused: g:kafka_2\.13:1\.0"):
        jars.ensure_jars(silent, progress=False)
    assert [p.name for p in one_pin.parent.iterdir()] == ["lock"]


def test_a_damaged_jar_in_the_cache_is_fetched_again(
    one_pin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(monkeypatch, b"jar")
    one_pin.parent.mkdir(parents=True)
    one_pin.write_bytes(b"ja")
    jars.ensure_jars(silent, progress=False)
    assert one_pin.read_bytes() == b"jar"


def test_offline_is_said_in_one_sentence(one_pin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = serve(monkeypatch, requests.ConnectionError("no route"))
    with pytest.raises(StackError, match="Connect to the network once"):
        jars.ensure_jars(silent, progress=False)
    assert len(asked) == jars.TRIES


def test_what_a_killed_download_left_is_removed(
    one_pin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(monkeypatch, b"jar")
    (one_pin.parent / "download-x").mkdir(parents=True)
    jars.ensure_jars(silent, progress=False)
    assert {p.name for p in one_pin.parent.iterdir()} == {"lock", one_pin.name}


def test_a_cache_that_can_not_be_written_is_said_and_kafka_starts_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADRACE_CACHE", str(tmp_path))
    # In the lock's place, for to root no directory is read-only.
    (warmstart.cache_file().parent / "training.lock").mkdir(parents=True)
    said: list[str] = []
    assert warmstart.ensure_cache((), said.append) is None
    assert len(said) == 1
    assert "6 s instead of 2 s" in said[0]


# --- the state directory


def test_settings_survive_a_restart_and_only_the_owner_reads_them(home: state.Home) -> None:
    settings = state.new_settings()
    home.save(settings)
    assert home.load() == settings
    assert home.settings_file.stat().st_mode & 0o777 == 0o600


def test_a_damaged_state_file_says_what_to_do(home: state.Home) -> None:
    home.settings_file.write_text('{"kafka_port": 1')
    with pytest.raises(StackError, match="Remove the directory"):
        home.load()


@pytest.mark.parametrize("begun", [False, True], ids=["new", "of a version before"])
def test_others_read_neither_data_nor_logs(
    home: state.Home, monkeypatch: pytest.MonkeyPatch, begun: bool
) -> None:
    """Root's directory may be passed through, and a version before this one relied on the umask."""
    monkeypatch.setattr(jars, "ensure_jars", lambda *_, **__: 1 / 0)  # that comes behind it
    if begun:
        for name in ("kafka", "chdb"):
            (home.path / name).mkdir()
            (home.path / name).chmod(0o755)
        for name in ("kafka.log", "postgres.log", "postgres.log.1", "lock"):
            (home.path / name).touch()
            (home.path / name).chmod(0o644)
    with pytest.raises(ZeroDivisionError):
        Stack(home.path).up(progress=False)
    modes = {p.name: p.stat().st_mode & 0o777 for p in home.path.iterdir()}
    assert (modes.pop("kafka"), modes.pop("chdb")) == (0o700, 0o700)
    del modes[".gitignore"]
    assert set(modes.values()) == {0o600}


def test_a_directory_of_another_user_that_is_linked_here_keeps_its_mode(
    home: state.Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o755)
    (home.path / "chdb").symlink_to(shared)
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    home.keep_private()
    assert shared.stat().st_mode & 0o777 == 0o755


def test_delete_leaves_what_the_stack_did_not_write(home: state.Home) -> None:
    mine = home.path / "mine.txt"
    mine.touch()
    home.save(state.new_settings())
    Stack(home.path).delete()
    assert list(home.path.iterdir()) == [mine]


def test_delete_removes_a_directory_that_held_only_the_stack(home: state.Home) -> None:
    Stack(home.path).delete()
    assert not home.path.exists()


def test_a_foreign_directory_is_not_taken_over(tmp_path: Path) -> None:
    (tmp_path / "kafka").mkdir()
    with pytest.raises(StackError, match="is not ours"):
        state.Home(tmp_path).create()
    Stack(tmp_path).delete()
    assert (tmp_path / "kafka").is_dir()


def test_a_directory_that_another_user_prepared_is_not_taken(
    home: state.Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """He would know the password, having written stack.json."""
    owner = home.path.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(StackError, match=r"belongs to another user.* of your own: HEADRACE_STATE="):
        home.create()


def test_down_says_where_it_may_not_look(home: state.Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was a traceback. Tests may run as root, who may look into all."""
    real = Path.stat

    def may_stat(path: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        if path.parent == home.path:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, follow_symlinks=follow_symlinks)

    monkeypatch.setattr(Path, "stat", may_stat)
    with pytest.raises(StackError, match=r"may not look into .*nothing was changed.*--state-dir"):
        Stack(home.path).down()


@pytest.mark.parametrize(("mode", "taken"), [(0o755, True), (0o775, False), (0o757, False)])
def test_a_directory_that_others_may_write_to_is_not_taken(
    home: state.Home, mode: int, taken: bool
) -> None:
    home.path.chmod(mode)
    refused = pytest.raises(StackError, match=f"chmod go-w {home.path};")
    with nullcontext() if taken else refused:
        home.create()


def test_root_may_come_again_when_its_postgres_is_another_users(
    home: state.Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root becomes somebody else")
    data = home.path / "postgres"
    data.mkdir()
    assert postgres_user(data).user == data.stat().st_uid != 0
    home.create()


def test_a_full_disk_does_not_keep_the_stack_from_being_shut_down(home: state.Home) -> None:
    program = (
        "import pathlib, resource, sys; from headrace.stack import Stack\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # nothing can be written\n"
        "Stack(pathlib.Path(sys.argv[1])).down(); Stack(pathlib.Path(sys.argv[1])).delete()"
    )
    subprocess.run([sys.executable, "-c", program, str(home.path)], check=True)
    assert not home.path.exists()


def removed_while_waited_for(home: state.Home) -> state.Say:
    """Holds the lock, and removes the directory once somebody waits for it."""
    holder = ExitStack()
    holder.enter_context(home.locked(silent))

    def say(_: str) -> None:
        home.delete()
        holder.close()

    return say


def test_an_up_that_waited_for_a_delete_holds_the_lock_that_others_see(
    home: state.Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    with home.locked(removed_while_waited_for(home), create=True):
        assert home.used()
        monkeypatch.setattr(state, "LOCK_PATIENCE_S", 0.0)
        with pytest.raises(StackError, match="another headrace works"), home.locked(silent):
            pass


@pytest.mark.parametrize("step", [Stack.down, Stack.delete])
def test_a_down_that_waited_for_a_delete_has_nothing_to_do(
    home: state.Home, monkeypatch: pytest.MonkeyPatch, step: Callable[[Stack], None]
) -> None:
    say = removed_while_waited_for(home)
    monkeypatch.setattr("headrace.stack.stack._teller", lambda _progress: say)
    step(Stack(home.path))
    assert not home.path.exists()


def test_the_lock_excludes_and_names_its_holder(
    home: state.Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "LOCK_PATIENCE_S", 0.0)
    said: list[str] = []
    with (
        home.locked(silent),
        pytest.raises(StackError, match=str(os.getpid())),
        home.locked(said.append),
    ):
        pass
    assert len(said) == 1
    with home.locked(silent):
        pass


def test_chosen_ports_are_free_and_outside_the_range_of_outgoing_connections() -> None:
    found = ports.free_ports(20)
    assert len(set(found)) == 20
    assert max(found) < 32768
    assert all(ports.port_is_free(p) for p in found)


def test_a_port_that_a_dying_server_still_holds_is_waited_for() -> None:
    """Bound and without a listener that the system could name: as a killed JVM leaves it."""
    with socket.socket() as held:
        held.bind((ports.HOST, 0))
        port = held.getsockname()[1]
        assert not ports.port_is_free(port)
        release = threading.Timer(0.2, held.close)
        release.start()
        assert ports.becomes_free(port)
        release.join()


def test_a_port_on_which_somebody_listens_is_not_waited_for() -> None:
    with socket.socket() as listening:
        listening.bind((ports.HOST, 0))
        listening.listen()
        begun = time.monotonic()
        assert not ports.becomes_free(listening.getsockname()[1])
        assert time.monotonic() - begun < ports._DYING_S


def settle(home: state.Home, **fixed: int) -> state.Settings:
    return Stack(home.path, **fixed)._settle(silent)


def test_two_services_never_get_one_port(home: state.Home) -> None:
    port, other = ports.free_ports(2)
    with pytest.raises(StackError, match=f"postgres cannot use port {port}: it is given to kafka"):
        settle(home, kafka_port=port, postgres_port=port)
    assert home.load() is None
    settle(home, kafka_port=port, postgres_port=other)
    assert settle(home, postgres_port=port).kafka_port != port


def test_a_state_file_that_gives_one_port_to_all_is_mended(home: state.Home) -> None:
    """Versions before this one wrote such files, and then no `headrace up` came through."""
    [port] = ports.free_ports(1)
    old = state.new_settings()
    home.save(replace(old, kafka_port=port, controller_port=port, postgres_port=port))
    made = settle(home)
    assert made.kafka_port == port
    assert len({made.kafka_port, made.controller_port, made.postgres_port}) == 3
    assert settle(home) == home.load() == made


# --- identity of processes


def test_a_pid_that_belongs_to_a_foreign_process_is_not_ours(
    home: state.Home, foreign: subprocess.Popen[bytes]
) -> None:
    stack = Stack(home.path)
    for service in (stack.kafka, stack.postgres):
        home.pid_file(service.name).write_text(f"{foreign.pid}\n")
        assert service.pid is None
        assert service.status().state == "crashed"
        service.kill()
        service.stop()
    assert foreign.poll() is None


def test_a_server_is_found_where_its_pid_can_not_be_written_down(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", "input()", str(tmp_path)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE) as server:
        found = process.find(tmp_path / "missing" / "pid", lambda argv: str(tmp_path) in argv)
        assert found is not None
        assert found.pid == server.pid
        server.kill()


def test_a_broker_of_another_state_directory_is_not_ours(tmp_path: Path) -> None:
    argv = Node(tmp_path / "a", 1, 2).command()
    assert Node(tmp_path / "a", 0, 0).mine()(argv)
    assert not Node(tmp_path / "b", 0, 0).mine()(argv)


def test_a_zombie_is_dead(tmp_path: Path) -> None:
    p = process.spawn(
        [sys.executable, "-c", ""], log=tmp_path / "log", pid_file=tmp_path / "pid", cwd=tmp_path
    )
    gone = process.wait_until(
        lambda: None if process.alive(p.pid, lambda _: True) is None else "alive", 10
    )
    assert gone is None


def test_a_log_is_for_our_user_only(tmp_path: Path) -> None:
    """Of a statement that failed PostgreSQL writes there what was in it."""
    log = tmp_path / "log"
    process.spawn([sys.executable, "-c", ""], log=log, pid_file=tmp_path / "pid", cwd=tmp_path)
    assert log.stat().st_mode & 0o777 == 0o600


def test_a_server_that_ends_while_starting_is_reported_with_the_end_of_its_log(
    tmp_path: Path,
) -> None:
    log = tmp_path / "log"
    log.write_text("from the start before\n")
    before = process.size(log)
    p = process.spawn(
        [sys.executable, "-c", "raise SystemExit('no memory')"],
        log=log, pid_file=tmp_path / "pid", cwd=tmp_path,
    )  # fmt: skip
    with pytest.raises(StackError, match="no memory") as e:
        process.wait_ready("X", p, lambda: "not yet", log=log, log_start=before, deadline_s=10)
    assert str(log) in str(e.value)
    assert "the start before" not in str(e.value)


def test_paths_with_strange_letters_are_valid_java_properties() -> None:
    assert _escape("/tmp/é\\x") == "/tmp/\\u00e9\\\\x"


# --- the command line


def test_up_refuses_one_port_for_both_servers(tmp_path: Path) -> None:
    args = ["--state-dir", str(tmp_path / "s"), "--kafka-port", "9092", "--postgres-port", "9092"]
    run = CliRunner().invoke(cli.up, args)
    assert run.exit_code == 2
    assert "--kafka-port and --postgres-port are both 9092" in run.stderr
    assert not (tmp_path / "s").exists()


def test_a_shell_takes_what_up_prints_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in a directory whose name has a space, or is a command to a shell."""
    folder = tmp_path / "a b $(touch ran) 'c'"
    endpoints = Endpoints("127.0.0.1:1", "postgresql://u:p@127.0.0.1:2/d", folder / "chdb")
    monkeypatch.setattr(Stack, "up", lambda _self, progress: endpoints)
    said = CliRunner().invoke(cli.up, ["--quiet", "--state-dir", str(folder)]).stdout
    names = ("HEADRACE_KAFKA", "HEADRACE_POSTGRES", "HEADRACE_CHDB")
    script = 'eval "$1"; printf "%s\\n" ' + " ".join(f'"${name}"' for name in names)
    heard = subprocess.run(
        ["/bin/sh", "-c", script, "sh", said], capture_output=True, text=True, cwd=tmp_path,
        check=True,
    ).stdout  # fmt: skip
    assert heard.splitlines() == [endpoints.kafka, endpoints.postgres, str(endpoints.chdb)]
    assert not (tmp_path / "ran").exists()


def test_status_of_nothing_is_exit_code_1(tmp_path: Path) -> None:
    run = CliRunner().invoke(cli.status, ["--json", "--state-dir", str(tmp_path)])
    assert run.exit_code == 1
    found = json.loads(run.stdout)
    assert found["kafka"]["state"] in ("stopped", "not installed")
    assert list(tmp_path.iterdir()) == []


def test_down_of_nothing_is_no_error(tmp_path: Path) -> None:
    run = CliRunner().invoke(cli.down, ["--delete", "--state-dir", str(tmp_path / "none")])
    assert run.exit_code == 0
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("command", [cli.up, cli.down, cli.status])
def test_every_command_shows_an_example(command: object) -> None:
    run = CliRunner().invoke(command, ["--help"])  # type: ignore[arg-type]
    assert "Example" in run.output


def test_a_state_directory_that_is_none_is_said() -> None:
    run = CliRunner().invoke(cli.status, ["--state-dir", "/dev/null"])
    assert isinstance(run.exception, StackError)
    assert str(run.exception) == (
        "/dev/null is no directory; name one: HEADRACE_STATE=/some/dir headrace up"
    )
