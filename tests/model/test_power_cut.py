"""A power cut at any moment: what was acknowledged is there, whatever of the rest is not.

The spool's writes and syncs are recorded while it takes records, gives up what is in Kafka and
checkpoints; then its files are made as a power cut behind any of these steps may leave them
(tests/power_cut.py), and opened.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from power_cut import Journal, NoShim, recorded

from ingest.collector.acks import Acks
from ingest.spool import Limits, Record, Spool, SpoolFull, Ticket
from ingest.spool.care import fsck

SHM = Path("/dev/shm") if Path("/dev/shm").is_dir() else None
LIMITS = Limits(max_bytes=400_000)


def record(number: int, size: int) -> Record:
    return Record("t", b"k", b"%d " % number + b"x" * size, f"id-{number}")


def number_of(value: bytes) -> int:
    return int(value.partition(b" ")[0])


def tell(journal: Journal, first: int, count: int, ticket: Ticket) -> None:
    """In the writer's thread, where an answer would go out."""
    if ticket.error is None:
        journal.answer(("stored", first, count))


def live(journal: Journal, folder: Path, chance: random.Random, *, pragma: str = "") -> None:
    """A spool's life: appends of one to many records, several at once or in this thread; releases;
    checkpoints."""
    with Spool(folder, LIMITS) as spool:
        db: Any = spool._store
        # A checkpoint every some pages: of a few thousand writes some hundred belong to one.
        db._db.execute("PRAGMA wal_autocheckpoint = 40")
        if pragma:
            db._db.execute(pragma)
        journal.answer(("open",))
        number = 0
        for _ in range(60):
            tickets = []
            for _ in range(chance.randint(1, 4)):
                count = chance.choice([1, 1, 1, 2, 10])
                size = chance.choice([0, 50, 50, 3000])
                batch = [record(number + n, size) for n in range(count)]
                if chance.random() < 0.5 and spool.append_now(batch) is not None:
                    journal.answer(("stored", number, count))
                else:
                    tickets.append(spool.append(batch, partial(tell, journal, number, count)))
                number += count
            for ticket in tickets:
                ticket.result()
            if chance.random() < 0.3:
                # The relay: Kafka has what lies below.
                position = chance.randint(spool.state.position, number)
                journal.answer(("in kafka", position))
                spool.release(position)


def live_with_trouble(journal: Journal, folder: Path, chance: random.Random) -> None:
    """The same on a disk that refuses one write or sync in fifty, one append after the other."""
    refused = 0
    with Spool(folder, LIMITS) as spool:
        db: Any = spool._store
        db._db.execute("PRAGMA wal_autocheckpoint = 40")
        journal.answer(("open",))
        journal.fails = lambda: chance.random() < 0.02
        for _ in range(150):
            # What was refused is sent again, with what came since.
            number, count = spool.state.next_seq, chance.choice([1, 1, 2, 10])
            batch = [record(number + n, chance.choice([0, 50, 3000])) for n in range(count)]
            try:
                if chance.random() < 0.5 and spool.append_now(batch) is not None:
                    journal.answer(("stored", number, count))
                else:
                    spool.append(batch, partial(tell, journal, number, count)).result()
            except SpoolFull:
                refused += 1
            if chance.random() < 0.1:
                position = chance.randint(spool.state.position, spool.state.next_seq)
                journal.answer(("in kafka", position))
                spool.release(position)
        journal.fails = lambda: False
    assert refused > 5, "the disk refused next to nothing: this test tests nothing"


def live_behind_requests(journal: Journal, folder: Path, chance: random.Random) -> None:
    """As a collector's requests: many at once, small ones committed in the loop, large ones not."""

    async def come() -> None:
        acks = Acks(spool, asyncio.get_running_loop())
        number = 0
        for _ in range(12):
            answers = []
            for _ in range(chance.randint(1, 8)):
                count = chance.choice([1, 1, 2, 300])
                stored = acks.store([record(number + n, 0) for n in range(count)])
                told = ("stored", number, count)
                stored.add_done_callback(lambda _, told=told: journal.answer(told))
                answers.append(stored)
                number += count
                await asyncio.sleep(0)
            await asyncio.gather(*answers)

    with Spool(folder, LIMITS) as spool:
        db: Any = spool._store
        db._db.execute("PRAGMA wal_autocheckpoint = 40")
        journal.answer(("open",))
        asyncio.run(come())


def recovers(journal: Journal, moment: int, chance: random.Random, folder: Path) -> None:
    """The law, of one power cut."""
    journal.cut(moment, chance, folder)
    answered = journal.answered(moment)
    stored = {n for kind, *rest in answered if kind == "stored"
              for n in range(rest[0], rest[0] + rest[1])}  # fmt: skip
    in_kafka = max((rest[0] for kind, *rest in answered if kind == "in kafka"), default=0)
    findings = fsck(folder, mend=False)
    assert findings.sound, findings
    with Spool(folder, LIMITS) as spool, closing(spool.reader()) as reader:
        state = spool.state
        assert state.position <= in_kafka
        found = reader.read(state.position, 10**6, 10**9)
        # Each is whole, under its own number.
        assert [number_of(r.value) for r in found] == [r.seq for r in found]
        assert {n for n in stored if n >= state.position} <= {r.seq for r in found}
        assert state.next_seq > max(stored, default=-1)
        again = [record(n, 0) for n in sorted(stored)]
        assert spool.append(again).result() == 0, "a retry of what was acknowledged"
        assert spool.append([record(10**6, 0)]).result() == 1


@pytest.fixture
def journal_of(request: pytest.FixtureRequest) -> Any:
    def make(seed: int, folder: Path, pragma: str = "") -> Journal:
        try:
            with recorded(folder) as journal:
                live(journal, folder, random.Random(seed), pragma=pragma)
        except NoShim as reason:
            pytest.skip(str(reason))
        return journal

    return make


def cuts(journal: Journal, seed: int, count: int, folder: Path) -> None:
    opened = next(i for i, s in enumerate(journal.steps) if s.what == ("open",))
    chance = random.Random(seed)
    # Behind each answer is where a missing sync would show.
    answers = [i + 1 for i, s in enumerate(journal.steps) if s.kind == "answer"]
    for number in range(count):
        moment = (
            chance.choice(answers) if number % 2 else chance.randint(opened, len(journal.steps))
        )
        recovers(journal, moment, chance, folder / str(number))


@pytest.mark.parametrize(
    ("seed", "count"), [(1, 60), *(pytest.param(s, 1000, marks=pytest.mark.slow) for s in (2, 3))]
)
def test_what_was_acknowledged_is_there_after_a_power_cut_at_any_moment(
    journal_of: Any, seed: int, count: int
) -> None:
    """And nothing else is: no torn record, no position that Kafka never had, no number twice."""
    with tempfile.TemporaryDirectory(dir=SHM) as folder:
        journal: Journal = journal_of(seed, Path(folder) / "spool")
        kinds = {(s.kind, Path(s.path).name) for s in journal.steps}
        # Checkpoints took place: the database was written behind the WAL.
        assert {("sync", "spool.db"), ("sync", "spool.db-wal"), ("write", "spool.db")} <= kinds
        cuts(journal, seed, count, Path(folder))


@pytest.mark.parametrize("lives", [live_with_trouble, live_behind_requests])
@pytest.mark.parametrize(
    ("seed", "count"), [(1, 30), *(pytest.param(s, 1000, marks=pytest.mark.slow) for s in (2, 3))]
)
def test_what_a_failing_disk_or_a_collector_acknowledged_is_there_too(
    lives: Callable[[Journal, Path, random.Random], None], seed: int, count: int
) -> None:
    with tempfile.TemporaryDirectory(dir=SHM) as folder:
        spool = Path(folder) / "spool"
        try:
            with recorded(spool) as journal:
                lives(journal, spool, random.Random(seed))
        except NoShim as reason:
            pytest.skip(str(reason))
        cuts(journal, seed, count, Path(folder))


def test_a_commit_without_its_sync_would_be_found(journal_of: Any) -> None:
    """The same cuts, of a database that does not sync its commits."""
    with tempfile.TemporaryDirectory(dir=SHM) as folder:
        journal = journal_of(1, Path(folder) / "spool", "PRAGMA synchronous = NORMAL")
        with pytest.raises(AssertionError):
            cuts(journal, 1, 60, Path(folder))
