"""[trace]: what it may say, and the sentence for what it may not."""

from __future__ import annotations

from pathlib import Path

import pytest

from consumers.trace.allowlist import TraceSettings, names_for
from consumers.vendors import VENDORS
from headrace.config import ConfigError, load

WHOLE = """
[trace]
user_id = "hash"
url_parameters = ["page"]
scrub = ["mail", "token"]
[trace.patterns]
customer = 'KD-[0-9]{8}'
[trace.events."purchase product"]
vendors = ["ga4", "amplitude"]
names = { ga4 = "purchase" }
[trace.events."purchase product".properties]
category = "string"
price = { type = "number", vendors = ["ga4"], rename = { ga4 = "value" } }
plan = { type = "string", one_of = ["free", "pro"], keep = ["mail", "customer"] }
"""


def loaded(tmp_path: Path, text: str, **environ: str) -> TraceSettings:
    file = tmp_path / "headrace.toml"
    file.write_text(text, encoding="utf-8")
    return load(file, kafka="k:1", environ=environ).trace


def test_without_the_section_nothing_may_leave(tmp_path: Path) -> None:
    assert loaded(tmp_path, "") == TraceSettings()
    assert not TraceSettings().events


def test_what_the_file_says_is_what_trace_knows(tmp_path: Path) -> None:
    found = loaded(tmp_path, WHOLE, HEADRACE_TRACE_KEY="long and secret")
    assert (found.user_id, found.device_id, found.hash_key) == ("hash", "keep", "long and secret")
    assert (found.scrub, found.url_parameters) == ({"mail", "token"}, {"page"})
    assert found.patterns["customer"].search("KD-12345678")
    event = found.events["purchase product"]
    assert [event.goes_to(v) for v in ("ga4", "amplitude", "heap")] == [True, True, False]
    assert names_for(event, "ga4") == {"category": "category", "price": "value", "plan": "plan"}
    assert names_for(event, "amplitude") == {"category": "category", "plan": "plan"}
    assert event.properties["plan"].one_of == ("free", "pro")


def test_the_key_is_not_shown(tmp_path: Path) -> None:
    assert "s3cret" not in repr(loaded(tmp_path, WHOLE, HEADRACE_TRACE_KEY="s3cret"))


def test_an_event_without_vendors_goes_to_every_one(tmp_path: Path) -> None:
    found = loaded(tmp_path, "[trace.events.e.properties]\na = 'string'\n")
    assert all(found.events["e"].goes_to(vendor) for vendor in VENDORS)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[trace]\nevent = 1", "trace.event is no setting; known: device_id, events,"),
        ('[trace]\nuser_id = "hide"', "trace.user_id = 'hide' must be one of keep, hash, drop"),
        ('[trace]\nscrub = ["email"]', "trace.scrub: there is no kind of personal data 'email'"),
        ('[trace]\nscrub = "mail"', "trace.scrub must be a list of text"),
        ("[trace]\nurl_parameters = [1]", "trace.url_parameters must be a list of text"),
        ("[trace]\nevents = []", "trace.events must be a section: [trace.events]"),
        ("[trace.events]\ne = 1", "trace.events.e must be a section"),
        ('[trace.events.""]', "an event's name can't be empty"),
        ('[trace.events."a b"]\nvendor = ["ga4"]', 'trace.events."a b".vendor is no setting'),
        ('[trace.events.e]\nvendors = ["ga5"]', "there is no vendor 'ga5'; there are: "),
        ("[trace.events.e]\nvendors = []", "trace.events.e.vendors is empty: name a vendor"),
        ('[trace.events.e.names]\nga5 = "x"', "trace.events.e.names: there is no vendor 'ga5'"),
        ("[trace.events.e.names]\nga4 = 1", "trace.events.e.names.ga4 = 1 must be a name"),
        ('[trace.events.e]\nvendors = ["heap"]\nnames = { ga4 = "x" }', "no vendor 'ga4'"),
        ("[trace.events.e.properties]\np = 1", "properties.p = 1 must be a type"),
        ('[trace.events.e.properties]\np = "text"', "properties.p has the unknown type 'text'"),
        ("[trace.events.e.properties]\np = {}", "properties.p needs a type; types are string,"),
        ('[trace.events.e.properties]\n"p q" = "str"', 'properties."p q" has the unknown type'),
        (
            '[trace.events.e.properties]\np = { type = "string", to = 1 }',
            "properties.p.to is no setting",
        ),
        (
            '[trace.events.e.properties]\np = { type = "integer", one_of = [1.5] }',
            "properties.p.one_of must be a list of values of the type integer",
        ),
        (
            '[trace.events.e.properties]\np = { type = "integer", one_of = [true] }',
            "one_of must be a list of values",
        ),
        (
            '[trace.events.e.properties]\np = { type = "string", keep = ["phone"] }',
            "p.keep: there is no kind of personal data or pattern 'phone'",
        ),
        (
            '[trace.events.e.properties]\na = "string"\nb = { type = "string", '
            'rename = { ga4 = "a" } }',
            "ga4 would get both 'a' and 'b' as 'a'; rename one of them",
        ),
        ("[trace.patterns]\nbad = '('", "trace.patterns.bad is no regular expression"),
        ("[trace.patterns]\nall = 'x*'", "matches nothing at all"),
        ("[trace.patterns]\nmail = 'x'", "trace.patterns.mail: the name must be"),
        ("[trace.patterns]\nBig = 'x'", "trace.patterns.Big: the name must be"),
        ("[trace.patterns]\nn = 1", "trace.patterns.n = 1 must be a regular expression"),
    ],
)
def test_what_can_not_be_names_the_file_and_the_setting(
    text: str, sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as raised:
        loaded(tmp_path, text + "\n")
    assert str(raised.value).startswith(str(tmp_path / "headrace.toml"))
    assert sentence in str(raised.value)
