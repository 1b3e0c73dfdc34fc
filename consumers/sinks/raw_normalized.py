"""The view over raw events: what most questions ask for, taken out of their JSON.

It comes with every stream of `headrace.v1.RawEvent`, beside its table: `raw` and `raw_normalized`.

    event        data.event; for Segment's other calls their type: page, identify, …
    deviceId     data.deviceId, else anonymousId, else context.device.id
    userId       data.userId
    category     data.properties.category, else data.category
    productName  data.properties.productName
    type, name   data.type, data.name: Segment's
    properties   all of them, as JSON

Columns are spelled as in the JSON and are not quoted, so that one query reads them in both
databases: PostgreSQL folds them to lower case and finds them so.

Rules: what is missing is null; and no event makes the view fail for the others. What a database
does not take as JSON although it is (NUL and halves of surrogate pairs in text, numbers beyond
measure) is read without it; where that does not help, these columns are null.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from psycopg import sql

from consumers.sinks.clickhouse_types import quote
from ingest.streams import Stream

__all__ = ["MARK", "View", "clickhouse", "postgres"]

# What the comment of a view of ours begins with; a view without it is somebody else's.
MARK = "made by headrace migrate"

# Escapes one by one from the left: (those that stay), or those that go. Both databases put the
# first group in place of the whole.
_PAIR = r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
_OTHER = r"\\[^u]|\\u[1-9a-cA-CeEfF]|\\u[dD][0-7]|\\u0[^0]|\\u00[^0]|\\u000[^0]"
_HALF = r"\\u[dD][89a-fA-F][0-9a-fA-F]{2}"
_ESCAPES = rf"({_PAIR}|{_OTHER})|{_HALF}|\\u0000"
# An exponent of three digits or more.
_EXPONENTS = r"([0-9])[eE][+-]?[0-9]{3,}"

# A cast to jsonb raises what pg_input_is_valid() can't foresee (nesting beyond the stack), and is
# older than that.
_POSTGRES = """\
CREATE OR REPLACE FUNCTION headrace_json(data text) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE STRICT AS $$
BEGIN
    RETURN data::jsonb;
EXCEPTION WHEN OTHERS THEN
    BEGIN
        RETURN regexp_replace(
            regexp_replace(data, :escapes, '\\1', 'g'), :exponents, '\\1', 'g')::jsonb;
    EXCEPTION WHEN OTHERS THEN
        RETURN NULL;
    END;
END $$;
CREATE OR REPLACE VIEW :view AS
SELECT
    raw.:event_id AS event_id,
    raw.:timestamp AS timestamp,
    raw.:source AS source,
    coalesce(nullif(doc ->> 'event', ''), doc ->> 'type',
        substring(raw.:content_type FROM 'segment=([a-z]+)')) AS event,
    coalesce(nullif(doc ->> 'deviceId', ''), nullif(doc ->> 'anonymousId', ''),
        doc #>> '{context,device,id}') AS deviceId,
    doc ->> 'userId' AS userId,
    coalesce(doc #>> '{properties,category}', doc ->> 'category') AS category,
    doc #>> '{properties,productName}' AS productName,
    doc ->> 'type' AS type,
    doc ->> 'name' AS name,
    doc -> 'properties' AS properties
FROM :table AS raw, LATERAL headrace_json(raw.:data) AS doc;
COMMENT ON VIEW :view IS :comment;
"""

_CLICKHOUSE = """\
CREATE OR REPLACE VIEW :view AS
WITH
    replaceRegexpAll(replaceRegexpAll(raw.:data, :escapes, '\\\\1'), :exponents, '\\\\1') AS mended,
    multiIf(JSONType(raw.:data) = 'Object', raw.:data,
        JSONType(mended) = 'Object', mended, '') AS doc,
    JSONExtract(doc, 'Tuple(event Nullable(String), type Nullable(String), name Nullable(String),
        deviceId Nullable(String), anonymousId Nullable(String), userId Nullable(String),
        category Nullable(String), properties Nullable(String))') AS top
SELECT
    raw.:event_id AS event_id,
    raw.:timestamp AS timestamp,
    raw.:source AS source,
    coalesce(nullIf(top.event, ''), top.type,
        nullIf(extract(raw.:content_type, 'segment=([a-z]+)'), '')) AS event,
    coalesce(nullIf(top.deviceId, ''), nullIf(top.anonymousId, ''),
        JSONExtract(doc, 'context', 'device', 'id', 'Nullable(String)')) AS deviceId,
    top.userId AS userId,
    coalesce(JSONExtract(ifNull(top.properties, ''), 'category', 'Nullable(String)'),
        top.category) AS category,
    JSONExtract(ifNull(top.properties, ''), 'productName', 'Nullable(String)') AS productName,
    top.type AS type,
    top.name AS name,
    top.properties AS properties
FROM :table AS raw
COMMENT :comment;
"""


@dataclass(frozen=True, slots=True)
class View:
    """A view: the statements that make it, or put it in place of an older one, and the comment by
    which it is known to be this one."""

    name: str
    sql: str
    comment: str


def postgres(stream: Stream) -> View | None:
    """The view for PostgreSQL and TimescaleDB; none for streams of other messages."""
    return _view(stream, _POSTGRES, _identifier, _text)


def clickhouse(stream: Stream) -> View | None:
    """The view for ClickHouse and chDB; none for streams of other messages."""
    return _view(stream, _CLICKHOUSE, quote, lambda text: _text(text.replace("\\", "\\\\")))


def _view(
    stream: Stream,
    template: str,
    identifier: Callable[[str], str],
    text: Callable[[str], str],
) -> View | None:
    if stream.descriptor.full_name != "headrace.v1.RawEvent":
        return None
    # PostgreSQL cuts names at 63 bytes.
    name = f"{stream.table[:52]}_normalized"
    values = {
        ":event_id": identifier(stream.column("event_id")),
        ":timestamp": identifier(stream.column("received_at")),
        ":source": identifier(stream.column("source")),
        ":content_type": identifier(stream.column("content_type")),
        ":data": identifier(stream.column("data")),
        ":table": identifier(stream.table),
        ":view": identifier(name),
        ":escapes": text(_ESCAPES),
        ":exponents": text(_EXPONENTS),
    }
    made = template
    for place, value in values.items():
        made = made.replace(place, value)
    comment = f"{MARK}, {hashlib.sha256(made.encode()).hexdigest()[:12]}"
    return View(name, made.replace(":comment", text(comment)), comment)


def _identifier(name: str) -> str:
    return sql.Identifier(name).as_string()


def _text(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
