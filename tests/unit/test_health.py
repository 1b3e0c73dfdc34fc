"""/healthz answers whoever else is connected, and serving ends at once whoever is."""

from __future__ import annotations

import socket
import time
import urllib.request
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
