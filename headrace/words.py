"""How commands say how many, how long, which database, and what strangers have written."""

from __future__ import annotations

import json
from urllib.parse import unquote, urlsplit

__all__ = [
    "counted", "json_line", "lasting", "printable", "printable_lines", "without_password",
]  # fmt: skip

_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
# What libpq takes in a URL, but secrets: what is not in here is not shown, for the next libpq may
# have another one (as it got oauth_client_secret). Not `options` either: any setting can be in it,
# and our connections have their own in its place.
_HARMLESS = frozenset(
    {
        # Which database, as whom.
        "host", "hostaddr", "port", "dbname", "user", "service", "passfile", "requirepeer",
        "target_session_attrs", "load_balance_hosts",
        # Names of files, of versions and of methods; and who gives out tokens, to which client.
        "channel_binding", "gssdelegation", "gssencmode", "gsslib", "krbsrvname",
        "max_protocol_version", "min_protocol_version", "oauth_client_id", "oauth_issuer",
        "oauth_scope", "require_auth", "ssl", "ssl_max_protocol_version",
        "ssl_min_protocol_version", "sslcert", "sslcertmode", "sslcompression", "sslcrl",
        "sslcrldir", "sslkey", "sslmode", "sslnegotiation", "sslrootcert", "sslsni",
        "application_name", "client_encoding", "connect_timeout", "fallback_application_name",
        "keepalives", "keepalives_count", "keepalives_idle", "keepalives_interval",
        "tcp_user_timeout",
    }
)  # fmt: skip


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


def printable(text: str) -> str:
    """Text that a stranger may have written, on one line of a terminal.

    As it is where it can be printed. Otherwise what can't be is written as JSON has it: it could
    move the cursor, end the line and begin one that looks like ours, or turn its direction.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _ESCAPES.get(c) or _escaped(c) for c in text)


def _escaped(character: str) -> str:
    number = ord(character)
    return f"\\u{number:04x}" if number <= 0xFFFF else f"\\U{number:08x}"


def printable_lines(text: str) -> str:
    """The same of text whose line ends are our own."""
    return "\n".join(map(printable, text.split("\n")))


def json_line(value: object) -> str:
    """As JSON that people can read, all in ASCII where that can't be printed.

    JSON escapes neither C1 controls nor what turns the direction of a line.
    """
    text = json.dumps(value, ensure_ascii=False)
    return text if text.isprintable() else json.dumps(value)


def without_password(url: str) -> str:
    """The URL of a destination as it may be kept, and shown in commands; a name as it is.

    libpq asks PGPASSWORD and ~/.pgpass for the password that is left out. Nobody asks for that of
    ClickHouse, so there PASSWORD says where to put it; and it has no options that we would use.
    """
    if ":" not in url or url.startswith("chdb:"):
        return url
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    user, colon, _ = user.partition(":")
    query: list[str] = []
    if not parts.scheme.startswith("clickhouse"):
        # As it is written: to libpq a + is no space.
        query = [pair for pair in parts.query.split("&") if _may_be_shown(pair)]
    elif colon:
        user += ":PASSWORD"
    # Not put together by urllib, which leaves out the slashes where no host is named.
    place = f"{parts.scheme}://{user}{at}{host}{parts.path}"
    return f"{place}?{'&'.join(query)}" if query else place


def _may_be_shown(pair: str) -> bool:
    """Whether it is an option of libpq's that is no secret."""
    name, equals, _ = pair.partition("=")
    return bool(equals) and unquote(name) in _HARMLESS
