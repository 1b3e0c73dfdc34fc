"""How commands say how many, how long, and which database."""

from __future__ import annotations

from urllib.parse import parse_qsl, urlencode, urlsplit

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
    """The URL as it may be kept and shown; libpq asks PGPASSWORD and ~/.pgpass for the rest."""
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    query = [(k, v) for k, v in parse_qsl(parts.query) if k not in ("password", "sslpassword")]
    netloc = user.partition(":")[0] + at + host
    return parts._replace(netloc=netloc, query=urlencode(query)).geturl()
