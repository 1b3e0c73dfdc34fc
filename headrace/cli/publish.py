"""`headrace publish`: files of records to a stream; every one of them acknowledged or named."""

from __future__ import annotations

import base64
import logging
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO, TYPE_CHECKING, Any

import click
import orjson

from headrace.cli.options import config_options, require_topics

if TYPE_CHECKING:
    from ingest.publisher import Publisher
    from ingest.records import Record, RecordError, Source
    from ingest.streams import Stream

__all__ = ["publish"]

# Rejected records that are reported one by one; the others are counted by reason.
_REPORTED = 20
# Records between two looks at the clock and at the figures.
_LOOK_EVERY = 1_000


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

    The last line says how many records Kafka has acknowledged: only these are safe. Ctrl-C stops
    reading and still waits for what was published; a second one gives that up.

    \b
    Exit code:
      0    every record was acknowledged
      1    some were rejected, or failed, or an input could not be read to its end
      2    wrong usage
      130  interrupted

    \b
    Examples:
      headrace publish device_state states.jsonl.gz --rejects rejects.jsonl
      headrace publish flights flights.csv --null NA
      tail -f agent.log | headrace publish device_state
    """
    from headrace.config import load
    from ingest.publisher import Publisher

    settings = load(config_path, kafka=kafka)
    target = settings.stream(stream)
    paths = files or ("-",)
    if rejects is not None and any(p != "-" and rejects.exists() and rejects.samefile(p)
                                   for p in paths):  # fmt: skip
        raise click.UsageError(f"--rejects {rejects} is also an input")
    require_topics(settings, [target])
    # The publisher's warnings, "waiting 10 s: …", belong to what the operator sees.
    logging.basicConfig(format="headrace: %(message)s", level=logging.WARNING)
    bootstrap = str(settings.kafka["bootstrap.servers"])
    run = _Run(target, strict=strict, quiet=quiet)
    with ExitStack() as stack:
        if rejects is not None:
            run.rejects = stack.enter_context(_create(rejects))
        run.publisher = Publisher(bootstrap, streams=settings.streams, config=settings.kafka)
        stack.enter_context(run.interrupts)
        run.show = stack.enter_context(_Progress(paths, on=not quiet and sys.stderr.isatty()))
        run.files(paths, format_, null)
        run.finish()
    sys.exit(run.summary(rejects))


class _Interrupts:
    """Ctrl-C: not in the middle of a record's publishing, but at once in the middle of a read.

    A second one also ends a publish that waits for room. Between reading and waiting for the
    acknowledgements, and after that, they are counted and change nothing: the sums must be said.
    """

    def __init__(self) -> None:
        self.asked = 0
        # A record has been read and is not accounted for yet.
        self.busy = False
        # Where a KeyboardInterrupt would find nobody to take it.
        self.deaf = False

    def __enter__(self) -> None:
        self._before = signal.signal(signal.SIGINT, self._on_signal)

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _on_signal(self, _signal: int, _frame: FrameType | None) -> None:
        self.asked += 1
        if self.deaf or (self.busy and self.asked == 1):
            return
        self.deaf = True
        raise KeyboardInterrupt


@dataclass
class _Run:
    """One call: what was read, refused and published."""

    stream: Stream
    strict: bool
    quiet: bool
    read: int = 0
    broken: bool = False
    stopped: bool = False
    failure: str = ""
    rejects: IO[bytes] | None = None
    reasons: Counter[str] = field(default_factory=Counter)
    interrupts: _Interrupts = field(default_factory=_Interrupts)
    publisher: Publisher = field(init=False)
    show: _Progress = field(init=False)

    def files(self, paths: Iterable[str], format_: Any, null: str | None) -> None:
        """Publish all records of all files; what stops one file does not stop the next."""
        from ingest.publisher import PublishError
        from ingest.records import Source, SourceError, read

        try:
            for path in paths:
                try:
                    with Source(path) as source:
                        self._records(source, read(source, self.stream, format=format_, null=null))
                except SourceError as error:
                    self.broken = True
                    self.show.say(f"headrace: {error}")
                if self.stopped:
                    return
        except KeyboardInterrupt:
            pass  # counted; finish() says so
        except PublishError as error:
            self.failure = str(error)
        finally:
            self.interrupts.deaf = True

    def _records(self, source: Source, records: Iterable[Record]) -> None:
        from ingest.records import RecordError

        publisher, stream, interrupts = self.publisher, self.stream, self.interrupts
        for record in records:
            # A Ctrl-C from here on waits until the record is accounted for: published, or reported
            # and counted as rejected.
            interrupts.busy = True
            self.read += 1
            error = record.error
            if error is None:
                try:
                    publisher.publish(stream, record.message)
                except RecordError as refused:
                    error = refused
            if error is not None:
                self._reject(source, record, error)
            interrupts.busy = False
            if self.stopped or interrupts.asked:
                self.stopped = True
                return
            if self.read % _LOOK_EVERY == 0:
                self.show.update(source, self.read, publisher)
        self.show.update(source, self.read, publisher)

    def _reject(self, source: Source, record: Record, error: RecordError) -> None:
        text = f"{source.name}:{record.line}: {error}"
        if not self.quiet and self.reasons.total() < _REPORTED:
            self.show.say(text)
        # A reason reads "what is wrong: the value"; values would make every reason its own.
        reason = error.reason.split(": ", 1)[0]
        self.reasons[f"{error.field}: {reason}" if error.field else reason] += 1
        self.stopped = self.strict
        if self.rejects is not None:
            row = {"file": source.name, "line": record.line, "reason": str(error)}
            try:
                row["raw"] = record.raw.decode()
            except UnicodeDecodeError:
                row["raw_base64"] = base64.b64encode(record.raw).decode()
            self.rejects.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))

    def finish(self) -> None:
        """Wait for every acknowledgement; a Ctrl-C meanwhile gives up what is outstanding."""
        from ingest.publisher import PublishError

        interrupts = self.interrupts
        try:
            try:
                interrupts.busy = interrupts.deaf = False
                if interrupts.asked:
                    self.show.say("headrace: interrupted; waiting for Kafka to acknowledge what "
                                  "was published (Ctrl-C again gives up)")  # fmt: skip
                self.publisher.close()
                interrupts.deaf = True
            except KeyboardInterrupt:
                self.publisher.close(timeout=0)
        except PublishError as error:
            self.failure = self.failure or str(error)

    def summary(self, rejects: Path | None) -> int:
        """Print the sums; the exit code."""
        rejected = self.reasons.total()
        if rejected and (self.quiet or rejected > _REPORTED):
            for reason, n in self.reasons.most_common(_REPORTED):
                click.echo(f"{n:,} × {reason}", err=True)
        if self.failure:
            click.echo(f"headrace: {self.failure}", err=True)
        acknowledged = self.publisher.acknowledged
        line = f"acknowledged {acknowledged:,} of {self.read:,} records"
        if rejected:
            line += f"; {rejected:,} rejected" + (f" (see {rejects})" if rejects else "")
        failed = self.read - rejected - acknowledged
        if failed:
            line += f"; {failed:,} failed"
        if self.interrupts.asked:
            line += "; interrupted"
        elif self.stopped:
            line += "; stopped at the first bad record"
        click.echo(line)
        if self.interrupts.asked:
            return 130
        return 1 if rejected or failed or self.failure or self.broken else 0


class _Progress:
    """The bar on a terminal: bytes read of total, records a second, acknowledged."""

    def __init__(self, paths: Iterable[str], *, on: bool) -> None:
        self._bar: Any = None
        if not on:
            return
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

        columns = [
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TextColumn("{task.fields[rate]} records/s, {task.fields[acked]} acknowledged"),
        ]
        self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
        sizes = [0 if path == "-" else Path(path).stat().st_size for path in paths]
        total = None if 0 in sizes else sum(sizes)
        self._task = self._bar.add_task("", total=total, rate="–", acked="0")
        self._done: dict[int, int] = {}
        self._since = self._shown = time.monotonic()

    def __enter__(self) -> _Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, text: str) -> None:
        """A line on standard error, above the bar."""
        if self._bar is None:
            click.echo(text, err=True)
        else:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def update(self, source: Source, read: int, publisher: Publisher) -> None:
        """Ten times a second at most."""
        if self._bar is None:
            return
        now = time.monotonic()
        self._done[id(source)] = source.consumed
        if now - self._shown < 0.1:
            return
        self._shown = now
        self._bar.update(
            self._task,
            description=source.name,
            completed=sum(self._done.values()),
            rate=f"{read / (now - self._since):,.0f}",
            acked=f"{publisher.acknowledged:,}",
        )


def _create(path: Path) -> IO[bytes]:
    if path == Path("-"):
        raise click.UsageError("--rejects takes a file; standard output has the sums")
    try:
        return path.open("wb")
    except OSError as error:
        raise click.UsageError(f"--rejects {path} can't be written: {error.strerror}") from error
