"""The operator's side: faults, what was stored, the clock, and a page of plain HTML for them.

Whoever can reach the port may use it; that is this machine. A page of another site is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from html import escape
from typing import Any
from urllib.parse import parse_qsl

import orjson

from headrace.vendors.faults import NO_FAULTS, FaultError, Faults
from headrace.vendors.model import Reply, json_reply
from headrace.vendors.place import Place, Vendors
from headrace.vendors.shelf import Wanted

__all__ = ["answer"]

_MOST_ROWS = 1_000_000
_TEXTS = ("key", "name", "user")
_TIMES = ("time_from", "time_until", "came_from", "came_until")


class _Wrong(Exception):
    """It can't be done; the text is the answer."""


def answer(vendors: Vendors, scope: Mapping[str, Any], body: bytes) -> Reply:  # noqa: PLR0911 (one for each page)
    """The answer to a request that is no vendor's."""
    method, path = scope["method"], scope["path"].rstrip("/")
    if not _same_site(scope):
        return json_reply(403, {"error": "not from another site"})
    kind, _, vendor = path.removeprefix("/").partition("/")
    try:
        if path == "" and method == "GET":
            return Reply(200, _page(vendors).encode(), "text/html; charset=utf-8")
        if path == "/clock":
            return _clock(vendors, method, body)
        if kind not in ("faults", "stored") or (vendor and vendor not in vendors.places):
            known = ", ".join(vendors.places)
            raise _Wrong(f"there is /, /clock, and /faults/… and /stored/… of {known}")
        if not vendor:
            if method != "GET":
                raise _Wrong("GET only; the others are for one vendor")
            return json_reply(
                200, {name: _told(kind, place) for name, place in vendors.places.items()}
            )
        if kind == "faults":
            return _faults(vendors.places[vendor], method, scope, body)
        return _stored(vendors.places[vendor], method, scope)
    except (_Wrong, FaultError) as error:
        return json_reply(404 if "there is /" in str(error) else 400, {"error": str(error)})


def _told(kind: str, place: Place) -> dict[str, Any]:
    return asdict(place.faults) if kind == "faults" else place.shelf.summary()


def _same_site(scope: Mapping[str, Any]) -> bool:
    headers = {name.lower(): value for name, value in scope["headers"]}
    origin = headers.get(b"origin")
    return origin is None or origin.partition(b"://")[2] == headers.get(b"host")


def _clock(vendors: Vendors, method: str, body: bytes) -> Reply:
    if method == "POST":
        table = _table(body)
        seconds = table.get("advance_s")
        if set(table) != {"advance_s"} or not isinstance(seconds, int | float) or seconds < 0:
            raise _Wrong('it must be {"advance_s": SECONDS}, 0 or more')
        vendors.advanced_us += round(seconds * 1e6)
    elif method != "GET":
        raise _Wrong("GET or POST")
    return json_reply(200, {"now_us": vendors.now_us(), "advanced_us": vendors.advanced_us})


def _faults(place: Place, method: str, scope: Mapping[str, Any], body: bytes) -> Reply:
    if method == "PUT":
        place.set(Faults.read(_table(body)))
    elif method == "DELETE":
        place.set(NO_FAULTS)
    elif method == "POST":
        # The page's form, which can't say PUT.
        place.set(_from_form(body))
        return Reply(303, b"", "text/plain", (("location", "/"),))
    elif method != "GET":
        raise _Wrong("GET, PUT or DELETE")
    return json_reply(200, asdict(place.faults))


def _table(body: bytes) -> dict[str, Any]:
    try:
        table = orjson.loads(body)
    except ValueError:
        table = None
    if not isinstance(table, dict):
        raise _Wrong("the body must be a JSON object")
    return table


def _from_form(body: bytes) -> Faults:
    given = dict(parse_qsl(body.decode(errors="replace")))
    table: dict[str, Any] = {}
    for field in fields(Faults):
        text = given.pop(field.name, "")
        kind: type = type(field.default)
        try:
            table[field.name] = text == "on" if kind is bool else kind(text or field.default)
        except ValueError:
            raise _Wrong(f"{field.name}: {text!r} is no number") from None
    if given:
        raise _Wrong(f"{', '.join(given)}: no fault")
    return Faults.read(table)


def _stored(place: Place, method: str, scope: Mapping[str, Any]) -> Reply:
    if method == "DELETE":
        place.shelf.clear()
    elif method != "GET":
        raise _Wrong("GET or DELETE")
    query = dict(parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True))
    offset, limit = _number(query, "offset", 0), _number(query, "limit", 1000)
    if offset < 0 or not 0 <= limit <= _MOST_ROWS:
        raise _Wrong(f"offset must be 0 at least, limit 0 to {_MOST_ROWS}")
    listed = query.pop("list", "")
    query.pop("offset", None)
    query.pop("limit", None)
    values: dict[str, Any] = {name: query.pop(name) for name in _TEXTS if name in query}
    values |= {name: _number(query, name, 0) for name in _TIMES if name in query}
    unknown = set(query) - set(_TIMES)
    if unknown or listed not in ("", "keys", "events"):
        raise _Wrong(f"not known: {', '.join(unknown) or 'list=' + listed}")
    wanted = Wanted(**values)
    told = place.shelf.summary(wanted)
    if listed == "keys":
        told["list"] = place.shelf.keys(wanted, offset, limit)
    elif listed == "events":
        told["list"] = place.shelf.rows(wanted, offset, limit)
    return json_reply(200, told)


def _number(query: Mapping[str, str], name: str, default: int) -> int:
    try:
        return int(query.get(name, default))
    except ValueError:
        raise _Wrong(f"{name} must be a whole number") from None


# -- the page --------------------------------------------------------------------------------------

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem }
section { border-top: 1px solid #8886; padding: .5rem 0 1rem }
form { display: flex; flex-wrap: wrap; gap: .5rem 1rem; align-items: end }
label { display: grid } input[type=number], select { width: 7rem } .on { background: #fc08 }
form + form { margin-top: .5rem }
"""
_LABELS = {
    "down": "down", "slow_s": "slow, seconds", "revoked": "key revoked",
    "over_quota": "over quota", "quiet": "bad events: 200", "vague": "which event: unsaid",
    "retry_after_s": "Retry-After, s",
    "throttle": "429, share", "fail": "500, share", "fail_after": "500 after taking, share",
    "reset_after": "cut after taking, share", "drop": "lose events, share", "seed": "seed",
}  # fmt: skip


def _page(vendors: Vendors) -> str:
    sections = "".join(_section(name, place) for name, place in vendors.places.items())
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        "<meta name=viewport content=width=device-width><title>Stand-in vendors</title>"
        f"<style>{_STYLE}</style><h1>Stand-in vendors</h1>"
        "<p>Shares are 0 to 1. <a href=/>Look again</a>; as JSON: <a href=/stored>/stored</a>, "
        f"<a href=/faults>/faults</a>.</p>{sections}</html>"
    )


def _section(name: str, place: Place) -> str:
    told = place.shelf.summary()
    shown = ", ".join(
        f"{label} {told[label]:,}" for label in ("count", "keys", "doubled", "repeated", "dropped")
    )
    answers = ", ".join(f"{how}: {count:,}" for how, count in sorted(told["answers"].items()))
    lost = ", ".join(f"{why}: {count:,}" for why, count in sorted(told["lost"].items()))
    inputs = "".join(_input(field.name, getattr(place.faults, field.name))
                     for field in fields(Faults))  # fmt: skip
    return (
        f"<section><h2>{escape(name)}</h2><p>{shown}<br>answers {escape(answers) or 'none'}"
        f"{'<br>lost ' + escape(lost) if lost else ''}</p>"
        f"<form method=post action=/faults/{escape(name)}>{inputs}<button>Set</button></form>"
        f"<form method=post action=/faults/{escape(name)}><button>Mend</button></form></section>"
    )


def _input(name: str, value: Any) -> str:
    label, marked = escape(_LABELS[name]), " class=on" if value else ""
    if isinstance(value, bool):
        field = f"<input type=checkbox name={name}{' checked' if value else ''}>"
    elif isinstance(value, str):
        options = "".join(
            f'<option value="{way}"{" selected" if way == value else ""}>{way or "no"}</option>'
            for way in ("", "reset", "503")
        )
        field = f"<select name={name}>{options}</select>"
    else:
        step = "1" if isinstance(value, int) else "any"
        field = f"<input type=number name={name} value={value:g} step={step}>"
    return f"<label{marked}>{label}{field}</label>"
