"""What to do for what an extra of the installation brings.

No `pip install 'headrace[…]'`: Headrace is on no package index, and a package of that name there would
be a stranger's.
"""  # noqa: E501

from __future__ import annotations

__all__ = ["missing"]


def missing(module: str | None, extra: str) -> str:
    """That a module of an extra is missing, and what brings it: a sentence without its end."""
    return (
        f"{module} is missing, of the extra {extra}: in a checkout `make install` brings it, "
        "elsewhere see docs/installing.md"
    )
