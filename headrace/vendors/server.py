"""The stand-ins as a process: served by granian on loopback, and gone at the end.

One process, for what is stored is in its memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import os
import signal
import socket
import sys
import threading
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from headrace.vendors.app import App
from headrace.vendors.faults import FaultError, Faults

__all__ = ["VendorsError", "read_faults", "run"]


class VendorsError(Exception):
    """The stand-ins can't be started; the text says why, and what to do."""


def read_faults(path: Path) -> dict[str, Faults]:
    """A TOML file with a table for each vendor that is to be broken. Raises VendorsError."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise VendorsError(f"{path} can't be read: {error}") from error
    known = App().vendors.places
    faults = {}
    for vendor, table in tables.items():
        if vendor not in known or not isinstance(table, dict):
            raise VendorsError(f"{path}: [{vendor}] is no vendor; there are: {', '.join(known)}")
        try:
            faults[vendor] = Faults.read(table)
        except FaultError as error:
            raise VendorsError(f"{path}: [{vendor}] {error}") from error
    return faults


def run(
    listen: str,
    *,
    faults: Mapping[str, Faults] | None = None,
    on_up: Callable[[str], object] = lambda url: None,
    tied: bool = False,
) -> None:
    """Serve until SIGTERM or Ctrl-C; `tied`, also until standard input ends.

    `on_up` is called with the URL when the port answers. Raises VendorsError.
    """
    host, port = _loopback(listen)
    with _held(host, port) as holder:
        asyncio.run(_serve(App(faults=faults), holder.getsockname()[:2], on_up, tied))


def _loopback(listen: str) -> tuple[str, int]:
    host, _, port = listen.rpartition(":")
    host = host.strip("[]")
    try:
        loopback = ipaddress.ip_address(host).is_loopback and 0 <= int(port) <= 65535
    except ValueError:
        loopback = False
    if not loopback:
        raise VendorsError(
            f"--listen {listen}: the stand-ins take anything from anybody, so only an address of "
            "this machine will do, as 127.0.0.1:9000"
        )
    return host, int(port)


def _held(host: str, port: int) -> socket.socket:
    """A socket at the port that does not listen, so that nobody else is given it meanwhile.

    The server shares the port with it, and would share it with other stand-ins too: so a port that
    was asked for is first tried alone.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        if port:
            with socket.socket(family, socket.SOCK_STREAM) as alone:
                alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                alone.bind((host, port))
        holder = socket.socket(family, socket.SOCK_STREAM)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind((host, port))
    except OSError as error:
        why = "it is taken" if error.errno == errno.EADDRINUSE else error.strerror
        raise VendorsError(
            f"can't listen at {host}:{port}: {why}; give another --listen"
        ) from error
    return holder


async def _serve(
    app: App, address: tuple[str, int], on_up: Callable[[str], object], tied: bool
) -> None:
    from granian.constants import HTTPModes, Interfaces
    from granian.http import HTTP1Settings
    from granian.log import LogLevels
    from granian.server.embed import Server

    host, port = address
    server: Any = Server(
        app, address=host, port=port, interface=Interfaces.ASGINL, websockets=False,
        http=HTTPModes.http1, backlog=1024, log_level=LogLevels.error,
        http1_settings=HTTP1Settings(header_read_timeout=30_000),
    )  # fmt: skip
    loop = asyncio.get_running_loop()

    def stop() -> None:
        app.stop()
        server.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    if tied:
        threading.Thread(target=_until_input_ends, args=(loop, stop), daemon=True).start()
    serving = loop.create_task(server.serve())
    answers = loop.create_task(_until_it_answers(host, port))
    await asyncio.wait({serving, answers}, return_when=asyncio.FIRST_COMPLETED)
    if answers.done():
        shown = f"[{host}]" if ":" in host else host
        on_up(f"http://{shown}:{port}")
    else:
        answers.cancel()
    await serving


def _until_input_ends(loop: asyncio.AbstractEventLoop, stop: Callable[[], None]) -> None:
    """In a thread: whoever started this has gone."""
    while os.read(sys.stdin.fileno(), 4096):
        pass
    with contextlib.suppress(RuntimeError):  # the loop has ended by itself
        loop.call_soon_threadsafe(stop)


async def _until_it_answers(host: str, port: int) -> None:
    while True:
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection(host, port)
            writer.close()
            return
        await asyncio.sleep(0.005)
