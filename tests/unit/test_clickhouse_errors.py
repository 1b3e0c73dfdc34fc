"""What is said of a ClickHouse that can't be asked."""

from __future__ import annotations

import socket
import threading

import pytest

from consumers.errors import Unavailable
from consumers.sinks.clickhouse_client import connect


@pytest.mark.parametrize(
    ("hangs_up", "trouble"),
    [(False, "Connection refused"), (True, "Remote end closed connection without response")],
)
def test_a_server_that_does_not_answer_is_named_with_what_to_do_and_nothing_else(
    hangs_up: bool, trouble: str
) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]

        def hang_up() -> None:
            while True:
                try:
                    caller, _ = server.accept()
                except OSError:
                    return
                with caller:
                    caller.recv(65536)

        if hangs_up:
            server.listen()
            threading.Thread(target=hang_up, daemon=True).start()
        with pytest.raises(Unavailable) as raised:
            connect(f"clickhouse://me:secret@127.0.0.1:{port}/logs")
        if hangs_up:
            server.shutdown(socket.SHUT_RDWR)
    assert str(raised.value) == (
        f"ClickHouse at 127.0.0.1:{port}/logs does not answer ({trouble}). Is it running, and is "
        "that the address of its HTTP interface?"
    )
