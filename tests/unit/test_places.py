"""A database's URL: what is shown and kept of it has no password, and what is no URL is refused."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import Mock

import pytest
from psycopg import pq

from consumers.batch import Partition
from consumers.destinations import destination
from consumers.errors import Systemic
from consumers.ledger.audit import Line
from consumers.sinks import clickhouse_client
from headrace.cli import audit_repairs
from headrace.cli.places import place
from headrace.config import Config
from headrace.doctor.readers import _unfit
from headrace.readers import _readers
from headrace.words import without_password
from ingest.streams import BUILT_IN

CONFIG = Config({}, {}, Path())
STREAM = BUILT_IN["device_state"]
# Parts of a password, on both sides of what is special in it.
LEFT, RIGHT = "secret", "hidden"
SPECIAL = "#?/[]@%:&=+ ℀"


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "clickhouse", "clickhouses"])
@pytest.mark.parametrize(
    "form",
    [
        "{scheme}://me:{password}@db:5432/prod",
        "{scheme}://db/prod?user=me&password={password}",
        "{scheme}://me@db/prod?sslpassword={password}&user=you",
        "{scheme}:me:{password}@db:5432/prod",
    ],
)
# Before a slash it could be a port.
@pytest.mark.parametrize("left", [LEFT, "5432"])
def test_no_part_of_a_password_is_shown_or_kept_whatever_is_special_in_it(
    scheme: str, form: str, left: str
) -> None:
    for special in SPECIAL:
        url = form.format(scheme=scheme, password=f"{left}{special}{RIGHT}")
        try:
            said = f"{place(CONFIG, url).name} {destination(url).where}"
        except Systemic as error:
            said = str(error)
            # Nor in a traceback.
            assert error.__cause__ is None
            assert error.__suppress_context__ or error.__context__ is None
        assert LEFT not in said
        assert RIGHT not in said


@pytest.mark.parametrize("scheme", ["postgres", "clickhouse"])
@pytest.mark.parametrize("special", "#?/[]℀")
def test_what_would_be_read_as_another_url_is_refused_with_how_to_write_it(
    scheme: str, special: str
) -> None:
    with pytest.raises(Systemic, match=r"can't be used: write .* as %2F \(/\)"):
        destination(f"{scheme}://me:a{special}b@db/prod")


@pytest.mark.parametrize(
    "url",
    [
        "postgres://me:a%23b%3F%2F%5B%5D%40%25@[::1]:5432/prod",
        "postgres://a,b:5433/prod?target_session_attrs=read-write&user=me%40tenant",
        "postgres:///prod?host=/run/postgresql&user=me",
        "postgres://a,b/prod",
        "postgres://db/prod?user=me@tenant",
        "clickhouse://me:a@b%25@db:8123/prod",
        "chdb:./a [1]#2/me@home?",
        "chdb:///data/a@b",
    ],
)
def test_what_can_be_written_is_taken(url: str) -> None:
    assert destination(url).where


@pytest.mark.parametrize(
    ("url", "kept"),
    [
        # libpq asks PGPASSWORD and ~/.pgpass; nobody asks for that of ClickHouse.
        ("postgres://me:pw@db/prod", "postgres://me@db/prod"),
        ("clickhouse://me:pw@db:8123/prod", "clickhouse://me:PASSWORD@db:8123/prod"),
        ("clickhouses://me:pw@db/prod", "clickhouses://me:PASSWORD@db/prod"),
        ("clickhouse://me@db/prod", "clickhouse://me@db/prod"),
        ("postgresql:///db?host=/run/pg&password=x", "postgresql:///db?host=/run/pg"),
        ("postgresql://?service=x", "postgresql://?service=x"),
        ("clickhouse://db/prod", "clickhouse://db/prod"),
        # To libpq a + is one, and no space.
        (
            "postgres://db/p?application_name=a%20+&password=x",
            "postgres://db/p?application_name=a%20+",
        ),
        # Ours are in the place of these, whatever they say.
        ("postgres://db/p?options=-c%20my.key%3Dhunter2", "postgres://db/p"),
        # What is a name, and no URL.
        ("amplitude", "amplitude"),
        ("chdb:/data/a?b", "chdb:/data/a?b"),
    ],
)
def test_a_command_that_is_shown_works_once_the_password_is_put_in(url: str, kept: str) -> None:
    assert without_password(url) == kept


@pytest.mark.parametrize("form", ["{}", "sslmode=require&{}&port=5433"])
@pytest.mark.parametrize(
    "option",
    ["oauth_client_secret", "%6fauth_client_secret", "scram_client_key", "scram_server_key",
     "sslpassword", "options", "sslkeylogfile", "of_the_next_libpq", "Password"],
)  # fmt: skip
def test_no_option_that_may_be_a_secret_is_shown(option: str, form: str) -> None:
    kept = without_password(f"postgres://me@db/prod?{form.format(f'{option}=hunter2')}")
    assert kept == f"postgres://me@db/prod{'' if form == '{}' else '?sslmode=require&port=5433'}"


def test_nothing_is_shown_that_libpq_itself_would_hide_or_takes_for_testing_only() -> None:
    options = {one.keyword.decode(): one.dispchar.decode() for one in pq.Conninfo.get_defaults()}
    assert options["password"] == "*"
    hidden = {name for name, display in options.items() if display} | {"options"}
    for name in options:
        kept = without_password(f"postgres://db/prod?{name}=x")
        assert (kept == "postgres://db/prod") == (name in hidden), name


@pytest.mark.parametrize(
    "option",
    ["host=b", "port=5433", "dbname=b", "hostaddr=10.0.0.1", "user=b", "service=b",
     "target_session_attrs=read-write", "sslrootcert=/etc/b.pem"],
)  # fmt: skip
def test_what_tells_two_databases_apart_stays(option: str) -> None:
    assert without_password(f"postgres://?{option}&password=x") == f"postgres://?{option}"


def test_of_a_clickhouse_no_option_is_shown_for_none_is_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[dict[str, object]] = []

    def get_client(**given: object) -> Mock:
        asked.append(given)
        return Mock(server_settings={})

    monkeypatch.setattr(clickhouse_client.clickhouse_connect, "get_client", get_client)
    for url in ("clickhouse://me:pw@db/prod", "clickhouse://me:pw@db/prod?user=you&token=hunter2"):
        assert place(CONFIG, url).name == "clickhouse://me:PASSWORD@db/prod"
        clickhouse_client.connect(url)
    assert asked[0] == asked[1]


def test_what_is_shown_of_a_place_is_shown_of_it_again() -> None:
    """A replay's record of before may have more in it, and is to be the same place."""
    for url in (
        "clickhouse://me:pw@db/prod?a=b",
        "postgres://me:pw@db/p?options=x&sslmode=require",
    ):
        assert without_password(without_password(url)) == without_password(url)


def test_every_command_that_is_shown_of_a_clickhouse_says_where_its_password_goes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url, shown = "clickhouse://me:pw@db:8123/prod", "--to clickhouse://me:PASSWORD@db:8123/prod"
    name = place(CONFIG, url).name
    (reader,) = _readers(CONFIG, {name: url}, [STREAM], None)
    assert shown in reader.start
    missing = "the table x does not exist; create it with `headrace migrate`"
    assert shown in _unfit(name, url, missing, in_use=True).do
    finding = Mock(removal=None, place=(Partition(STREAM.topic, 0), 7))
    line = Mock(spec=Line, destination=name, stream=STREAM.name, hour=1, findings=[finding])
    monkeypatch.setattr(audit_repairs, "_published", lambda _config, _places: None)
    (command,) = audit_repairs.repairs(CONFIG, {name: url}, None, [line])
    assert shown in command
