"""The state directory: what is remembered between two starts, and who may work on it.

    stack.json             ports, password, cluster id (mode 0600; written by temp file + rename)
    lock                   held (flock) by whoever runs `up` or `down`
    kafka.pid  kafka.log  kafka/        process, log, data and configuration of Kafka
    postgres.pid  postgres.log  postgres/data/        the same of PostgreSQL
    chdb/                  for chDB, which runs in the caller's process

Rules: `stack.json` is written only under the lock. The directory is our user's and nobody else may
write to it; in it, `postgres/` is another's where root becomes that one for PostgreSQL. That one
passes through the directory, so whatever else in it holds data is closed by itself. A pid file is a
hint, never proof: see `process.py`.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import secrets
import shlex
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import platformdirs

from .model import StackError
from .ports import free_ports

LOCK_PATIENCE_S = 600.0  # a first start on a slow line downloads 45 MB while it holds the lock
GITIGNORE = "*\n"
DIRECTORIES = ("kafka", "postgres", "chdb")
SERVICES = ("kafka", "postgres")

Say = Callable[[str], None]
"""How a long step tells the operator what it does: one line, without a newline at its end."""


def default_state_dir() -> Path:
    """`$HEADRACE_STATE`, else `./.headrace`."""
    return Path(os.environ.get("HEADRACE_STATE") or ".headrace")


def cache_dir() -> Path:
    """`$HEADRACE_CACHE`, else the user's cache directory: downloads shared by all stacks."""
    override = os.environ.get("HEADRACE_CACHE")
    return Path(override).resolve() if override else Path(platformdirs.user_cache_dir("headrace"))


@dataclass(frozen=True, slots=True)
class Settings:
    """What must be the same after a restart."""

    kafka_port: int
    controller_port: int
    postgres_port: int
    password: str
    cluster_id: str


@dataclass(frozen=True, slots=True)
class Home:
    """A state directory (absolute) and the places in it."""

    path: Path

    @property
    def settings_file(self) -> Path:
        return self.path / "stack.json"

    @property
    def chdb(self) -> Path:
        return self.path / "chdb"

    @property
    def _lock_file(self) -> Path:
        return self.path / "lock"

    def pid_file(self, service: str) -> Path:
        return self.path / f"{service}.pid"

    def log(self, service: str) -> Path:
        return self.path / f"{service}.log"

    def used(self) -> bool:
        """Whether `up` has ever been here; StackError where we may not look."""
        try:
            self._lock_file.stat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        except PermissionError as e:
            raise StackError(
                f"you may not look into {self.path}, so whether a stack runs there is not known; "
                "nothing was changed. Run as the user who ran `headrace up` there, or name another "
                "directory: --state-dir DIR"
            ) from e
        return True

    def create(self) -> None:
        """Makes the directory; nobody else may list it, and root's may be entered by Postgres.
        StackError when what is there was not made by us: `delete` would remove it, and who made it
        would know the password."""
        if not self.path.is_dir():
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.path.chmod(0o711 if os.geteuid() == 0 else 0o700)
            (self.path / ".gitignore").write_text(GITIGNORE)
        self._refuse_others()
        if not self.used():
            for name in DIRECTORIES:
                if (self.path / name).exists() and not self.used():  # another one makes it now
                    raise StackError(
                        f"{self.path / name} is there already and is not ours. Choose another "
                        "state directory: HEADRACE_STATE=/some/dir headrace up"
                    )
            self._lock_file.touch(0o600)

    def keep_private(self) -> None:
        """Makes the directories of Kafka and chDB, and takes from others what versions before this
        one let them read: those, and the logs."""
        for name in ("kafka", "chdb"):
            (self.path / name).mkdir(mode=0o700, exist_ok=True)
        logs = [log for s in SERVICES for log in (f"{s}.log", f"{s}.log.1")]
        for name in ("kafka", "chdb", "lock", *logs):
            with suppress(FileNotFoundError):
                found = (self.path / name).stat()
                # What an operator has linked here from elsewhere may be another user's.
                if found.st_mode & 0o077 and found.st_uid == os.geteuid():
                    (self.path / name).chmod(found.st_mode & 0o700)

    def _refuse_others(self) -> None:
        found, own = self.path.stat(), "a state directory of your own: HEADRACE_STATE=~/.headrace"
        if found.st_uid != os.geteuid():
            raise StackError(
                f"{self.path} belongs to another user, who could know the password of what is "
                f"started there. Run as that user, or use {own} headrace up"
            )
        if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise StackError(
                f"other users may write to {self.path}, and could change what is started there. If "
                f"you trust what is in it: chmod go-w {shlex.quote(str(self.path))}; else use "
                f"{own} headrace up"
            )

    def load(self) -> Settings | None:
        """The remembered settings, None before the first start; StackError when unreadable."""
        try:
            return Settings(**json.loads(self.settings_file.read_text()))
        except FileNotFoundError:
            return None
        except NotADirectoryError as e:
            raise StackError(
                f"{self.path} is no directory; name one: HEADRACE_STATE=/some/dir headrace up"
            ) from e
        except PermissionError as e:
            raise StackError(
                f"{self.settings_file} belongs to another user. Run as that user, or use a state "
                "directory of your own: HEADRACE_STATE=/some/dir headrace up"
            ) from e
        except (ValueError, TypeError) as e:
            raise StackError(
                f"{self.settings_file} is damaged or from another version ({e}). Remove the "
                f"directory {self.path} to begin anew; its data is then lost."
            ) from e

    def save(self, settings: Settings) -> None:
        replace_file(self.settings_file, json.dumps(asdict(settings), indent=1) + "\n", mode=0o600)

    def delete(self) -> None:
        """Removes everything that this module's list names, and the directory if then empty."""
        for name in DIRECTORIES:
            shutil.rmtree(self.path / name, ignore_errors=True)
        for service in SERVICES:
            for name in (f"{service}.pid", f"{service}.log", f"{service}.log.1"):
                (self.path / name).unlink(missing_ok=True)
        ignore = self.path / ".gitignore"
        if ignore.exists() and ignore.read_text() == GITIGNORE:
            ignore.unlink()
        self.settings_file.unlink(missing_ok=True)
        self._lock_file.unlink()
        with suppress(OSError):  # something that is not ours is in it: it stays
            self.path.rmdir()

    @contextmanager
    def locked(self, say: Say, *, create: bool = False) -> Iterator[None]:
        """Exclusive for all processes; waits for the one that works on the stack right now. With
        `create` in a directory that is made, also anew when that one has removed it; else
        FileNotFoundError."""
        why = f"another headrace works on {self.path}"
        with locked(self._lock_file, say, why, self.create if create else None):
            yield


@contextmanager
def locked(
    file: Path, say: Say, why: str, create: Callable[[], None] | None = None
) -> Iterator[None]:
    """An flock on `file`: freed by the kernel even when the holder is killed. It is there, or made
    by `create`. StackError after `LOCK_PATIENCE_S`."""
    give_up_at = time.monotonic() + LOCK_PATIENCE_S
    told = False
    while True:
        if create is not None:
            create()
        with file.open("r+") as f:
            while not _flock(f):
                f.seek(0)
                holder = f.read().strip() or "unknown"
                if not told:
                    say(f"waiting: {why} (pid {holder})")
                    told = True
                if time.monotonic() > give_up_at:
                    raise StackError(
                        f"{why} (pid {holder}) since {LOCK_PATIENCE_S:.0f} s. "
                        "See what it does, end it if it hangs, and try again."
                    )
                time.sleep(0.05)
            if not _is_at(f, file):
                continue
            with suppress(OSError):  # only a hint: on a full disk `down` goes on without
                f.truncate(0)
                os.pwrite(f.fileno(), f"{os.getpid()}\n".encode(), 0)
            yield
            return


def _flock(f: IO[str]) -> bool:
    try:
        fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(f: IO[str], path: Path) -> bool:
    """Else `delete` removed it while we waited for it, and others lock what is there since."""
    try:
        return os.path.samestat(os.fstat(f.fileno()), path.stat())
    except FileNotFoundError:
        return False


def new_settings() -> Settings:
    kafka, controller, postgres = free_ports(3)
    return Settings(
        kafka_port=kafka,
        controller_port=controller,
        postgres_port=postgres,
        password=secrets.token_hex(16),
        cluster_id=base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("="),
    )


def replace_file(path: Path, text: str, mode: int = 0o644) -> None:
    """Writes the whole file or nothing, also when two processes do it at once."""
    temp = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(fd, "w") as f:
        f.write(text)
        f.flush()
        os.fsync(f.fileno())
    temp.replace(path)
