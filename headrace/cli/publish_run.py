"""The loop of `headrace publish`: each record acknowledged or named, and the sums at the end.

It is loaded when the command runs: what it needs brings Kafka's client.
"""

from __future__ import annotations

import base64
import os
import select
import signal
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO, Any, Self

import click
import orjson

from headrace.cli.publish_progress import Progress
from headrace.words import printable
from ingest.publisher import Publisher, PublishError
from ingest.records import Record, RecordError, Source, SourceError, read
from ingest.streams import Stream

__all__ = ["Run"]

# Rejected records that are reported one by one; the others are counted by reason.
_REPORTED = 20
# Records between two looks at the clock and at the figures.
_LOOK_EVERY = 1_000


# What ends a run: Ctrl-C, a service manager, a terminal that is closed.
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupts:
    """Signals that end: not in the middle of a record's publishing, but at once in a read.

    A second one also ends a publish that waits for room; SIGHUP counts only as the first, because
    the kernel and the shell both send it when a terminal is closed. Between reading and waiting for
    the acknowledgements, and after that, they change nothing: the sums must be said.

    A signal that comes just before a read begins does not end it: Python hears of signals between
    its own instructions, and of one within a call into the system. So what may take for ever is
    waited for together with a pipe into which the signal itself writes.
    """

    def __init__(self) -> None:
        self.asked = 0
        # The first one's number.
        self.signal = 0
        # A record has been read and is not accounted for yet.
        self.busy = False
        # Where a KeyboardInterrupt would find nobody to take it.
        self.deaf = False

    def __enter__(self) -> Self:
        self._heard, self._told = os.pipe()
        os.set_blocking(self._told, False)
        self._woken_before = signal.set_wakeup_fd(self._told, warn_on_full_buffer=False)
        # Under nohup SIGHUP is ignored, and stays so.
        self._before = {
            number: signal.signal(number, self._on_signal)
            for number in _SIGNALS
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN
        }
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        signal.set_wakeup_fd(self._woken_before)
        os.close(self._heard)
        os.close(self._told)

    def wait(self, descriptor: int) -> None:
        """Return when there is something to read, or raise KeyboardInterrupt."""
        while descriptor not in select.select([descriptor, self._heard], [], [])[0]:
            os.read(self._heard, 1)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGHUP:
            return
        self.asked += 1
        self.signal = self.signal or number
        if self.deaf or (self.busy and self.asked == 1):
            return
        self.deaf = True
        raise KeyboardInterrupt


@dataclass
class Run:
    """One call: what was read, refused and published."""

    stream: Stream
    strict: bool
    quiet: bool
    read: int = 0
    broken: bool = False
    # Where reading was given up, as the sums say it.
    stopped: str = ""
    failure: str = ""
    # --rejects lacks some.
    unkept: bool = False
    rejects: IO[bytes] | None = None
    reasons: Counter[str] = field(default_factory=Counter)
    interrupts: Interrupts = field(default_factory=Interrupts)
    publisher: Publisher = field(init=False)
    show: Progress = field(init=False)

    def files(self, paths: Iterable[str], format_: Any, null: str | None) -> None:
        """Publish all records of all files; what stops one file does not stop the next."""
        try:
            for path in paths:
                try:
                    with Source(path, wait=self.interrupts.wait) as source:
                        self._records(source, read(source, self.stream, format=format_, null=null))
                except SourceError as error:
                    self.broken = True
                    self.show.say(f"headrace: {error}")
                if self.stopped or self.interrupts.asked:
                    return
        except KeyboardInterrupt:
            pass  # counted; finish() says so
        except PublishError as error:
            self.failure = str(error)
        finally:
            self.interrupts.deaf = True

    def _records(self, source: Source, records: Iterable[Record]) -> None:
        publisher, stream, interrupts = self.publisher, self.stream, self.interrupts
        for record in records:
            # A signal from here on waits until the record is accounted for: published, or reported
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
        if self.strict:
            self.stopped = "at the first bad record"
        if self.rejects is not None:
            row = {"file": source.name, "line": record.line, "reason": str(error)}
            try:
                row["raw"] = record.raw.decode()
            except UnicodeDecodeError:
                row["raw_base64"] = base64.b64encode(record.raw).decode()
            try:
                self.rejects.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
            except OSError as full:
                self.stopped = "where a reject could not be kept"
                self._not_kept(full)

    def _not_kept(self, error: OSError) -> None:
        if not self.unkept:
            self.unkept = self.broken = True
            name = None if self.rejects is None else self.rejects.name
            self.show.say(f"headrace: --rejects {name} can't be written: {error.strerror}")

    def finish(self) -> None:
        """Wait for every acknowledgement; a signal meanwhile gives up what is outstanding."""
        interrupts = self.interrupts
        if self.rejects is not None:
            try:
                self.rejects.close()
            except OSError as error:
                self._not_kept(error)
        try:
            try:
                interrupts.busy = interrupts.deaf = False
                if interrupts.asked:
                    self.show.say("headrace: interrupted; waiting for Kafka to acknowledge what "
                                  "was published (a second time gives up)")  # fmt: skip
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
                click.echo(f"{n:,} × {printable(reason)}", err=True)
        if self.failure:
            click.echo(f"headrace: {printable(self.failure)}", err=True)
        acknowledged = self.publisher.acknowledged
        line = f"acknowledged {acknowledged:,} of {self.read:,} records"
        if rejected:
            line += f"; {rejected:,} rejected" + (
                f" (see {rejects})" if rejects and not self.unkept else ""
            )
        failed = self.read - rejected - acknowledged
        if failed:
            line += f"; {failed:,} failed"
        if self.interrupts.asked:
            line += "; interrupted"
        elif self.stopped:
            line += f"; stopped {self.stopped}"
        click.echo(line)
        if self.interrupts.asked:
            return 128 + self.interrupts.signal
        return 1 if rejected or failed or self.failure or self.broken else 0
