"""/openapi.json: this collector's interface as OpenAPI 3.1, made of its doors, streams and limits.

What is not in force is not in it: without keys there is no 401, without /metrics no such path.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ingest.collector import answers
from ingest.collector.doors import Door
from ingest.collector.log_bodies import JSON_TYPES, LINES_TYPES
from ingest.collector.pages import PROJECTS, SCRIPT
from ingest.collector.schemas import Schema, array_or_one, of_stream
from ingest.collector.settings import CollectSettings
from ingest.streams import Stream

__all__ = ["describe"]

_ERRORS = {
    400: "the body, or a parameter, can't be read",
    401: "no key, or none that is known",
    403: "the key, or the page's origin, may not do this",
    408: "the body took too long",
    413: "the body, or what it unpacks to, is too large",
    415: "the Content-Type or the Content-Encoding is none of those that are taken",
    429: "the key's rate or daily quota is used up; come back after Retry-After seconds",
    503: "nothing was stored: the spool is full, or too much is under way; Retry-After says when",
    504: "with ack=kafka: safe on disk, but not in Kafka within the time; `accepted` and "
    "`refused` say of which records",
}


def describe(
    doors: Mapping[str, Door],
    streams: Mapping[str, Stream],
    settings: CollectSettings,
    with_keys: bool,
) -> dict[str, Any]:
    """The document."""
    messages: dict[str, Schema] = {}
    paths = {
        path: {"post": _post(path, door, _bodies(path, door, streams, messages), with_keys)}
        for path, door in doors.items()
    }
    paths |= {path: {"get": operation} for path, operation in _pages(settings).items()}
    security = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "basic": {"type": "http", "scheme": "basic", "description": "the key as the user name"},
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Headrace collector",
            "version": "1",
            "description": (
                "An answer of 202 (of 200, at Segment's paths) says that the accepted records are "
                "on disk here, synced, or with ack=kafka in Kafka. Limits: a body of "
                f"{settings.max_body_bytes} bytes, {settings.max_decoded_bytes} unpacked, "
                f"{settings.max_records} records, each of {settings.max_record_bytes} bytes and "
                f"{settings.max_depth} levels."
            ),
        },
        "paths": dict(sorted(paths.items())),
        "components": {
            "schemas": {"Accepted": _ACCEPTED, "Error": _ERROR, "Success": _SUCCESS, **messages},
            **({"securitySchemes": security} if with_keys else {}),
        },
    }


_TEXT = {"type": "string"}
_REFUSED = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["index", "code", "reason"],
        "properties": {
            "index": {"type": "integer", "minimum": 0},
            "code": _TEXT,
            "reason": _TEXT,
        },
    },
}
_ACCEPTED = {
    "type": "object",
    "required": ["accepted", "refused"],
    "properties": {"accepted": {"type": "integer", "minimum": 0}, "refused": _REFUSED},
}
_SUCCESS = {
    "type": "object",
    "required": ["success"],
    "properties": {"success": {"type": "boolean"}, "refused": _REFUSED},
}
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["code", "reason"],
            "properties": {"code": _TEXT, "reason": _TEXT},
        }
    },
}


_SETTINGS: Schema = {
    "type": "object",
    "required": ["integrations", "plan", "metrics", "enabledMiddleware", "remotePlugins"],
    "properties": {
        "integrations": {
            "type": "object",
            "required": ["Segment.io"],
            "properties": {
                "Segment.io": {
                    "type": "object",
                    "required": ["apiKey", "apiHost", "protocol"],
                    "properties": {
                        "apiKey": _TEXT,
                        "apiHost": _TEXT,
                        "protocol": {"type": "string", "enum": ["http", "https"]},
                    },
                    "additionalProperties": False,
                }
            },
            "additionalProperties": False,
        },
        "plan": {"type": "object"},
        "metrics": {"type": "object"},
        "enabledMiddleware": {"type": "object"},
        "remotePlugins": {"type": "array"},
    },
}


# As msgspec counts: characters. Ids of events are Segment's and Sparrow's own.
_ID: Schema = {"type": "string", "minLength": 1, "maxLength": 200, "pattern": "^[^\\u0000]*$"}
_EVENT: Schema = {
    "type": "object",
    "required": ["event", "deviceId"],
    "properties": {
        "event": {"type": "string", "minLength": 1},
        "deviceId": {"type": "string", "minLength": 1},
        "userId": {"type": ["string", "null"]},
        "eventId": {"anyOf": [_ID, {"type": "null"}]},
        "properties": {"type": ["object", "null"]},
    },
}
_EVENTS: Schema = {
    "type": "object",
    "required": ["events"],
    "properties": {
        "writeKey": {"type": ["string", "null"]},
        "events": {"type": "array", "items": _EVENT},
        "event": False,
    },
}
_MESSAGE: Schema = {
    "type": "object",
    "properties": {"messageId": {"anyOf": [_ID, {"type": "null"}]}, "writeKey": {"type": "string"}},
}
_BATCH: Schema = {
    "type": "object",
    "required": ["batch"],
    "properties": {
        "batch": {
            "type": "array",
            "items": {
                "allOf": [_MESSAGE],
                "required": ["type"],
                "properties": {"type": {"type": "string", "minLength": 1}},
            },
        },
        "writeKey": {"type": "string"},
    },
}


def _bodies(
    path: str, door: Door, streams: Mapping[str, Stream], messages: dict[str, Schema]
) -> dict[str, Schema]:
    """What may be sent, by Content-Type."""
    schema: Schema = {}
    if door.kind == "logs":
        schema = array_or_one(of_stream(streams[door.stream], messages))
    elif door.kind == "sparrow":
        schema = {"anyOf": [_EVENT, {"type": "array", "items": _EVENT}, _EVENTS]}
    elif door.kind == "segment" and door.needs_key:
        schema = _BATCH if path.rpartition("/")[2] in ("batch", "import", "b") else _MESSAGE
    found: dict[str, Schema] = {}
    for kind in door.content_types:
        if kind in JSON_TYPES:
            found[kind] = schema
        elif kind in LINES_TYPES:
            found[kind] = {"type": "string", "description": "objects as above, one a line"}
        else:
            found[kind] = {
                "type": "string",
                "format": "binary",
                "description": "messages, each behind its length as a varint",
            }
    return found


def _post(path: str, door: Door, bodies: Mapping[str, Schema], with_keys: bool) -> dict[str, Any]:
    of_records = door.answer is answers.of_records
    needs_key = with_keys and door.needs_key
    responses: dict[str, Any] = {}
    if of_records:
        responses["202"] = _response("the good records are safe", "Accepted")
        responses["422"] = _response("no record is good", "Accepted")
    else:
        responses["200"] = _response("the good messages are safe", "Success")
    for status, text in _ERRORS.items():
        if (status in (401, 429) and not needs_key) or (status == 400 and not of_records):
            continue
        responses[str(status)] = _response(text, "Error")
    responses["504"] = {
        "description": _ERRORS[504],
        "content": {"application/json": {"schema": {"allOf": [_ref("Error"), _ref("Accepted")]}}},
    }
    if not of_records:
        responses["400"] = {
            "description": "the body can't be read, or no message is good",
            "content": {
                "application/json": {"schema": {"anyOf": [_ref("Success"), _ref("Error")]}}
            },
        }
    parameters: list[dict[str, Any]] = [
        {
            "name": "ack",
            "in": "query",
            "description": "What the answer waits for: the disk here, or Kafka.",
            "schema": {"type": "string", "enum": ["disk", "kafka"], "default": "disk"},
        },
        {
            "name": "Content-Encoding",
            "in": "header",
            "schema": {"type": "string", "enum": ["gzip", "zstd", "identity"]},
        },
    ]
    if door.takes_idempotency_key:
        parameters.append(
            {
                "name": "Idempotency-Key",
                "in": "header",
                "description": "The same body again, with the same key, is stored once.",
                "schema": {"type": "string", "pattern": "^[!-~]{1,200}$"},
            }
        )
    return {
        "summary": door.summary,
        "operationId": path.strip("/").replace("/", "_"),
        "parameters": parameters,
        "requestBody": {
            "required": True,
            "content": {kind: {"schema": schema} for kind, schema in bodies.items()},
        },
        "responses": dict(sorted(responses.items())),
        **({"security": [{"bearer": []}, {"basic": []}]} if needs_key else {}),
    }


def _pages(settings: CollectSettings) -> dict[str, Any]:
    anything = {"application/json": {"schema": {"type": "object"}}}
    found: dict[str, Any] = {
        "/healthz": {
            "summary": "Whether the process serves",
            "responses": {
                "200": {"description": "it does", "content": anything},
                "503": {"description": "it can't be mended but by a restart", "content": anything},
            },
        },
        "/readyz": {
            "summary": "Whether records are accepted",
            "responses": {
                "200": {"description": "they are", "content": anything},
                "503": {"description": "they are not; problem says why", "content": anything},
            },
        },
        "/openapi.json": {
            "summary": "This document",
            "responses": {"200": {"description": "it", "content": anything}},
        },
    }
    found[f"{PROJECTS}{{writeKey}}/settings"] = {
        "summary": "What Segment's browser library asks for first: that it sends to here",
        "parameters": [
            {
                "name": "writeKey",
                "in": "path",
                "required": True,
                "description": "Any; whether it is known is asked when it sends.",
                "schema": {"type": "string", "pattern": "^[^/]+$"},
            }
        ],
        "responses": {
            "200": {
                "description": "the settings",
                "content": {"application/json": {"schema": _SETTINGS}},
            },
            "404": _response("there is no key in the path", "Error"),
        },
    }
    if SCRIPT.is_file():
        found["/sparrow.js"] = {
            "summary": "The script for web pages",
            "parameters": [{"name": "If-None-Match", "in": "header", "schema": _TEXT}],
            "responses": {
                "200": {"description": "it", "content": {"text/javascript": {"schema": _TEXT}}},
                "304": {"description": "it is still the one that has this ETag"},
            },
        }
    if settings.metrics is None and settings.workers == 1:
        found["/metrics"] = {
            "summary": "Metrics for Prometheus",
            "responses": {"200": {"description": "them", "content": {"text/plain": {}}}},
        }
    return found


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _response(text: str, schema: str) -> dict[str, Any]:
    return {
        "description": text,
        "content": {"application/json": {"schema": _ref(schema)}},
    }
