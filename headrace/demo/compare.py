"""Two tables of the same columns, compared as multisets of rows; order does not matter.

A lost row and a doubled one do not cancel out, and a row of which one column changed is both lost
and strange. Every column takes part, in values and in NULLs.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["Difference", "compare"]

_EXAMPLES = 3


@dataclass(frozen=True, slots=True)
class Difference:
    """What is wrong with what has landed; all 0 when nothing is. Examples are rows, as text."""

    lost: int = 0
    duplicated: int = 0
    # Rows that were never published, or not so.
    strange: int = 0
    examples: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.lost or self.duplicated or self.strange)


def compare(published: pa.Table, landed: pa.Table) -> Difference:
    """How what has landed differs from what was published."""
    names = published.schema.names
    sides: list[pa.Table] = []
    for table, was, came in ((published, 1, 0), (landed.select(names), 0, 1)):
        for name, value in (("published", was), ("landed", came)):
            column = pa.repeat(pa.scalar(value, pa.int32()), table.num_rows)
            table = table.append_column(f"#{name}", column)  # noqa: PLW2901
        sides.append(table.cast(sides[0].schema) if sides else table)
    both = pa.concat_tables(sides).unify_dictionaries()
    rows = both.group_by(names, use_threads=False).aggregate(
        [("#published", "sum"), ("#landed", "sum")]
    )
    was, came = rows["#published_sum"], rows["#landed_sum"]
    if not rows.num_rows or pc.all(pc.equal(was, came)).as_py():
        return Difference()
    wrong = rows.filter(pc.not_equal(was, came))
    lost = duplicated = strange = 0
    examples: list[str] = []
    for row in wrong.to_pylist():
        was, came = row.pop("#published_sum"), row.pop("#landed_sum")
        lost += max(was - came, 0)
        if came > was:
            duplicated, strange = (
                (duplicated + came - was, strange) if was else (duplicated, strange + came)
            )
        if len(examples) < _EXAMPLES:
            said = ", ".join(f"{name}={value}" for name, value in row.items())
            examples.append(f"published {was} x, landed {came} x: {said}")
    return Difference(lost, duplicated, strange, tuple(examples))
