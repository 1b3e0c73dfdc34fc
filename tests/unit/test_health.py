"""/healthz answers whoever else is connected, and serving ends at once whoever is."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest

from consumers.errors import Systemic
from consumers.health import serve
from consumers.run import Runner


def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        found: int = server.getsockname()[1]
        return found


def test_a_client_that_never_asks_keeps_neither_probes_nor_the_exit() -> None:
    runner: Runner = SimpleNamespace(problem=None, away_s=0.0)  # type: ignore[assignment] # enough of one
    address = f"127.0.0.1:{port()}"
    host, _, number = address.partition(":")
    with serve(address, runner):
        silent = socket.create_connection((host, int(number)))
        try:
            with urllib.request.urlopen(f"http://{address}/healthz", timeout=5) as answer:
                assert answer.read() == b"ok\n"
        except OSError:
            silent.close()
            raise
        began = time.monotonic()
    assert time.monotonic() - began < 5
    silent.close()


@pytest.mark.parametrize("address", ["127.0.0.1:99999", "127.0.0.1:", "9464x"])
def test_an_address_without_a_port_is_refused_in_a_sentence(address: str) -> None:
    runner: Runner = SimpleNamespace()  # type: ignore[assignment] # never asked
    with pytest.raises(Systemic, match="must be HOST:PORT"), serve(address, runner):
        pass


# -- while there is no Kafka -----------------------------------------------------------------------

CONFIG = """
[trace.events."purchase product"]
vendors = ["heap"]
[vendors.heap]
app_id_env = "HEAP"
"""
COMMANDS = [["insert", "--to", "postgres://me@127.0.0.1:1/d"], ["forward"]]


def started(tmp_path: Path, *command: str) -> subprocess.Popen[str]:
    """A process whose Kafka does not answer."""
    (tmp_path / "headrace.toml").write_text(CONFIG)
    return subprocess.Popen(
        [sys.executable, "-c", "from headrace.cli import main; main()", *command],
        cwd=tmp_path, env=os.environ | {"HEADRACE_KAFKA": "127.0.0.1:1", "HEAP": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def asked(url: str) -> tuple[int, str]:
    """What is answered, once somebody listens."""
    until = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c[0])
def test_a_process_that_waits_for_kafka_is_alive_and_not_ready(
    tmp_path: Path, command: list[str]
) -> None:
    """Else its probe would kill it again and again for as long as Kafka is away."""
    address = f"127.0.0.1:{port()}"
    with started(tmp_path, *command, "--metrics", address) as process:
        try:
            assert asked(f"http://{address}/healthz") == (200, "ok\n")
            assert asked(f"http://{address}/readyz") == (503, "waiting for Kafka\n")
            status, samples = asked(f"http://{address}/metrics")
            assert status == 200
            assert re.search(r"^headrace_destination_away_seconds 0\.0$", samples, re.MULTILINE)
            process.send_signal(signal.SIGTERM)
            assert process.wait(15) == 0
        finally:
            process.kill()


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c[0])
def test_a_wrong_address_is_said_at_once_whether_kafka_is_there_or_not(
    tmp_path: Path, command: list[str]
) -> None:
    with started(tmp_path, *command, "--metrics", "9464x") as process:
        try:
            _, said = process.communicate(timeout=30)
        finally:
            process.kill()
    assert said == "headrace: --metrics '9464x' must be HOST:PORT, e.g. 127.0.0.1:9464\n"
    assert process.returncode == 1
