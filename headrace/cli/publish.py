"""`headrace publish`: files of records to a stream; every one of them acknowledged or named."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import click

from headrace.cli.options import config_options, require_topics

__all__ = ["publish"]


@click.command()
@click.argument("stream")
@click.argument(
    "files",
    nargs=-1,
    metavar="[FILE…|-]",
    type=click.Path(exists=True, dir_okay=False, readable=True, allow_dash=True),
)
@click.option("--format", "format_", type=click.Choice(["json", "csv"]),
              help="Default: by the file's ending, else by its first byte.")  # fmt: skip
@click.option("--null", metavar="TEXT", help="CSV: a cell that means unset, besides an empty one.")
@click.option("--rejects", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="Write what is rejected there, as JSON lines.")  # fmt: skip
@click.option("--strict", is_flag=True, help="Stop at the first record that is rejected.")
@click.option("-q", "--quiet", is_flag=True,
              help="No progress and no single rejects, only sums.")  # fmt: skip
@config_options
def publish(
    stream: str,
    files: tuple[str, ...],
    format_: Any,
    null: str | None,
    rejects: Path | None,
    strict: bool,
    quiet: bool,
    config_path: Path | None,
    kafka: str | None,
) -> None:
    """Publish JSON lines or CSV to a stream.

    Each record is mapped to the stream's message and every field is checked: its name (accountId
    or account_id), type and range, that the key and the time are set, and that the databases can
    store it. Without FILE, or for -, standard input is read. Files may be compressed with gzip or
    zstd.

    A record that is wrong is reported as FILE:LINE: FIELD: REASON on standard error, the first
    twenty one by one, and does not stop the others. --rejects keeps each as an object with file,
    line, reason and raw, its original text (raw_base64 where that is not UTF-8).

    A CSV file begins with a header row that names the fields. An empty cell leaves its field
    unset. Times may have a space for the T, and without a zone they are UTC.

    The last line says how many records Kafka has acknowledged: only these are safe. Ctrl-C, SIGTERM
    and SIGHUP stop reading and still wait for what was published; a second Ctrl-C or SIGTERM gives
    that up.

    \b
    Exit code:
      0    every record was acknowledged
      1    some were rejected, or failed, or an input could not be read to its end, or
           what is rejected could not be kept
      2    wrong usage
      130  interrupted by Ctrl-C; 143 by SIGTERM, 129 by SIGHUP

    \b
    Examples:
      headrace publish device_state states.jsonl.gz --rejects rejects.jsonl
      headrace publish flights flights.csv --null NA
      tail -f agent.log | headrace publish device_state
    """
    from headrace.cli.publish_progress import Progress
    from headrace.cli.publish_run import Run
    from headrace.config import load
    from ingest.publisher import Publisher

    settings = load(config_path, kafka=kafka)
    target = settings.stream(stream)
    paths = files or ("-",)
    if rejects is not None and any(_same(rejects, path) for path in paths):
        raise click.UsageError(f"--rejects {rejects} is also an input")
    require_topics(settings, [target])
    # The publisher's warnings, "waiting 10 s: …", belong to what the operator sees.
    logging.basicConfig(format="headrace: %(message)s", level=logging.WARNING)
    bootstrap = str(settings.kafka["bootstrap.servers"])
    run = Run(target, strict=strict, quiet=quiet)
    with ExitStack() as stack:
        run.publisher = Publisher(bootstrap, streams=settings.streams, config=settings.kafka)
        # Only when nothing else can be wrong with the call: what was kept before is lost by it.
        if rejects is not None:
            run.rejects = stack.enter_context(_create(rejects))
        stack.enter_context(run.interrupts)
        run.show = stack.enter_context(Progress(paths, on=not quiet and sys.stderr.isatty()))
        run.files(paths, format_, null)
        run.finish()
    sys.exit(run.summary(rejects))


def _same(rejects: Path, path: str) -> bool:
    try:
        found = os.fstat(0) if path == "-" else Path(path).stat()
        return os.path.samestat(found, rejects.stat())
    except OSError:
        return False  # one of them is not there


def _create(path: Path) -> IO[bytes]:
    if path == Path("-"):
        raise click.UsageError("--rejects takes a file; standard output has the sums")
    try:
        return path.open("wb")
    except OSError as error:
        raise click.UsageError(f"--rejects {path} can't be written: {error.strerror}") from error
