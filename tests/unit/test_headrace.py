"""What `from headrace import …` gives."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import headrace

DOCS = Path(__file__).parents[2] / "docs"


def _checked() -> dict[str, str]:
    """What a type checker sees imported, and from where."""
    tree = ast.parse(Path(headrace.__file__).read_text(encoding="utf-8"))
    return {
        alias.name: found.module or ""
        for block in tree.body
        if isinstance(block, ast.If)
        for found in block.body
        if isinstance(found, ast.ImportFrom)
        for alias in found.names
    }


def test_a_type_checker_is_told_of_what_there_is_and_of_nothing_else() -> None:
    """With a __getattr__ that it sees, it would believe any name."""
    assert set(_checked()) == set(headrace.__all__)
    assert _checked() == headrace._HOMES
    tree = ast.parse(Path(headrace.__file__).read_text(encoding="utf-8"))
    assert not [found for found in tree.body if isinstance(found, ast.FunctionDef)]


@pytest.mark.parametrize("name", headrace.__all__)
def test_every_name_is_there(name: str) -> None:
    assert getattr(headrace, name).__name__ == name


def test_no_other_is() -> None:
    with pytest.raises(AttributeError, match="module 'headrace' has no attribute 'Publishr'"):
        _ = headrace.Publishr  # type: ignore[attr-defined]


def test_what_the_page_tells_to_catch_can_be_imported() -> None:
    page = (DOCS / "sdks.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\b(?:[A-Z][a-z]+Error|SpoolFull)\b", page))
    assert "PublishError" in named
    assert named <= {*headrace.__all__, "ValueError", "TypeError"}


@pytest.mark.parametrize("used", ["Stats", "Sparrow('x', 'k')"])
def test_a_name_loads_no_more_than_it_needs(used: str) -> None:
    """Whoever tracks events needs neither Kafka's client nor protobuf."""
    program = f"import sys, headrace; headrace.{used}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert not loaded & {"confluent_kafka", "google", "msgspec", "granian", "pyarrow"}
