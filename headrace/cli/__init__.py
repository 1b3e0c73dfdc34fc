"""The command line: one module a family of commands, loaded when it is asked for.

Loading lazily keeps `headrace --help` at a tenth of a second although some commands bring Kafka,
Arrow or a database engine. Errors that are meant for the operator end in one sentence on stderr and
exit code 1 (2 for a wrong call), as does an extra that is not installed; anything else is a bug and
keeps its traceback.
"""

from __future__ import annotations

import importlib
import os
import sys

import click

__all__ = ["main"]

# command -> (module, one line for the overview)
_COMMANDS = {
    "up": ("stack", "Start the local stack: Kafka, PostgreSQL, a place for chDB."),
    "down": ("stack", "Stop the local stack."),
    "status": ("stack", "Show what of the local stack is running."),
    "schema": ("schema", "Print the SQL of a stream's table."),
    "migrate": ("schema", "Create the topics and tables that are missing."),
    "publish": ("publish", "Publish JSON lines or CSV to a stream."),
    "simulate": ("simulate", "Make up a fleet of devices and publish its logs."),
    "insert": ("insert", "Land streams in PostgreSQL, TimescaleDB or ClickHouse, exactly once."),
    "forward": ("forward", "Send product events to the analytics vendors, a receipt for each."),
    "replay": ("replay", "Send a range of time once more; look after the replays there are."),
    "dlq": ("dlq", "Dead letters: what could not land, why, and sending it back."),
    "doctor": ("doctor", "What is wrong, whether data is safe, and what to type."),
    "lag": ("lag", "How far behind each destination is, and whether somebody reads."),
    "audit": ("audit", "Prove, hour by hour, that all that was accepted has landed."),
    "receipts": ("receipts", "What became of events at the vendors."),
    "collect": ("collect", "Take logs and events over HTTP, safe on disk before the answer."),
    "spool": ("spool", "Look after a spool: what waits in it, whether it is sound, sending it."),
    "keys": ("keys", "Who may send to a collector: add a key, list them, revoke one."),
    "vendors": ("vendors", "Stand-ins for the analytics vendors, to try things against."),
    "trace": ("trace", "What may leave for the vendors: try it, and have it proposed."),
    "demo": ("demo", "Show and prove the whole path on this machine, kills included."),
}


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"headrace.cli.{_COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in _COMMANDS.items()])


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="headrace")
def cli() -> None:
    """Durable streaming ingest on Kafka: every acknowledged log lands exactly once.

    \b
    A first run, on this machine only:
      headrace up                                     # Kafka, PostgreSQL, chDB
      headrace migrate --to postgres                  # topics and tables
      headrace simulate --devices 1000 --every 2m --from -1h
      headrace insert --to postgres --drain

    Settings come from the command line, HEADRACE_… in the environment, ./headrace.toml, and the
    local stack where it is running; in that order.
    """


def main() -> None:
    """Run the command line; the entry point of the `headrace` program."""
    from headrace.cli.errors import expected, not_installed, said

    try:
        cli(standalone_mode=True)
    except expected() as error:
        _stdout_fails()
        click.echo(f"headrace: {said(error)}", err=True)
        sys.exit(1)
    except ModuleNotFoundError as error:
        why = not_installed(error, sys.argv[1:2])
        if why is None:
            raise
        click.echo(f"headrace: {why}", err=True)
        sys.exit(1)
    except OSError as error:
        # A write names no file: whether it was this one is seen with one line more.
        if error.filename is not None or not _stdout_fails("\n"):
            raise
        click.echo(
            f"headrace: standard output can't be written: {error.strerror}; make room there, or "
            "send it elsewhere",
            err=True,
        )
        sys.exit(1)


def _stdout_fails(more: str = "") -> bool:
    """Whether what was written to standard output, and `more`, can't get there: its disk is full.

    Then it is given up: at its end the interpreter would try once more, and say so in its own way.
    """
    if sys.stdout is None:  # it was closed before we began
        return False
    try:
        sys.stdout.write(more)
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False
