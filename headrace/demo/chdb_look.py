"""A look into chDB's directory, from a process of its own.

chDB takes one process for a directory, and one directory for a process; so the demo never opens it
itself, and looks only while no inserter has it open. `python -m headrace.demo.chdb_look DIRECTORY`
reads a JSON list of queries from standard input and answers with the rows of each.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from headrace.demo.model import DemoError

__all__ = ["look"]

_PATIENCE_S = 120


def look(directory: Path, queries: Sequence[str]) -> list[list[list[Any]]]:
    """The rows of each query; none for one that writes INTO OUTFILE. Raises DemoError."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "headrace.demo.chdb_look", str(directory)],
        input=json.dumps(list(queries)), capture_output=True, text=True, timeout=_PATIENCE_S,
        check=False, start_new_session=True,
    )  # fmt: skip
    if done.returncode != 0:
        raise DemoError(f"chDB in {directory} can't be asked:\n{done.stderr[-2000:]}")
    answers: list[list[list[Any]]] = json.loads(done.stdout)
    return answers


def _main(directory: str) -> None:
    from chdb.session import Session

    answers: list[list[list[Any]]] = []
    with Session(directory) as session:  # type: ignore[no-untyped-call]  # it has no types
        for query in json.load(sys.stdin):
            if "INTO OUTFILE" in query:
                session.query(query)
                answers.append([])
                continue
            answer = session.query(query, "JSONCompactEachRow").bytes().decode()
            answers.append([json.loads(line) for line in answer.splitlines()])
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    _main(sys.argv[1])
