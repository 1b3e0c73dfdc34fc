"""Where root starts PostgreSQL its directory is `nobody`'s: root follows no link in there."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.stack import StackError, postgres, state
from headrace.stack.postgres import Postgres
from headrace.stack.unprivileged import as_owner, postgres_user

# Does with its arguments what the real one does, as far as it is looked at here.
INITDB = """\
#!/bin/sh
for a; do
  case "$before" in -D) mkdir "$a" && to=$a;; esac
  case "$a" in --pwfile=*) from=${a#--pwfile=};; esac
  before=$a
done
cat "$from" > "$to/password" && echo 18 > "$to/PG_VERSION" && : > "$to/postgresql.conf"
"""

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes somebody else")


@pytest.fixture(params=["open", "closed"])
def place(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A directory that `nobody` may enter, or may not. (Pytest's own he may never.)"""
    with tempfile.TemporaryDirectory() as made:
        Path(made).chmod(0o755 if request.param == "open" else 0o700)
        yield Path(made).resolve()


@pytest.fixture
def programs(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In the place of the wheel's; the server that is started is none."""
    found = place / "bin"
    found.mkdir()
    for name, text in (("initdb", INITDB), ("postgres", "#!/bin/sh\n")):
        (found / name).write_text(text)
        (found / name).chmod(0o755)
    monkeypatch.setattr(postgres, "bin_dir", lambda: found)
    monkeypatch.setattr(postgres, "version", lambda _: "18.3.0")
    monkeypatch.setattr(postgres, "spawn", lambda *_, **__: None)
    monkeypatch.setattr(postgres, "wait_ready", lambda *_, **__: None)
    return found


@pytest.fixture
def home(place: Path, programs: Path) -> state.Home:
    found = state.Home(place / "state")
    found.create()
    found.save(state.new_settings())
    return found


@pytest.fixture
def roots(tmp_path: Path) -> Path:
    """A file of ours, with a content and a mode of its own."""
    file = tmp_path / "roots"
    file.write_text("root's")
    file.chmod(0o640)
    return file


def untouched(file: Path) -> bool:
    found = file.stat()
    who = (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode))
    return who == (os.geteuid(), os.getegid(), 0o640) and file.read_text() == "root's"


def test_the_password_goes_to_initdb_and_through_no_file(home: state.Home, roots: Path) -> None:
    settings = home.load()
    assert settings is not None
    there = home.path / "postgres"
    there.mkdir()
    (there / "password").symlink_to(roots)
    Postgres(home).start()
    assert untouched(roots)
    assert (there / "data" / "password").read_text() == settings.password
    assert [p.name for p in there.iterdir()] == ["data"]


def test_the_settings_are_written_through_no_link(home: state.Home, roots: Path) -> None:
    """As a version before this one left the stack, but for the links."""
    Postgres(home).start()
    settings = home.load()
    assert settings is not None
    data = home.path / "postgres" / "data"
    for name in ("postgresql.conf", "postgresql.conf.new", "postmaster.pid"):
        (data / name).unlink(missing_ok=True)
        (data / name).symlink_to(roots)
    Postgres(home).start()
    assert untouched(roots)
    config = data / "postgresql.conf"
    assert not config.is_symlink()
    assert f"port = {settings.postgres_port}\n" in config.read_text()
    assert config.stat().st_uid == data.stat().st_uid
    assert stat.S_IMODE(config.stat().st_mode) == 0o600
    assert not (data / "postmaster.pid").is_symlink()


@as_root
def test_root_does_nothing_in_a_directory_that_a_link_leads_to(
    home: state.Home, tmp_path: Path
) -> None:
    Postgres(home).start()
    data = home.path / "postgres" / "data"
    elsewhere = tmp_path / "elsewhere"
    shutil.move(data, elsewhere)
    elsewhere.chmod(0o755)
    for file in elsewhere.iterdir():
        os.chown(file, 0, 0)
    os.chown(elsewhere, 0, 0)
    (elsewhere / "postmaster.pid").write_text("1\n")
    before = {f.name: f.read_bytes() for f in elsewhere.iterdir()}
    data.symlink_to(elsewhere)
    with pytest.raises((StackError, OSError)):
        Postgres(home).start()
    assert {f.name: f.read_bytes() for f in elsewhere.iterdir()} == before


@as_root
def test_what_is_done_for_the_owner_is_done_without_a_capability(
    home: state.Home, roots: Path
) -> None:
    data = home.path / "postgres"
    data.mkdir()
    run_as = postgres_user(data)
    (data / "link").symlink_to(roots)
    with pytest.raises(StackError, match=r"files in .*postgres can't be used: .*denied"):
        as_owner(run_as, data, "cat link")
    assert as_owner(run_as, data, "cat > mine && cat mine", "text") == "text"
    assert (data / "mine").stat().st_uid == run_as.user


@as_root
@pytest.mark.parametrize("reached", [True, False])
@pytest.mark.parametrize("place", ["open"], indirect=True)
def test_data_of_a_server_that_keeps_a_capability_is_out_of_everybodys_reach(
    home: state.Home, programs: Path, reached: bool
) -> None:
    """Who could change it could have the server do what only root may."""
    if shutil.which("setpriv") is None:
        pytest.skip("there is no setpriv")
    programs.chmod(0o755 if reached else 0o700)
    (home.path / "postgres").mkdir()
    run_as = postgres_user(home.path / "postgres", programs, programs / "postgres")
    assert bool(run_as.wrapper) is not reached
    assert stat.S_IMODE(home.path.stat().st_mode) == (0o711 if reached else 0o700)
