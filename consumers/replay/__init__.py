"""Replay: a range of time once more, through the same run loop, to a vendor or to a table.

A job (`job.py`) is a record in a compacted topic; it has a range of offsets for each partition
(`ranges.py`), found once when it is made. `source.py` gives these ranges to the run loop; how far
the job has come is the committed offsets of a consumer group of its own, so a job that was killed
goes on where it stopped. What of the ranges is really meant, by event time, by name, or because it
is missing, `select.py` says in front of the destination's sink. What Kafka no longer has of raw
events comes from a database's table, in a leg of its own before the ranges (`legs.py`).

Who makes a job need not be a person: of what an outage left out a forwarder makes one (`keeper.py`)
and runs it beside what is live, in a run loop of its own (`outage.py`, `beside.py`).
"""
