"""`headrace up`, `down` and `status`: the local stack from the command line."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ingest.extras import missing

if TYPE_CHECKING:
    from headrace.stack import Stack, Status

__all__ = ["down", "status", "up"]

_state_dir = click.option(
    "--state-dir",
    type=click.Path(file_okay=False, path_type=Path),
    envvar="HEADRACE_STATE",
    show_envvar=True,
    default=".headrace",
    show_default=True,
    help="Where data, logs, ports and the password live.",
)


def _stack(state_dir: Path, kafka_port: int = 0, postgres_port: int = 0) -> Stack:
    try:
        from headrace.stack import Stack
    except ModuleNotFoundError as e:
        raise click.ClickException(missing(e.name, "local")) from e
    return Stack(state_dir, kafka_port=kafka_port, postgres_port=postgres_port)


@click.command()
@_state_dir
@click.option("--kafka-port", type=click.IntRange(1024, 65535), help="Instead of a free one.")
@click.option("--postgres-port", type=click.IntRange(1024, 65535), help="Instead of a free one.")
@click.option("-q", "--quiet", is_flag=True, help="No progress, only the endpoints.")
def up(state_dir: Path, kafka_port: int | None, postgres_port: int | None, quiet: bool) -> None:
    """Start the local stack: Kafka, PostgreSQL, and a directory for chDB.

    Real servers, on loopback only, that stay up after this command. A stack that runs is left as
    it is; one that crashed or was killed is recovered with its data. Ports are chosen at the first
    start and remembered. Other commands find the stack in .headrace or HEADRACE_STATE by
    themselves; from elsewhere, with what this one prints.

    \b
    The first start on a machine downloads Kafka (45 MB) and prepares it: half a minute.
    Later starts take 2 to 3 seconds.

    \b
    Examples:
      headrace up
      eval "$(headrace up --quiet)"                 # HEADRACE_KAFKA, _POSTGRES, _CHDB
      headrace up --kafka-port 9092 --postgres-port 5432
      KAFKA_HEAP=1g headrace up                     # a larger heap for Kafka

    \b
    Environment:
      HEADRACE_STATE   the state directory
      HEADRACE_CACHE   where Kafka's jars are kept for all stacks of this user
      KAFKA_HEAP       heap of Kafka's JVM, 512m unless set
    """
    if kafka_port is not None and kafka_port == postgres_port:
        raise click.UsageError(f"--kafka-port and --postgres-port are both {kafka_port}")
    endpoints = _stack(state_dir, kafka_port or 0, postgres_port or 0).up(progress=not quiet)
    # For eval: a directory may have a space in its name, or $(…).
    for name, value in (("KAFKA", endpoints.kafka), ("POSTGRES", endpoints.postgres),
                        ("CHDB", endpoints.chdb)):  # fmt: skip
        click.echo(f"export HEADRACE_{name}={shlex.quote(str(value))}")
    if not quiet:
        click.echo(
            f"\n# look inside:  {_psql()} {endpoints.postgres}"
            f"\n# end it:       headrace down{_where(state_dir)}"
        )


def _where(state_dir: Path) -> str:
    """The option for a directory that a command would not find by itself."""
    from headrace.stack.state import default_state_dir

    if state_dir == default_state_dir():
        return ""
    return f" --state-dir {shlex.quote(str(state_dir))}"


def _psql() -> str:
    """The system's psql, else the one that came with the server."""
    from headrace.stack.postgres import bin_dir

    return "psql" if shutil.which("psql") else str(bin_dir() / "psql")


@click.command()
@_state_dir
@click.option("--delete", is_flag=True, help="Also remove all data, logs and settings.")
def down(state_dir: Path, delete: bool) -> None:
    """Stop the local stack cleanly; its data stays for the next `headrace up`.

    Only processes that this stack started are signalled. With --delete the state directory is
    removed too, as far as the stack wrote it: a file of yours in it stays.

    \b
    Examples:
      headrace down
      headrace down --delete
    """
    stack = _stack(state_dir)
    if delete:
        stack.delete()
    else:
        stack.down()


@click.command()
@_state_dir
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
@click.pass_context
def status(ctx: click.Context, state_dir: Path, as_json: bool) -> None:
    """Show what of the local stack is running.

    The exit code is 0 only if both servers run. A state is one of: running, stopped, crashed
    (gone without a `headrace down`), not installed.

    \b
    Examples:
      headrace status
      headrace status --json | jq -r .kafka.state
      headrace status >/dev/null || headrace up
    """
    found = _stack(state_dir).status()
    if as_json:
        click.echo(json.dumps(asdict(found), default=str, indent=2))
    else:
        _print_table(found)
    ctx.exit(0 if found.all_running else 1)


def _print_table(found: Status) -> None:
    from rich.console import Console
    from rich.table import Table

    colours = {"running": "green", "crashed": "red", "not installed": "red", "stopped": "yellow"}
    table = Table(title=f"local stack in {found.state_dir}", title_justify="left")
    for column in ("service", "state", "version", "pid", "port", "up"):
        table.add_column(column)
    for s in found.services:
        up_for = "" if s.uptime_s is None else _duration(s.uptime_s)
        state = f"[{colours[s.state]}]{s.state}[/]"
        cells = (s.name, state, s.version or "", str(s.pid or ""), str(s.port or ""), up_for)
        table.add_row(*cells)
    console = Console(file=sys.stdout, highlight=False)
    console.print(table)
    for s in found.services:
        if s.note:
            console.print(f"{s.name}: {s.note}", markup=False)


def _duration(seconds: float) -> str:
    minutes, s = divmod(int(seconds), 60)
    hours, m = divmod(minutes, 60)
    days, h = divmod(hours, 24)
    if days:
        return f"{days}d {h}h"
    return f"{h}h {m}m" if h else f"{m}m {s}s" if m else f"{s}s"
