"""What works where Headrace is installed without extras: all that lands logs in PostgreSQL."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).parents[2]

# Argument 1: modules that are not there. Nobody answers at the addresses, which is known at once.
PROGRAM = """
import importlib, sys

lacking = set(sys.argv[1].split(","))

class Lacking:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in lacking:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Lacking())

import consumers.preflight, headrace.doctor.kafka, ingest.topics
from consumers.errors import Systemic
from headrace.cli import main

def refuse(*_):
    raise Systemic("waits for Kafka")

ingest.topics._TIMEOUT_S = headrace.doctor.kafka._ASK_S = 0.1
consumers.preflight.check_topics = refuse

for line in sys.argv[2:]:
    sys.argv = ["headrace", *line.split()]
    try:
        main()
    except SystemExit as ended:
        print(line, "=", ended.code, file=sys.stderr)

# What stands behind Kafka.
for name in ("postgres", "postgres_compare", "postgres_ledger", "postgres_migrate"):
    importlib.import_module(f"consumers.sinks.{name}")
"""


def names(requirements: list[str]) -> set[str]:
    found = (re.match(r"[\w.-]+", requirement) for requirement in requirements)
    return {name[0].replace("_", "-").lower() for name in found if name is not None}


def modules_of_extras() -> set[str]:
    """Top-level modules of packages that only extras bring."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = set().union(*map(names, project["optional-dependencies"].values()))
    extras -= {"headrace", *names(project["dependencies"])}
    return {
        module
        for module, packages in packages_distributions().items()
        if {package.replace("_", "-").lower() for package in packages} <= extras
    }


def test_what_lands_in_postgres_needs_no_extra(tmp_path: Path) -> None:
    """Nor does looking after it: lag, doctor, audit."""
    lacking = modules_of_extras()
    assert {"clickhouse_connect", "granian", "httpx", "msgspec", "psutil", "uvloop"} <= lacking
    to = "--to postgres://u:p@127.0.0.1:1/d"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, ",".join(lacking), "schema sql device_state",
         f"migrate {to}", f"insert {to}", f"lag {to}", f"doctor {to}", f"audit {to}"],
        cwd=tmp_path, env=os.environ | {"HEADRACE_KAFKA": "127.0.0.1:1"},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert "is missing" not in done.stderr
    assert done.returncode == 0, done.stderr
    ended = dict(re.findall(r"^(\w+) .* = (\d)$", done.stderr, re.MULTILINE))
    assert ended == {"schema": "0", "migrate": "1", "insert": "1", "lag": "1", "doctor": "1",
                     "audit": "1"}  # fmt: skip
