"""`headrace collect`: take logs and events over HTTP, safe on disk before the answer."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click

from headrace.cli.options import config_options

__all__ = ["collect"]

_PATH = click.Path(path_type=Path)


@click.command()
@click.option(
    "--spool", type=_PATH, metavar="DIR", help="Where records are kept until Kafka has them."
)
@click.option("--listen", metavar="HOST:PORT", help="[default: 127.0.0.1:8080; port 0: a free one]")
@click.option(
    "--keys", type=_PATH, metavar="FILE", help="Who may send; made by `headrace keys add`."
)
@click.option(
    "--workers", type=click.IntRange(1, 64), help="Processes that share the port. [default: 1]"
)
@click.option(
    "--socket", type=_PATH, metavar="PATH", help="A unix socket for services on this host."
)
@click.option("--tls-cert", type=_PATH, metavar="FILE", help="Certificate chain, PEM.")
@click.option("--tls-key", type=_PATH, metavar="FILE", help="Its private key, PEM.")
@click.option(
    "--metrics",
    metavar="HOST:PORT",
    help="Serve /metrics here, of worker n at PORT + n. [default: at --listen, of one worker, for "
    "this machine]",
)
@config_options
def collect(config_path: Path | None, kafka: str | None, **given: Any) -> None:
    """Take logs and events over HTTP; each is safe on disk before its sender hears so.

    \b
    POST /v1/logs/STREAM     logs: a JSON object, an array, NDJSON, delimited protobuf
    POST /v1/events          product events (sparrow.js)
    POST /v1/track …         Segment's API: its SDKs work unchanged, with this as their host
    GET  /healthz /readyz /metrics /openapi.json /sparrow.js

    An answer of 202 (200 at Segment's paths) means that the records are on disk, synced; with
    ?ack=kafka, that they are in Kafka. A relay sends them to Kafka, exactly once across crashes of
    this process, and waits for as long as Kafka is away. When the disk is full or the spool at its
    limit the answer is 503 with Retry-After. Records that are refused are named, with the reason.

    Without --keys it serves only this machine. Each worker keeps a spool of its own, DIR/0, DIR/1,
    and so on: keep the directory, it is where what was promised lies.

    It says "listening at" once all workers answer, and starts again a worker that dies.
    SIGTERM and Ctrl-C answer what is under way, give the relay a few seconds, and end with exit
    code 0; what is left is sent at the next start. The exit code is 1 when a person has to act.
    Limits and times stand under [collect] in headrace.toml, see docs/collecting.md.

    \b
    Examples:
      headrace collect --spool /var/lib/headrace
      headrace collect --spool spool --listen 0.0.0.0:8080 --keys keys.json
      headrace collect --spool spool --workers 4 --metrics 127.0.0.1:9464
      headrace collect --spool spool --socket /run/headrace.sock
    """
    from headrace.logs import configure
    from ingest.collector.server import check, serve

    configure()
    config = _config(config_path, kafka)
    settings = config.collect.with_options(**given)
    host, port = check(settings, config.kafka)
    shown = f"[{host}]" if ":" in host else host
    scheme = "https" if settings.tls_cert is not None else "http"
    who = "whoever has a key" if settings.keys is not None else "this machine only, without keys"

    def on_up() -> None:
        # Whoever started it may not listen, or have no room for a line; that stops nobody.
        with contextlib.suppress(OSError):
            click.echo(f"listening at {scheme}://{shown}:{port} for {who}; spool {settings.spool}")

    serve(settings, (host, port), partial(_load, config_path, kafka, given), on_up)
    sys.exit(0)


def _config(config_path: Path | None, kafka: str | None) -> Any:
    from headrace.config import load

    return load(config_path, kafka=kafka)


def _load(
    config_path: Path | None, kafka: str | None, given: dict[str, Any], on_up: Callable[[], None]
) -> Any:
    """The application, in a worker; ends it with one sentence where that can't be."""
    from headrace.cli.errors import expected, said
    from headrace.logs import configure
    from ingest.collector.worker import Worker

    configure()
    try:
        config = _config(config_path, kafka)
        settings = config.collect.with_options(**given)
        return Worker(settings, config.kafka, config.streams, on_up)
    except expected() as error:
        click.echo(f"headrace: {said(error)}", err=True)
        sys.exit(1)
