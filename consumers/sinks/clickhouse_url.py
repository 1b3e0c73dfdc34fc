"""What a URL of ClickHouse or chDB says: host, port, database; or chDB's directory."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from consumers.errors import Systemic

__all__ = ["database", "directory", "port", "where"]


def where(url: str) -> str:
    """Host, port and database, or chDB's directory; without user and password."""
    parts = urlsplit(url)
    if parts.scheme == "chdb":
        return str(directory(url).resolve())
    return f"{parts.hostname or 'localhost'}:{port(parts)}/{database(parts)}"


def directory(url: str) -> Path:
    """chDB's directory. Raises Systemic where the URL names none."""
    path = url.partition(":")[2].removeprefix("//")
    if not path or Path(path).is_file():
        raise Systemic(f"chdb: needs a directory, as in chdb:./data; {path or 'that'} is none")
    return Path(path)


def port(parts: SplitResult) -> int:
    """The port, ClickHouse's own where none is given. Raises Systemic for what is no URL."""
    try:
        return parts.port or (8443 if parts.scheme == "clickhouses" else 8123)
    except ValueError:
        raise Systemic(
            "the URL of ClickHouse can't be used: write clickhouse://user:password@host:8123/name, "
            "with what is special in the password as %2F (/), %40 (@), %3A (:)"
        ) from None


def database(parts: SplitResult) -> str:
    """The database, ClickHouse's own where none is given."""
    return parts.path.strip("/") or "default"
