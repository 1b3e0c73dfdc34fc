"""All checks, in the order in which a record comes by them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from headrace.config import Config
from headrace.doctor.check import Check, Verdict, bounded
from headrace.doctor.edge import spools
from headrace.doctor.kafka import Topics, answers, dead_letters, topics, transactions
from headrace.doctor.readers import database, former_topics, others, replays, vendor
from headrace.doctor.replicas import replicas
from headrace.words import counted

__all__ = ["checks", "summary"]

# Without them the others can't be made.
_IN_FRONT = ("configuration", "kafka")


def checks(config: Config, places: Mapping[str, str | None], group: str | None) -> Iterator[Check]:
    """Each as soon as it is known; `places` are URLs of databases by their names, None for vendors.

    `group` is that of the databases' inserters, if it is not the default.
    """
    yield from bounded("spool", partial(spools, config))
    found: Topics | None = None

    def ask() -> list[Check]:
        nonlocal config, found
        check, found, config = answers(config)
        return [check]

    if "bootstrap.servers" in config.kafka:
        yield from bounded("kafka", ask)
    if found is not None:
        yield from bounded("topics", partial(topics, config, found))
        # In front of transactions, which stay open where Kafka takes nothing.
        yield from bounded("replicas", partial(replicas, config, found))
        yield from bounded("transactions", partial(transactions, config, found))
    for name, url in places.items():
        if url is not None:
            yield from bounded(name, partial(database, config, name, url, found, group))
    if found is not None:
        urls = [url for url in places.values() if url is not None]
        yield from bounded("databases", partial(others, config, urls))
        yield from bounded("former topics", partial(former_topics, config))
    for name in config.vendors:
        yield from bounded(name, partial(vendor, config, name, found))
    if found is not None:
        yield from bounded("dead letters", partial(dead_letters, config, found))
        yield from bounded("replays", partial(replays, config, found))


def summary(found: Sequence[Check]) -> str:
    """The last line: how many are not well, and whether something is lost."""
    failed = sum(check.verdict is Verdict.FAIL for check in found)
    warned = sum(check.verdict is Verdict.WARN for check in found)
    if not failed and not warned:
        return f"all {len(found)} checks are well; headrace audit proves that nothing is missing"
    said = [counted(failed, "problem")] if failed else []
    said += [counted(warned, "warning")] if warned else []
    if gone := [check.name for check in found if check.lost]:
        return f"{', '.join(said)}; lost: see {', '.join(gone)}"
    if any(check.verdict is Verdict.FAIL and check.name in _IN_FRONT for check in found):
        return f"{', '.join(said)}; what lies behind could not be asked"
    return f"{', '.join(said)}; nothing acknowledged is lost, as far as these checks see"
