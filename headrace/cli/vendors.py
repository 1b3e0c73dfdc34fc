"""`headrace vendors`: stand-ins for the analytics vendors, on this machine."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

__all__ = ["vendors"]


@click.group()
def vendors() -> None:
    """Stand-ins for the analytics vendors, to try things against.

    \b
    Example:
      headrace vendors serve
    """


@vendors.command()
@click.option(
    "--listen",
    metavar="HOST:PORT",
    default="127.0.0.1:0",
    show_default=True,
    help="An address of this machine; port 0: a free one.",
)
@click.option(
    "--faults",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="FILE",
    help="How they are broken from the start: TOML, a table for each vendor.",
)
@click.option("--tied", is_flag=True, hidden=True, help="End when standard input does.")
def serve(listen: str, faults: Path | None, tied: bool) -> None:
    """Serve six vendors that take, refuse, forget and lose events as the real ones do.

    \b
    /ga4/mp/collect  /ga4/debug/mp/collect     Google Analytics 4
    /amplitude/2/httpapi  /amplitude/batch     Amplitude
    /heap/api/track                            Heap
    /mixpanel/import  /mixpanel/track          Mixpanel
    /posthog/batch/                            PostHog
    /webhook                                   a receiver of signed batches

    Any key is taken; the webhook's secret is headrace-stand-in. A page at / shows what each one
    stored and breaks it: down, slow, 429, 500 with or without taking, a cut connection, events
    lost in silence, a revoked key. /stored/VENDOR and /faults/VENDOR say and take the same as
    JSON. All of it is in memory and ends with the process. See docs/stand-in-vendors.md.

    \b
    Examples:
      headrace vendors serve
      headrace vendors serve --listen 127.0.0.1:9010 --faults broken.toml
    """
    import granian  # noqa: F401 - here, so that its absence is said at once

    from headrace.vendors.server import VendorsError, read_faults, run
    from ingest.collector.settings import host_and_port

    def on_up(url: str) -> None:
        click.echo(f"listening at {url} for this machine only; its page is {url}/")
        sys.stdout.flush()

    # What is no address is no address of another machine either.
    host_and_port(listen, "--listen")
    try:
        run(listen, faults=read_faults(faults) if faults else None, on_up=on_up, tied=tied)
    except VendorsError as error:
        raise click.ClickException(str(error)) from error
    # A thread of the server may still call into the interpreter while that takes itself apart, and
    # aborts the process then: one stop in twenty. There is nothing left to be done.
    sys.stdout.flush()
    os._exit(0)
