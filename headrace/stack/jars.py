"""Kafka's jars: pinned by coordinate and sha256, downloaded once, shared by all stacks.

Rules:
* `kafka-jars.txt` is the whole truth: `group:artifact:version sha256`, one line per jar. Nothing
  is resolved at run time. `python -m headrace.stack.pin <version>` writes it anew.
* A jar enters the cache only after its sha256 has been checked, by rename: an interrupted
  download leaves no broken file. One process downloads at a time; the others wait, then find it.
* Jars are checked again before every start of Kafka (45 MB, under 0.1 s), and a damaged one is
  fetched again. Downloads go through jgo's `MavenContext`, which knows the repository's address.
* All jars carry one fixed modification time: the JVM's start-up cache remembers it.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

import click

from .model import StackError
from .state import Say, cache_dir, locked

PINS_FILE = "kafka-jars.txt"
DOWNLOADS_AT_ONCE = 6
TRIES = 3
TIMEOUT_S = 30  # without a byte
MTIME_S = 1_700_000_000  # any constant

_LINE = re.compile(r"([\w.\-]+):([\w.\-]+):([\w.\-]+) ([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class Pin:
    """One jar: what it is called and what it must hash to."""

    group: str
    artifact: str
    version: str
    sha256: str

    @property
    def file(self) -> str:
        return f"{self.artifact}-{self.version}.jar"

    def __str__(self) -> str:
        return f"{self.group}:{self.artifact}:{self.version}"


def parse_pins(text: str) -> list[Pin]:
    """The pins in order. Blank lines and `#` comments are skipped; ValueError names a bad line."""
    pins: list[Pin] = []
    for number, line in enumerate(map(str.strip, text.splitlines()), 1):
        if not line or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise ValueError(f"line {number} is not 'group:artifact:version sha256': {line!r}")
        pins.append(Pin(*match.groups()))
    if len({p.file for p in pins}) < len(pins):
        raise ValueError("two pins have the same file name")
    return pins


@cache
def pins() -> tuple[Pin, ...]:
    """The checked-in pins."""
    return tuple(parse_pins(files(__package__).joinpath(PINS_FILE).read_text()))


def kafka_version() -> str:
    return next(p.version for p in pins() if p.artifact.startswith("kafka_"))


def jar_dir() -> Path:
    return cache_dir() / "kafka"


def present() -> bool:
    """Whether all jars are in the cache (by name only: this is for a quick look)."""
    return all((jar_dir() / p.file).exists() for p in pins())


def sha256(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def check(pin: Pin, path: Path) -> None:
    """StackError unless the file at `path` has the pinned checksum."""
    found = sha256(path)
    if found != pin.sha256:
        raise StackError(
            f"refused: {pin} does not have the pinned checksum.\n"
            f"  pinned     {pin.sha256}\n  downloaded {found}\n"
            "Somebody between here and the Maven repository (a proxy? a mirror?) changed it, or "
            f"headrace/stack/{PINS_FILE} is wrong. Nothing was installed."
        )


def ensure_jars(say: Say, *, progress: bool) -> list[Path]:
    """Paths of all jars, verified, in class path order; downloads what is missing. StackError
    when offline or when a checksum differs."""
    home = jar_dir()
    if _missing():
        try:
            home.mkdir(parents=True, exist_ok=True)
            lock = home / "lock"
            with locked(lock, say, f"another headrace fills {home}", lock.touch):
                _download_all(_missing(), home, progress)
        except OSError as e:
            raise StackError(
                f"cannot write Kafka's jars to {home}: {e}. Choose another place with "
                "HEADRACE_CACHE=/some/dir."
            ) from e
    return [home / p.file for p in pins()]


def _missing() -> list[Pin]:
    """Pins whose jar is not in the cache, or not as it should be."""
    home = jar_dir()
    return [p for p in pins() if not (f := home / p.file).exists() or sha256(f) != p.sha256]


def _download_all(missing: list[Pin], home: Path, progress: bool) -> None:
    for left_behind in home.glob("download-*"):  # by a download that was killed
        shutil.rmtree(left_behind)
    with (
        tempfile.TemporaryDirectory(prefix="download-", dir=home) as temp,
        _reporting(len(missing), progress) as advance,
        ThreadPoolExecutor(DOWNLOADS_AT_ONCE) as pool,
    ):
        jobs = [pool.submit(_download, pin, Path(temp), home) for pin in missing]
        try:
            for done in as_completed(jobs):
                done.result()
                advance()
        except BaseException:
            for job in jobs:
                job.cancel()
            raise


def _download(pin: Pin, temp: Path, home: Path) -> None:
    """Fetch into `temp`, check, rename into `home`."""
    import requests
    from jgo.maven import MavenContext, PythonResolver

    for attempt in range(1, TRIES + 1):
        context = MavenContext(PythonResolver(), repo_cache=temp / str(attempt), timeout=TIMEOUT_S)
        project = context.project(pin.group, pin.artifact)
        try:
            fetched: Path = project.at_version(pin.version).artifact().resolve()
            break
        except requests.RequestException as e:
            if attempt == TRIES:
                raise StackError(
                    f"Kafka's jars are not all in {home}, and the Maven repository cannot be "
                    f"reached ({type(e).__name__} for {pin}). Connect to the network once and run "
                    "`headrace up` again, or copy that directory from a machine that has it."
                ) from e
        except RuntimeError as e:
            raise StackError(f"the Maven repository does not have {pin}: {e}") from e
    check(pin, fetched)
    os.utime(fetched, (MTIME_S, MTIME_S))
    fetched.replace(home / pin.file)


@contextmanager
def _reporting(total: int, progress: bool) -> Iterator[Callable[[], None]]:
    """A bar on a terminal, a few plain lines elsewhere, nothing when `progress` is off."""
    title = f"downloading Apache Kafka {kafka_version()}"
    if progress and sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, TextColumn("jars"), console=Console(stderr=True)) as bar:
            task = bar.add_task(title, total=total)
            yield lambda: bar.advance(task)
        return
    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        if progress and (done % 15 == 0 or done == total):
            click.echo(f"{title}: {done} of {total} jars", err=True)

    yield count
