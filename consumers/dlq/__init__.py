"""Dead letters, read back: listed, shown, sent to where they came from, removed.

A dead-letter topic is a log like any other. Beside letters it holds *settlements*: records that say
which letters are dealt with. A redrive writes both in one Kafka transaction: the records to the
topic that they came from, and the settlement to the dead-letter topic (`redrive.py`). So a record
is sent once, however often the command is killed; letters stay where they are, whatever a filter
leaves out; and no state is kept elsewhere that could expire before the letters do.

`letters.py` says what a letter is and which are open, `edit.py` runs what `--through` names,
`wire.py` decodes bytes as far as they go, `purge.py` removes.
"""
