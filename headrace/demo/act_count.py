"""The count: what Kafka has acknowledged and holds, against what the tables and dead letters hold.

For every stream: Kafka is read from its first offset on, and both tables are copied out whole.
Rows are compared as multisets over all columns (`compare`), those of ClickHouse with the partition
and offset they came from as well. Rubbish has to be in the dead letters, byte for byte, under the
coordinates it had. Nothing is taken from what an inserter says about itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa

from headrace.demo.act_rubbish import Noisy
from headrace.demo.compare import Difference, compare
from headrace.demo.landed import Figures, clickhouse, postgres_figures, postgres_rows
from headrace.demo.model import CLICKHOUSE, NOISY, POSTGRES
from headrace.demo.place import Place
from headrace.demo.published import DeadLetters, Published, dead_letters, published
from headrace.demo.traffic import Tally
from ingest.streams import Stream

__all__ = ["Account", "Claim", "Looks", "account", "looks", "settle"]

_COORDINATES = ["_partition", "_offset"]


@dataclass(frozen=True, slots=True)
class Claim:
    """What the publisher says of one stream, and the values in it that are rubbish."""

    stream: Stream
    acknowledged: int
    tally: Tally
    rubbish: frozenset[bytes] = frozenset()


@dataclass(frozen=True, slots=True)
class Account:
    """One line of the closing table: a stream in one destination."""

    stream: str
    to: str
    published: int
    landed: int
    dead_letters: int
    duplicated: int
    lost: int
    # Everything that does not add up, in words; the figures above are the summary of it.
    faults: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Looks:
    """What was found in ClickHouse, in one look."""

    figures: Figures
    tables: Mapping[str, pa.Table]


def looks(place: Place, streams: list[Stream], step_s: int) -> tuple[Figures, Looks]:
    """The fleet's figures of PostgreSQL, and all of ClickHouse, asked at the same time."""
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(clickhouse, place.endpoints.chdb, streams, place.folder, step_s)
        figures = postgres_figures(place.endpoints.postgres, step_s)
        return figures, Looks(*other.result())


def account(place: Place, claim: Claim, found: Looks) -> list[Account]:
    """Compare one stream. Raises DemoError when something can't be read at all."""
    stream = claim.stream
    truth = published(place.bootstrap, stream, claim.rubbish)
    dead = dead_letters(place.bootstrap, stream)
    tables = {
        POSTGRES: postgres_rows(place.endpoints.postgres, stream, place.folder),
        CLICKHOUSE: found.tables[stream.name],
    }
    return [settle(claim, truth, dead, to, rows) for to, rows in tables.items()]


def settle(claim: Claim, truth: Published, dead: DeadLetters, to: str, rows: pa.Table) -> Account:
    """One line of the closing table."""
    name = claim.stream.name
    faults = []
    if truth.tally != claim.tally or truth.tally.count != claim.acknowledged:
        faults.append(
            f"Kafka holds {truth.tally.count:,} records of {name}, not just the "
            f"{claim.acknowledged:,} that it acknowledged"
        )
    wanted = truth.rows if to == CLICKHOUSE else truth.rows.drop_columns(_COORDINATES)
    wrong = compare(wanted, rows)
    if wrong:
        faults.append(_said(wrong, name, to))
    buried = {place for place, value in dead.letters.items() if truth.rubbish.get(place) == value}
    missing = len(truth.rubbish.keys() - buried)
    if missing:
        faults.append(f"{missing:,} records of rubbish are not among the dead letters of {name}")
    if len(dead.letters) > len(buried):
        faults.append(
            f"{len(dead.letters) - len(buried):,} dead letters of {name} were no rubbish, or differ"
        )
    return Account(
        stream=name,
        to=to,
        published=claim.acknowledged,
        landed=rows.num_rows,
        dead_letters=len(dead.letters),
        duplicated=wrong.duplicated,
        # What was acknowledged and is not in Kafka is lost for every destination.
        lost=wrong.lost + missing + max(claim.acknowledged - truth.tally.count, 0),
        faults=tuple(faults),
    )


def _said(wrong: Difference, stream: str, to: str) -> str:
    counts = f"{wrong.lost:,} lost, {wrong.duplicated:,} duplicated, {wrong.strange:,} changed"
    return f"{stream} in {to}: {counts}; " + "; ".join(wrong.examples)


def claims(
    streams: Mapping[str, Stream], tallies: Mapping[str, Tally], acknowledged: Mapping[str, int],
    noisy: Noisy,
) -> list[Claim]:  # fmt: skip
    """What is to be proven, in the order of the closing table."""
    found = [Claim(streams[name], acknowledged[name], tally) for name, tally in tallies.items()]
    found.append(Claim(streams[NOISY], noisy.acknowledged, noisy.tally, noisy.rubbish))
    return found
