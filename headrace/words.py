"""How commands say how many, how long, and which database."""

from __future__ import annotations

from urllib.parse import unquote, urlsplit

__all__ = ["counted", "lasting", "without_password"]


def counted(n: int, one: str, many: str = "") -> str:
    """ "1 event", "2,000 events"; `many` where it is not `one` with an s."""
    return f"{n:,} {one if n == 1 else many or f'{one}s'}"


def lasting(seconds: float) -> str:
    """ "90 s", "3 min", "5 h", "2 d": in whole units, of which there are two at least."""
    whole = max(0, int(seconds))
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if whole >= 2 * size:
            return f"{whole // size} {unit}"
    return f"{whole} s"


def without_password(url: str) -> str:
    """The URL of a destination as it may be kept, and shown in commands.

    libpq asks PGPASSWORD and ~/.pgpass for what is left out. Nobody asks for that of ClickHouse, so
    there PASSWORD says where to put it.
    """
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    user, colon, _ = user.partition(":")
    if colon and parts.scheme.startswith("clickhouse"):
        user += ":PASSWORD"
    # As it is written: to libpq a + is no space.
    query = [pair for pair in parts.query.split("&") if _may_be_shown(pair)]
    # Not put together by urllib, which leaves out the slashes where no host is named.
    place = f"{parts.scheme}://{user}{at}{host}{parts.path}"
    return f"{place}?{'&'.join(query)}" if query else place


def _may_be_shown(pair: str) -> bool:
    """Whether it is an option of libpq's, and none that is a password."""
    name, equals, _ = pair.partition("=")
    return bool(equals) and unquote(name) not in ("password", "sslpassword")
