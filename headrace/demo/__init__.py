"""The demo: two hours of a fleet through the whole path, with kills, and a count of every row.

Beside it product events go to three vendors, of which one is away for a while.

`headrace demo` plays a sequence of small acts on a real stack of its own. Nothing in it is
pretended but the vendors, which are stand-ins: the servers are Kafka, PostgreSQL and ClickHouse's
engine, the inserters are `headrace insert` processes, the kills are SIGKILL. It ends with a
comparison of what Kafka holds with what the tables hold, row by row and column by column, and of
what was sent with what each vendor has stored, and fails if that does not add up.

| module | holds |
|---|---|
| `run` | the acts in order; what the exit code is made of |
| `act_live`, `act_burst` | the first half at a pace, with kills; the second half at once |
| `act_rubbish` | a stream of which one record in a hundred is rubbish |
| `act_fleet`, `charts` | the fleet drawn from SQL |
| `act_vendors` | what went on beside the others: product events to three vendors |
| `vendor_play`, `vendor_events` | the outage and the kill; who sends |
| `vendor_crew` | its processes and waits |
| `vendor_setup`, `vendor_count` | its headrace.toml and events; each vendor held to them |
| `act_count`, `closing` | the comparison; the closing table and the verdict |
| `act_audit` | `headrace audit` over all of it |
| `place`, `crew`, `traffic`, `watch` | stack and settings; processes; publishers; progress |
| `published`, `landed`, `chdb_look` | rows as read back from Kafka; from the databases |
| `compare` | two tables as multisets of rows |
| `story`, `model` | the terminal; plain values |
"""
