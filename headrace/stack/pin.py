"""Writes `kafka-jars.txt` anew: `python -m headrace.stack.pin 4.2.2`.

Resolves the broker (`org.apache.kafka:kafka_2.13`) with all its run-time dependencies, adds the
slf4j binding that matches its log4j, downloads every jar and pins what it hashes to. Read the
diff before you commit it, and run the integration tests: they are what says that a version works.
4.3 and 4.4 do not: docs/operating.md says why.
"""

from __future__ import annotations

import tempfile
from importlib.resources import as_file, files
from pathlib import Path

import click

from .jars import PINS_FILE, TIMEOUT_S, Pin, parse_pins, sha256
from .state import replace_file

HEADER = """\
# Apache Kafka {version}: every jar of the broker, in class path order, with its sha256.
# Written by `python -m headrace.stack.pin {version}`; do not edit.
"""


def resolve(version: str) -> list[Pin]:
    """The broker first, then what it needs, sorted by coordinate."""
    from jgo.maven import MavenContext, PythonResolver

    with tempfile.TemporaryDirectory() as temp:
        context = MavenContext(PythonResolver(), repo_cache=Path(temp), timeout=TIMEOUT_S)
        # The slf4j binding must not be a second root here: jgo takes every root's
        # dependencyManagement for a BOM, and log4j's would pull kafka-clients down to 3.9.
        roots, rest = context.resolver.resolve(
            [context.create_dependency(f"org.apache.kafka:kafka_2.13:{version}")]
        )
        needed = {d.artifactId: d.artifact for d in rest}
        log4j = needed["log4j-core"].version
        needed["log4j-slf4j-impl"] = (
            context.project("org.apache.logging.log4j", "log4j-slf4j-impl")
            .at_version(log4j)
            .artifact()
        )
        artifacts = [d.artifact for d in roots]
        artifacts += sorted(needed.values(), key=lambda a: (a.groupId, a.artifactId))
        return [Pin(a.groupId, a.artifactId, a.version, sha256(a.resolve())) for a in artifacts]


@click.command(help=__doc__)
@click.argument("version")
def main(version: str) -> None:
    text = HEADER.format(version=version)
    text += "".join(f"{pin} {pin.sha256}\n" for pin in resolve(version))
    parse_pins(text)
    with as_file(files(__package__).joinpath(PINS_FILE)) as path:
        replace_file(path, text)
        click.echo(f"wrote {path}")


if __name__ == "__main__":
    main()
