"""`headrace doctor`: what is wrong, whether data is safe meanwhile, and what to type.

Each check asks, within a time of its own, and hands the facts to a function that decides; nothing
is changed by it. What can't be asked reliably is left out: Kafka's version, and clocks.

| module | holds |
|---|---|
| `check` | what a check says |
| `edge` | the configuration, and the spools that it names |
| `kafka` | Kafka, the streams' topics, their dead letters |
| `replicas` | whether Kafka takes and gives out their records |
| `retention` | how long Kafka keeps things, as it is said |
| `readers` | databases, vendors, replays: do they answer, does somebody read, is there time |
| `unread` | streams that nobody reads, as one check for each database |
| `run` | all of them, in the order in which a record comes by |
"""
