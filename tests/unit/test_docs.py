"""The documents tell the truth, where a machine can see it: commands, links, names."""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from command_lines import complaint, in_markdown, in_shell
from prometheus_client import REGISTRY

import consumers.metrics  # noqa: F401 - declares them
import ingest.collector.metrics  # noqa: F401 - and these
from headrace.cli import cli

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md"))
)
PACKAGES = ("ingest", "consumers", "headrace")


def text(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def blocks(document: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text(document), re.MULTILINE | re.DOTALL)


def test_the_documents_that_readers_are_sent_to_are_looked_at() -> None:
    wanted = {"README.md", "CHANGELOG.md", "docs/architecture.md", "docs/operating.md"}
    assert wanted <= set(DOCUMENTS)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_command_in_a_document_is_one_that_the_program_takes(document: str) -> None:
    for args in in_markdown(text(document)):
        assert complaint(args) is None, f"{document}: headrace {' '.join(args)}"


def test_the_commands_of_the_readme_are_found() -> None:
    found = [args[0] for args in in_markdown(text("README.md"))]
    assert found.count("insert") >= 2
    assert {"up", "migrate", "simulate", "down"} <= set(found)


def commands(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """Every command's path and help."""
    yield " ".join(path), command.help or ""
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from commands(found, (*path, name))


@pytest.mark.parametrize(("name", "said"), list(commands(cli)))
def test_every_example_in_a_help_text_is_one_that_the_program_takes(name: str, said: str) -> None:
    for args in in_shell(said):
        assert complaint(args) is None, f"headrace {name} --help: headrace {' '.join(args)}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_relative_link_leads_somewhere(document: str) -> None:
    prose = re.sub(r"^```.*?^```", "", text(document), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / document).parent / path if path else ROOT / document
        assert file.exists(), f"{document}: {target}"
        if anchor:
            assert anchor in anchors(file.read_text(encoding="utf-8")), f"{document}: {target}"


def anchors(document: str) -> set[str]:
    """What a heading is called in a link, as code forges make it."""
    headings = re.findall(r"^#+ (.+)$", document, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_python_and_toml_in_a_document_can_be_read(document: str) -> None:
    for block in blocks(document, "python"):
        ast.parse(block)
    for block in blocks(document, "toml"):
        tomllib.loads(block)


# -- the file map ----------------------------------------------------------------------------------


def file_map() -> set[str]:
    """The paths that docs/architecture.md names, folders with a slash at the end."""
    section = text("docs/architecture.md").split("## File map", 1)[1]
    found = re.search(r"^```\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    assert found is not None
    paths: set[str] = set()
    above: list[str] = []
    for line in found[1].splitlines():
        if not line.strip():
            continue
        depth = (len(line) - len(line.lstrip())) // 2
        name = line.split()[0]
        paths.add("".join(above[:depth]) + name)
        above = [*above[:depth], name]
    return paths


def modules() -> set[str]:
    """Every module of the packages that is part of the project, but generated ones."""
    listed = subprocess.run(
        ["git", "ls-files", "--", *(f"{package}/*.py" for package in PACKAGES)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if listed.returncode == 0 and listed.stdout:
        found = set(listed.stdout.splitlines())
    else:  # an archive without its history
        found = {
            path.relative_to(ROOT).as_posix()
            for package in PACKAGES
            for path in (ROOT / package).rglob("*.py")
        }
    return {p for p in found if not p.endswith("__init__.py") and "/gen/" not in p}


def named_by_its_package(module: str) -> bool:
    """Whether the comment of a module's package has it in a list of its own."""
    path = ROOT / module
    said = ast.get_docstring(ast.parse((path.parent / "__init__.py").read_text(encoding="utf-8")))
    return said is not None and f"`{path.stem}`" in said


def test_the_file_map_names_every_module() -> None:
    named = file_map()
    missing = {
        m
        for m in modules() - named
        if not (f"{m.rpartition('/')[0]}/" in named and named_by_its_package(m))
    }
    assert not missing, "add them to the file map of docs/architecture.md"


def test_the_file_map_names_nothing_that_is_not_there() -> None:
    named = file_map()
    assert len(named) > 40
    assert not {path for path in named if not (ROOT / path).exists()}


# -- docs/operating.md -----------------------------------------------------------------------------


def test_the_table_of_metrics_is_the_list_of_metrics() -> None:
    exported = {
        metric.name + ("_total" if metric.type == "counter" else ""): metric
        for metric in REGISTRY.collect()
        if metric.name.startswith("headrace_")
    }
    section = text("docs/operating.md").split("## Metrics", 1)[1].split("\n## ", 1)[0]
    assert set(re.findall(r"^\| `(headrace_\w+)`", section, re.MULTILINE)) == set(exported)


def test_the_table_of_metrics_has_their_labels() -> None:
    labels = {
        name: list(collector._labelnames)
        for name, collector in REGISTRY._names_to_collectors.items()
        if name.startswith("headrace_")
    }
    section = text("docs/operating.md").split("## Metrics", 1)[1].split("\n## ", 1)[0]
    rows = re.findall(r"^\| `(headrace_\w+)` \| ([^|]*) \|", section, re.MULTILINE)
    assert rows
    for name, said in rows:
        assert [x for x in said.split(", ") if x.strip()] == labels[name], name


def test_messages_of_the_documents_are_messages_of_the_program() -> None:
    """What stands between the gaps of a documented message stands in one of the sources' texts."""
    said = " ".join(
        node.value
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )
    # Words of the server or its client, not ours.
    foreign = {"password authentication failed", "permission denied", "Address already in use"}
    heads = ("## Messages that end it", "## Messages while it runs")
    for head in heads:
        section = text("docs/operating.md").split(head, 1)[1].split("\n## ", 1)[0]
        messages = re.findall(r"^\| ([^|]+) \|", section, re.MULTILINE)
        assert len(messages) > 8
        for message in messages:
            if message in ("message", "---"):
                continue
            for part in re.split(r"…|;|: |, gave|\(the limit is 10%\)", message):
                piece = part.strip(" `,.")
                if len(piece) > 3 and piece not in foreign:
                    assert piece in said, f"{message}: {piece}"
