"""The process around the workers: what is checked before anything listens, and the server itself.

granian serves: HTTP/1.1 and HTTP/2, TLS, limits on headers and connections, in Rust threads that
call Worker. One parent process, see parent.py, and `workers` processes that share the port
(SO_REUSEPORT). A worker that dies is started again, with the spool directory that it leaves.
SIGTERM stops the workers, each as worker.py says, and then the parent.
"""

from __future__ import annotations

import errno
import ipaddress
import logging
import math
import resource
import socket
import ssl
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from ingest.collector.keys import Keys
from ingest.collector.node import folder_of
from ingest.collector.settings import CollectError, CollectSettings, host_and_port
from ingest.collector.unix_file import SocketFile
from ingest.settings import SettingError, Settings, for_publisher, refused
from ingest.spool.errors import SpoolInUse
from ingest.spool.lock import Lock
from ingest.spool.reader import DATABASE
from ingest.spool.transactions import FRAMING_BYTES, Transactions

__all__ = ["Address", "check", "serve"]

_log = logging.getLogger("headrace.collect")

Address = tuple[str, int]

# A process that has just been told to stop, or was killed, may hold its spool for so long.
_LOCK_WAIT_S = 3.0
_HEADER_BYTES = 64 * 1024
# Files of a worker beside its clients' connections: 50 when it is idle, one for each broker, and
# 128 of the unix socket.
_OWN_FILES = 384
# Beyond requests and relay: closing the spool, leaving librdkafka.
_KILL_AFTER_S = 10


def check(settings: CollectSettings, kafka: Settings | None = None) -> Address:
    """Whether a collector can run with these settings here; the address to listen at.

    `kafka` is librdkafka's settings. Raises CollectError, KeyFileError, SettingError, SpoolError.
    """
    _check_kafka(kafka or {})
    _check_size(settings.max_record_bytes, kafka or {})
    if settings.spool is None:
        raise CollectError(
            "no directory for the spool: give --spool DIR, or spool under [collect] in "
            "headrace.toml"
        )
    host, port = host_and_port(settings.listen, "listen")
    address = _resolved(host, port, "listen")
    if settings.keys is not None:
        Keys(settings.keys)
    elif not ipaddress.ip_address(address[0]).is_loopback:
        raise CollectError(
            f"without keys only this machine may send: listen at 127.0.0.1, not at {host}, or make "
            "a file of keys with `headrace keys add` and give it with --keys"
        )
    if settings.tls_cert is not None and settings.tls_key is not None:
        _check_tls(settings.tls_cert, settings.tls_key)
    if (settings.spool / DATABASE).exists():
        raise CollectError(
            f"{settings.spool} is a spool itself; a collector keeps one for each worker in its "
            "directory: give another one"
        )
    _check_spools(settings.spool, settings.workers)
    if settings.metrics is not None:
        host, port = host_and_port(settings.metrics, "metrics")
        for worker in range(settings.workers if port else 0):
            _free(_resolved(host, port + worker, "metrics"), "metrics")
    if settings.socket is not None:
        made = SocketFile(settings.socket)
        made.socket.close()
        made.remove()
    return _free(address)


def serve(
    settings: CollectSettings,
    address: Address,
    load: Callable[[Callable[[], None]], Callable[..., Any]],
    on_up: Callable[[], object] = lambda: None,
) -> None:
    """Serve until SIGTERM or Ctrl-C.

    `load` makes the application, in each worker; what it is given is to be called there once the
    application has started. `on_up` is called here when all have, and the port answers.
    Exits with code 1 when a worker has ended before that.
    """
    from granian.constants import HTTPModes, Interfaces, Loops, SSLProtocols
    from granian.http import HTTP1Settings, HTTP2Settings
    from granian.log import LogLevels

    from ingest.collector.parent import Loader, Parent, Up

    host, port = address
    up = Up()
    server = Parent(
        "headrace",
        up=up,
        on_up=on_up,
        address=host,
        port=port,
        interface=Interfaces.ASGI,
        workers=settings.workers,
        loop=Loops.uvloop,
        http=HTTPModes.auto if settings.speaks_http2 else HTTPModes.http1,
        websockets=False,
        backlog=1024,
        backpressure=_room(settings.max_connections),
        http1_settings=HTTP1Settings(
            header_read_timeout=math.ceil(settings.header_timeout_s * 1000),
            max_buffer_size=_HEADER_BYTES,
        ),
        http2_settings=HTTP2Settings(
            max_headers_size=_HEADER_BYTES,
            # A PING as often, and so long for its answer: in seconds, one at least.
            keep_alive_interval=math.ceil(settings.header_timeout_s * 1000),
            keep_alive_timeout=math.ceil(settings.header_timeout_s),
        ),
        log_dictconfig=_LOGS,
        log_level=LogLevels.warning,
        ssl_cert=settings.tls_cert,
        ssl_key=settings.tls_key,
        ssl_protocol_min=SSLProtocols.tls12,
        workers_kill_timeout=math.ceil(2 * settings.stop_timeout_s) + _KILL_AFTER_S,
    )
    server.serve(target_loader=Loader(partial(load, up.tell)), wrap_loader=False)


# Its lines go where all others go; what it says of its own life is of no interest.
_LOGS: dict[str, Any] = {
    "formatters": {},
    "handlers": {},
    "loggers": {"_granian": {"propagate": True}},
}


def _resolved(host: str, port: int, option: str) -> Address:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise CollectError(f"{option}: {host} is no address of this machine ({error})") from error
    return str(found[0][4][0]), port


def _free(address: Address, option: str = "listen") -> Address:
    """The address, a free port for 0. Raises CollectError where it is taken.

    The server's sockets share a port, and so would two collectors, by mistake and without a word:
    half of the requests would go to the other one. This one does not share.
    """
    host, port = address
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    until = time.monotonic() + _LOCK_WAIT_S
    while True:
        try:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((host, port))
                return host, probe.getsockname()[1]
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() > until:
                raise CollectError(
                    f"can't listen at {host}:{port}: {error.strerror}; stop what is there, or give "
                    f"another --{option}"
                ) from error
        time.sleep(0.05)


def _room(connections: int) -> int:
    """How many connections a worker may have open, of so many: some files are for itself.

    With none left nothing can be opened, neither by the spool nor to look for silent connections.
    granian has raised the limit as far as it goes, when it was imported.
    """
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + _OWN_FILES
    if most == resource.RLIM_INFINITY or most >= wanted:
        return connections
    room = min(connections, max(most - _OWN_FILES, most // 4))
    _log.warning(
        "a worker may open %d files, so it takes %d connections, not max_connections = %d: raise "
        "the limit (ulimit -n, LimitNOFILE=) to %d", most, room, connections, wanted,
    )  # fmt: skip
    return room


def _check_kafka(kafka: Settings) -> None:
    """What librdkafka refuses would be refused to the relay too, when records are accepted already.

    Nothing is connected to, and nothing is left of it: workers are forked. Raises SettingError.
    """
    own = for_publisher(str(kafka.get("bootstrap.servers", "")), kafka)
    try:
        AdminClient({"log_level": 2, **kafka})
        Transactions(own, "check")._make_producer()
    except KafkaException as error:
        raise refused(error) from error
    except SettingError:
        raise
    except ValueError as error:
        raise SettingError(
            f"message.max.bytes and batch.size under [kafka] must be whole numbers: {error}"
        ) from error


def _check_size(record_bytes: int, kafka: Settings) -> None:
    """What librdkafka does not take is never sent, and nothing behind it."""
    most = int(for_publisher("", kafka)["message.max.bytes"])
    if record_bytes + FRAMING_BYTES > most:
        raise CollectError(
            f"max_record_bytes = {record_bytes:,} needs {FRAMING_BYTES:,} bytes more in Kafka's "
            f'message.max.bytes, which is {most:,}: set "message.max.bytes" under [kafka] and '
            "max.message.bytes of the topics higher, or max_record_bytes lower"
        )


def _check_tls(cert: Path, key: Path) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key)
    except (OSError, ssl.SSLError) as error:
        why = error.strerror or error.args[0]
        raise CollectError(f"TLS with {cert} and {key} is not possible: {why}") from error


def _check_spools(spool: Path, workers: int) -> None:
    """Whether each is free. Raises SpoolInUse; a worker would say the same, but later."""
    for worker in range(workers):
        until = time.monotonic() + _LOCK_WAIT_S
        while True:
            try:
                Lock(folder_of(spool, worker)).release()
            except SpoolInUse:
                if time.monotonic() > until:
                    raise
                time.sleep(0.05)
            else:
                break
