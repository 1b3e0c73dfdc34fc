"""A vendor's settings: one table of headrace.toml as one frozen dataclass, credentials apart.

    [vendors.amplitude]
    api_key_env = "AMPLITUDE_API_KEY"     # the environment variable that holds it
    region = "eu"
    endpoint = "http://127.0.0.1:9010"    # another server than the vendor's: tests, proxies

A field of type `Secret` is never in the file: NAME_env there names an environment variable. A
setting that is misspelt, of the wrong type, or an address over plain http that leaves this machine
is refused before anything is sent.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any
from urllib.parse import urlsplit

__all__ = ["Secret", "VendorError", "base_url", "build", "one_of"]

# Such text is the same in JSON and in a header, so it is found wherever it might be shown.
_CREDENTIAL = re.compile(r"[A-Za-z0-9._~+/=:@!*$,;|-]+")
# As variables are mostly named.
_VARIABLE = re.compile(r"[A-Z][A-Z0-9_]*")
_WORDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text"}


class VendorError(Exception):
    """A vendor can't be used with these settings; the text names the setting and the remedy."""


class Secret:
    """Text that is sent but never shown, neither by repr nor by str."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text itself, for the wire."""
        return self._text

    def __repr__(self) -> str:
        return "Secret(…)"

    def __bool__(self) -> bool:
        return bool(self._text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._text == self._text

    def __hash__(self) -> int:
        return hash(self._text)


def build(kind: type, name: str, table: Mapping[str, Any], environ: Mapping[str, str]) -> Any:
    """[vendors.NAME] as a `kind`, a frozen dataclass of Secret, str, int, float and bool.

    A field without a default is required. Raises VendorError.
    """
    known = {field.name: field for field in fields(kind)}
    types = {field.name: str(field.type) for field in fields(kind)}
    written = {n + "_env" if types[n] == "Secret" else n: n for n in known}
    where = f"vendors.{name}"
    values: dict[str, Any] = {}
    for setting, value in table.items():
        if types.get(setting) == "Secret":
            raise VendorError(
                f"{where}.{setting} must not be in the file: put it into an environment variable "
                f'and name that, {setting}_env = "…"'
            )
        if setting not in written:
            raise VendorError(
                f"{where}.{setting} is no setting; known: {', '.join(sorted(written))}"
            )
        field = written[setting]
        if types[field] == "Secret":
            values[field] = _secret(f"{where}.{setting}", value, environ)
            continue
        wanted: Any = {"int": int, "float": (int, float), "bool": bool}.get(types[field], str)
        if not isinstance(value, wanted) or isinstance(value, bool) != (wanted is bool):
            raise VendorError(f"{where}.{setting} = {value!r} must be {_WORDS[types[field]]}")
        values[field] = value
    for setting, field in written.items():
        if field not in values and known[field].default is MISSING:
            raise VendorError(f"{where} needs {setting}")
    try:
        return kind(**values)
    except VendorError as error:
        raise VendorError(f"{where}.{error}") from None


def _secret(where: str, variable: object, environ: Mapping[str, str]) -> Secret:
    if not isinstance(variable, str) or not variable:
        raise VendorError(f"{where} must be the name of an environment variable")
    text = environ.get(variable, "")
    if not text and not _VARIABLE.fullmatch(variable):
        # It may be the credential, so it is not said.
        raise VendorError(
            f"{where} must be the name of an environment variable that is set; where the "
            "credential itself stands there, put it into a variable"
        )
    if not text:
        raise VendorError(f"{where}: the environment variable {variable} is not set")
    if not _CREDENTIAL.fullmatch(text):
        # What it holds is not said: it may be a credential with a line break behind it.
        raise VendorError(
            f"{where}: {variable} holds characters that no credential has (spaces, quotes, …)"
        )
    return Secret(text)


def one_of(setting: str, value: str, choices: Mapping[str, str]) -> str:
    """What a setting chooses. Raises VendorError, naming the choices."""
    try:
        return choices[value]
    except KeyError:
        raise VendorError(
            f"{setting} = {value!r} must be one of {', '.join(sorted(choices))}"
        ) from None


def base_url(setting: str, url: str) -> str:
    """An address without a slash at its end. Raises VendorError unless it is https or loopback."""
    try:
        parts = urlsplit(url)
        host = parts.hostname
        _ = parts.port
    except ValueError:
        host = None
    if not host or not url.isascii() or not url.isprintable() or " " in url:
        raise VendorError(f"{setting} must be an address, as in https://host/path")
    if parts.username is not None or parts.query or parts.fragment:
        raise VendorError(f"{setting} must be an address without user, query and fragment")
    if parts.scheme != "https" and not (parts.scheme == "http" and _loopback(host)):
        raise VendorError(
            f"{setting} = {url!r} must be https: plain http is for this machine only (127.0.0.1)"
        )
    return url.rstrip("/")


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
