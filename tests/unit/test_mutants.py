"""Every mutation still applies: to one place of code that compiles then, and for known tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from mutants.mutations import MUTATIONS, Mutation

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.name)
def test_a_mutation_applies_to_one_place_and_makes_a_program(mutation: Mutation) -> None:
    path, text = mutation.of(ROOT)
    compile(text, str(path), "exec")
    assert text != path.read_text()
    for test in mutation.tests:
        file, _, name = test.partition("::")
        assert f"def {name.partition('[')[0]}" in (ROOT / file).read_text()


def test_mutations_have_names_of_their_own() -> None:
    names = [mutation.name for mutation in MUTATIONS]
    assert len(set(names)) == len(names)
