"""The configuration, and the spools of the collector that it names."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from headrace.config import Config, start_the_stack
from headrace.doctor.check import Check, fail, ok, warn
from headrace.words import counted, lasting
from ingest.collector.settings import CollectSettings, host_and_port, nearby
from ingest.spool.care import Glance, glance
from ingest.spool.errors import SpoolClosed, SpoolError
from ingest.spool.reader import DATABASE

__all__ = ["Disk", "configuration", "judge_spool", "spools"]

# What waits for longer while a collector runs does not get through, in seconds.
_STALLED_S = 60.0
_FULL = 0.8
_LITTLE_BYTES, _NONE_BYTES = 2**30, 100 * 2**20


def configuration(config: Config) -> Check:
    """What was read. One that can't be is said by the command: nothing else can be asked then.

    Raises StackError where the local stack is another user's.
    """
    name = "configuration"
    where = str(config.file) if config.file.exists() else f"no {config.file} here"
    if "bootstrap.servers" not in config.kafka:
        return fail(
            name, f"{where}: no Kafka is known: {start_the_stack(config.state)}",
            "headrace up    # or: export HEADRACE_KAFKA=HOST:PORT",
            "yes, what runs goes on with what it knows",
        )  # fmt: skip
    vendors = f", {counted(len(config.vendors), 'vendor')}" if config.vendors else ""
    return ok(name, f"{where}: {counted(len(config.streams), 'stream')}{vendors}")


@dataclass(frozen=True, slots=True)
class Disk:
    """Of the file system that a spool is on, in bytes."""

    free: int
    limit: int


def spools(config: Config) -> list[Check]:
    """Every spool in the directory of [collect], of workers and of those there were.

    That none is named is no warning: not every machine has a collector.
    """
    place = config.collect.spool
    if place is None:
        text = "none is named ([collect] spool in headrace.toml)"
        return [ok("spool", f"{text}; one that is given with --spool is not looked at")]
    try:
        folders = sorted(folder for folder in place.iterdir() if _is_one(folder))
    except (FileNotFoundError, NotADirectoryError):
        folders = []
    except PermissionError as error:
        return [_closed("spool", f"{place} can't be looked into: {error.strerror}")]
    if not folders:
        return [ok("spool", f"no collector has begun in {place} on this machine")]
    return [_spool(config.collect, folder) for folder in folders]


def _is_one(folder: Path) -> bool:
    """Whether it is a spool, or may be one: a worker's is closed to others than its user."""
    try:
        (folder / DATABASE).stat()
    except PermissionError:
        return folder.name.isdigit()
    except OSError:
        return False
    return True


def _closed(name: str, text: str) -> Check:
    """What waits there is not known to this user, and may be all that there is of it."""
    return fail(
        name, text, "headrace doctor    # as the user that runs the collector, or as root",
        "not known; leave the directory as it is, it holds what was acknowledged",
    )  # fmt: skip


def _spool(settings: CollectSettings, folder: Path) -> Check:
    name = f"spool {folder.name}"
    try:
        found = glance(folder)
        disk = Disk(shutil.disk_usage(folder).free, settings.max_spool_bytes)
    except SpoolClosed as error:
        return _closed(name, str(error))
    except (SpoolError, OSError) as error:
        return fail(
            name, f"{error}", f"headrace spool fsck {quote(str(folder))}",
            "not known; leave the directory as it is, it holds what was acknowledged",
        )  # fmt: skip
    number = int(folder.name) if folder.name.isdigit() else settings.workers
    if number >= settings.workers and found.user is None and not found.waiting:
        # Of a worker that there is no more: `headrace spool drain` has sent what it had.
        return ok(name, "nothing waits, and no worker of [collect] uses it any more")
    host, port = host_and_port(settings.listen, "listen")
    near = nearby(host)
    where = f"[{near}]:{port}" if ":" in near else f"{near}:{port}"
    commands = {
        "send": "headrace collect" if number < settings.workers
        else f"headrace spool drain {quote(str(folder))}",
        # Without a look at the certificate, which names another host than the one listened at.
        "ask": f"curl -s http://{where}/readyz" if settings.tls_cert is None
        else f"curl -sk https://{where}/readyz",
        "disk": f"df -h {quote(str(folder))}",
    }  # fmt: skip
    return judge_spool(name, found, disk, time.time(), commands)


def judge_spool(name: str, found: Glance, disk: Disk, now_s: float, do: Mapping[str, str]) -> Check:
    """The worst that is to be said of one spool; `do` are the commands for what it names."""
    return next(_worst_first(name, found, disk, now_s, do))


def _worst_first(
    name: str, found: Glance, disk: Disk, now_s: float, do: Mapping[str, str]
) -> Iterator[Check]:
    age_s = 0.0 if found.oldest_us is None else now_s - found.oldest_us / 1e6
    waits = "nothing waits"
    if found.waiting:
        waits = f"up to {counted(found.waiting, 'record')} wait for Kafka, since {lasting(age_s)}"
    used = found.state.bytes / disk.limit
    room = f"{used:.0%} of its limit used, {disk.free / 2**30:.1f} GiB of the disk free"
    held = "yes, what was acknowledged is on this disk, and goes to Kafka once"
    refused = f"{held}; new records are refused with 503 meanwhile, so their senders keep them"
    if disk.free < _NONE_BYTES:
        yield fail(name, f"the disk is full; {waits}, {room}", do["disk"], refused)
    if used >= 1:
        yield fail(name, f"it is full (max_spool_bytes); {waits}, {room}", do["ask"], refused)
    if found.user is None and found.waiting:
        yield fail(name, f"{waits}, and no collector runs that would send it", do["send"], held)
    if found.user is None:
        yield warn(name, f"{waits}, and no collector runs", do["send"], held)
    if found.waiting and age_s > _STALLED_S:
        yield warn(name, f"{waits}: Kafka does not take them; {room}", do["ask"], held)
    if used >= _FULL:
        yield warn(name, f"little of max_spool_bytes is left: {room}; {waits}", do["ask"], held)
    if disk.free < _LITTLE_BYTES:
        yield warn(name, f"little room is left on the disk: {room}; {waits}", do["disk"], held)
    yield ok(name, f"{waits}; {room}")
