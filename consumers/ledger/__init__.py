"""The ledger: for each hour and hop how many records, and which. docs/ledger.md has the whole of it.

    Bucket   one partition and one hour of event time
    Sum      how many records of a bucket, and an order-independent hash of their offsets
    Entry    what one destination did with those of a bucket: landed, dropped, dead

Two hops have the same records, each once, where their sums agree. `tally.py` adds up a batch, `accepted.py`
counts what is in Kafka, the sinks keep their own (`consumers/sinks/*_ledger.py`), and `audit.py` compares.
"""  # noqa: E501
