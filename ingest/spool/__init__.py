"""The durable spool: what it has acknowledged reaches Kafka exactly once, whatever crashes.

`store` the file and its invariants, `frames` a record as bytes, `batch` records as rows for Kafka,
`entry` what the ledger hears of them, `seen` ids that were taken, `reader` reading the file, `lock`
one process at a time, `writer` group commit, `relay` spool to Kafka, `transactions` Kafka's side of
it, `patience` calls that may not come back, `care` looking after a spool, `verify` what a damaged
one holds, `mend` saving that, `lane` the spool inside a Publisher, `errors` what it says.
"""

from __future__ import annotations

from ingest.spool.errors import SpoolDamaged, SpoolError, SpoolFull, SpoolInUse, SpoolTaken
from ingest.spool.frames import Record
from ingest.spool.store import Limits
from ingest.spool.writer import Spool, Ticket

__all__ = [
    "Limits", "Record", "Spool", "SpoolDamaged", "SpoolError", "SpoolFull", "SpoolInUse",
    "SpoolTaken", "Ticket",
]  # fmt: skip
