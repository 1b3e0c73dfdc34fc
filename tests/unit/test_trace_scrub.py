"""The scrubber: what it finds in text, what it leaves alone, and that no text holds it up."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumers.trace.allowlist import KINDS, UTM
from consumers.trace.numbers import card_number
from consumers.trace.plain import plain
from consumers.trace.scrub import MAX_TEXT, Scrubber

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"


def scrubber(*kinds: str, **patterns: str) -> Scrubber:
    compiled = {name: re.compile(text) for name, text in patterns.items()}
    return Scrubber(kinds or KINDS, compiled, UTM)


@pytest.mark.parametrize(
    ("text", "left", "kinds"),
    [
        ("jo@example.com", "[mail]", "mail"),
        ("write to Jo.Doe+x@mail.example.co.uk.", "write to [mail].", "mail"),
        ("a@b.co", "[mail]", "mail"),
        ("jo%40example.com", "[mail]", "mail"),
        ("%6a%6f%2540example.com", "[mail]", "mail"),
        ("jö@münchen.de", "[mail]", "mail"),
        ("paid with 4111 1111 1111 1111!", "paid with [card]!", "card"),
        ("4111111111111111", "[card]", "card"),
        ("5555-5555-5555-4444", "[card]", "card"),
        ("3782 822463 10005", "[card]", "card"),
        ("4111 1111 1111 1111 12/27", "[card] 12/27", "card"),
        ("4111111111111111 0", "[card] 0", "card"),
        ("x378282246310005y", "x[card]y", "card"),
        (JWT, "[token]", "token"),
        (f"seen {JWT}, twice", "seen [token], twice", "token"),
        ("Bearer abcdefabcdef", "[token]", "token"),
        ("key sk_live_4eC39HqLyjWDarjtT1zdp7dc", "key [token]", "token"),
        ("ghp_abcdefghijklmnopqrstuvwxyz", "[token]", "token"),
        ("AKIAIOSFODNN7EXAMPLE", "[token]", "token"),
        ("password=hunter2 and so on", "password=[token] and so on", "token"),
        ('{"token": "abcd"}', '{"token": "[token]"}', "token"),
        ("/reset/x7Gq2LpZ9vB4nM1cR8tY5wK3jH6fD0sA/now", "/reset/[token]/now", "token"),
        ("192.168.17.4", "[ip]", "ip"),
        ("from 203.0.113.9:443", "from [ip]:443", "ip"),
        ("2001:db8::1", "[ip]", "ip"),
        ("addr:2001:db8::8:800:200c:417a.", "addr:[ip].", "ip"),
        ("[2001:db8::1]:443", "[[ip]]:443", "ip"),
        ("https://a.example/p?q=1", "https://a.example/p", "url"),
        ("/p?utm_source=x&key=1&utm_term=y", "/p?utm_source=x&utm_term=y", "url"),
        ("/p?utm%5Fsource=x;z=1#part", "/p?utm%5Fsource=x#part", "url"),
        ("https://a.example/p?opaque", "https://a.example/p", "url"),
        ("https://a.example/#access_token=1", "https://a.example/", "url"),
        ("https://a.example/#/r?code=1&utm_term=y", "https://a.example/#/r?utm_term=y", "url"),
        ("https://jo:secret@a.example/p", "https://a.example/p", "url"),
        ('<a href="/p?q=1">here</a>', '<a href="/p">here</a>', "url"),
        ("/p?utm_source=jo@example.com&q=2", "/p?utm_source=[mail]", "url, mail"),
        ("see https://u:p@ss@h.example/?a=b now", "see https://h.example/ now", "url"),
        ("//jo:pw@host/", "//host/", "url"),
        ("jo#$!x@example.com", "jo#[mail]", "mail"),
        ("4111/1111/1111/1111", "[card]", "card"),
        ("4111+1111+1111+1111", "[card]", "card"),
        ("4111  1111\n1111  1111", "[card]", "card"),
        ("4111-1111 11111111", "[card]", "card"),
        ("no 2024 4111 1111 1111 1111 of 1234", "no 2024 [card] of 1234", "card"),
        ("6011 0009 9013 9424 5", "[card] 5", "card"),
        ("DE89370400440532013000", "[iban]", "iban"),
        ("de89 3704 0044 0532 0130 00 by post", "[iban] by post", "iban"),
        ("GB29 NWBK 6016 1331 9268 19.", "[iban].", "iban"),
        ("NO93 8601 1117 947 OK", "[iban] OK", "iban"),
        ("AT61 1904 3002 3457 3201 to pay", "[iban] to pay", "iban"),
        ("KZ67 125K ZT50 04A0 B1C2", "[iban]", "iban"),
        ("to MT41 MALT 0110 0ABC 1MTL CAST 001S 00X", "to [iban]", "iban"),
        ("192.168.001.004", "[ip]", "ip"),
        ("::ffff:192.0.2.128", "[ip]", "ip"),
        ("bearer abc.def.ghi", "[token]", "token"),
        ("basic a.b.c.d.e.f.g", "[token]", "token"),
        ("sent Basic dXNlcjpw here", "sent [token] here", "token"),
        ("Basic YTpi", "[token]", "token"),
        ("Authorization: Basic dXNlcjpwYXNz", "Authorization: [token]", "token"),
        ('{"authorization": "Token a1b"}', '{"authorization": "[token]"}', "token"),
        ('Authorization: Digest username="jo", response="66"', "Authorization: [token]", "token"),
        ("Set-Cookie: sid=abc; path=/", "Set-Cookie: [token]", "token"),
        ("/p;jsessionid=A1B2C3", "/p;jsessionid=[token]", "token"),
        ("pass=hunter2&a=1", "pass=[token]&a=1", "token"),
        ("private_key => abcdef", "private_key => [token]", "token"),
        ('\\"password\\": \\"hunter2', '\\"password\\": \\"[token]', "token"),
        ("eyJzdWIiOiIxMjM0In0", "[token]", "token"),
        ("ewogICJzdWIiOiAiMTIzNCIKfQ.x", "[token]", "token"),
        ("whsec_abcdefghijklmnopqrst", "[token]", "token"),
        ("pypi-AgEIcHlwaS5vcmcabcdef", "[token]", "token"),
    ],
)  # fmt: skip
def test_personal_data_is_taken_out_and_named(text: str, left: str, kinds: str) -> None:
    scrub = scrubber()
    expected = (left, tuple(kinds.split(", ")))
    assert scrub(text) == expected
    assert scrub(text) == expected, "what was seen before"


@pytest.mark.parametrize(
    ("text", "left", "kind"),
    [
        ("ｓｅｃｒｅｔ：hunter2", "secret:[token]", "token"),
        ("ſecret=hunter2", "secret=[token]", "token"),
        ("s\u200becret=hunter2", "secret=[token]", "token"),
        ("SİGNATURE=hunter2", "SIGNATURE=[token]", "token"),
        ("authorızatıon: basıc YTpi", "authorization: [token]", "token"),
        ("４１１１１１１１１１１１１１１１", "[card]", "card"),
        ("٤١١١ ١١١١ ١١١١ ١١١١", "[card]", "card"),
        ("4111\u20111111\u20111111\u20111111", "[card]", "card"),
        ("4111\u00a01111\u202f1111\u20091111", "[card]", "card"),
        ("41\u00ad11111111111111", "[card]", "card"),
        ("jo＠ｅｘａｍｐｌｅ。com", "[mail]", "mail"),
        ("ｊｏ＠ａ．ｄｅ", "[mail]", "mail"),
        ("１９２．１６８．１７．４", "[ip]", "ip"),
        ("https://a.example/p？q=1", "https://a.example/p", "url"),
        ("4111%201111%201111%201111", "[card]", "card"),
        ("2001%3Adb8%3A%3A1", "[ip]", "ip"),
        ("password%3Dhunter2&a=b", "password=[token]&a=b", "token"),
        (JWT.replace(".", "%2E"), "[token]", "token"),
        ("https%3A%2F%2Fa.example%2Fp%3Fq%3D1", "https://a.example/p", "url"),
        ("/p?utm_source=x%26key%3D1", "/p?utm_source=x", "url"),
        ("jo%25252540example.com", "[mail]", "mail"),
        ("%EF%BC%94111111111111111", "[card]", "card"),
    ],
)  # fmt: skip
def test_another_spelling_hides_nothing(text: str, left: str, kind: str) -> None:
    assert scrubber()(text) == (left, (kind,))


@pytest.mark.parametrize(
    ("text", "left", "kind"),
    [
        ("https://shop.example/u/jo＠example.com", "https://shop.example/u/[mail]", "mail"),
        ("Call 4111\u20111111\u20111111\u20111111", "Call [card]", "card"),
        ("https://x.example/４１１１１１１１１１１１１１１１", "https://x.example/[card]", "card"),
        ("4111\u00ad1111\u00ad1111\u00ad1111", "[card]", "card"),
    ],
)  # fmt: skip
def test_nor_does_another_spelling_before_a_query(text: str, left: str, kind: str) -> None:
    """Whether it goes or stays; nor by itself, once it was seen with a query."""
    scrub = scrubber()
    assert scrub(f"{text}?a=b") == (left, ("url", kind))
    assert scrub(f"{text}?utm_source=x") == (f"{left}?utm_source=x", (kind,))
    assert scrub(text) == (left, (kind,))


@pytest.mark.parametrize("text", ["/p？utm_source=jo", "/p？utm_source＝jo?a=b"])
def test_a_query_in_another_spelling_has_only_the_listed_parameters_too(text: str) -> None:
    assert Scrubber(KINDS, {}, ())(text) == ("/p", ("url",))


@pytest.mark.parametrize(
    "text",
    [
        "ｆｕｌｌ width",
        "100%25",
        "/caf%C3%A9/%E6%9D%B1",
        "1\u202f000\u202f000 €",
        "ﬁne ½ Ⅷ ①",
        "東京",
        "٤١١",
    ],
)
def test_a_spelling_that_hides_nothing_stays_as_it_was_written(text: str) -> None:
    assert plain(text) != text or text == "東京"
    assert scrubber()(text) is None


def test_only_what_is_hidden_changes_how_the_rest_is_written() -> None:
    assert scrubber()("/caf%C3%A9?q=1") == ("/caf%C3%A9", ("url",))
    assert scrubber()("/caf%C3%A9/jo%40example.com") == ("/café/[mail]", ("mail",))


@pytest.mark.parametrize(
    "text",
    [
        "", "billing", "Buy workers, now cheaper", "order-123456", "50 % off @ the shop", "a@b",
        "2@1.99", "2025-06-16T22:50:12.226Z", "12:30:45", "std::vector", "::1", "127.0.0.1",
        "2024.3.409.0", "v1.2.3.4", "really? yes", "#1 of 5", "/docs#install", "C#", "#", "a #b",
        "https://a.example/#", "C:\\temp",
        "0197a1b2-4111-1111-8111-411111111111", "025779fde8cd4ab8a3e5138f870584a7",
        "4111111111111112", "1750114212226001", "12345678901234567890", "11:22:33:44:55:66",
        "WinterJacket2024BlueLargeEditionXXL", "a-page-about-37-things-that-you-did-not-know",
        "https://a.example/p?utm_source=x", "authorized: yes", "Basic subscription", "basic 2.0",
        "Bearer of news", "Basic membership plan", "passed: 17 of 20", "Author: Jo", "bypass: on",
        "DE89370400440532013001", "XX89370400440532013000", "cookie: accepted", "keyboard: ISO",
        "pypi-charset-normalizer",
        "52.5200066, 13.4049540", "2025-06-16 2025-06-17", "4111 111 1111 11111",
    ],
)  # fmt: skip
def test_what_is_not_personal_is_left_alone(text: str) -> None:
    scrub = scrubber()
    assert scrub(text) is None
    assert scrub(text) is None, "what was seen before"


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_that_is_not_asked_for_is_left(kind: str) -> None:
    text = (
        f"jo@example.com 4111111111111111 DE89370400440532013000 {JWT} 192.168.17.4 "
        "https://a.example/?q=1"
    )
    hit = scrubber(*(k for k in KINDS if k != kind))(text)
    assert hit is not None
    assert set(hit[1]) == set(KINDS) - {kind}


def test_a_pattern_of_the_operator_is_one_more_kind_in_the_shortest_text_too() -> None:
    scrub = scrubber(customer="KD[0-9]")
    assert scrub("KD7") == ("[customer]", ("customer",))
    assert scrub("KD") is None


@pytest.mark.parametrize(
    ("text", "left", "names"),
    [
        ("/call/%2B491701234567", "/call/[phone]", "phone"),
        ("%2B49%20170%201234567?q=1", "[phone]", "url, phone"),
        ("KD%2D12345678", "[customer]", "customer"),
        ("KD-１２３４５６７８", "[customer]", "customer"),
        ("K\u00adD\u201012345678", "[customer]", "customer"),
        ("/caf%C3%A9/KD-12345678", "/café/[customer]", "customer"),
        ("/caf%C3%A9/KD-1", None, ""),
        ("jo%40example.com, KD%252D12345678", "[mail], [customer]", "mail, customer"),
        # A pattern that only fits what was written still finds it, beside one that does not.
        ("İş-77", "[job]", "job"),
        ("KD%2D12345678 of İş-77", "[customer] of [job]", "job, customer"),
    ],
)  # fmt: skip
def test_another_spelling_hides_nothing_from_a_pattern_of_the_operator(
    text: str, left: str | None, names: str
) -> None:
    """Nor does a text change its spelling where none is found."""
    phone, customer = r"\+[1-9][0-9 ()./-]{7,20}[0-9]", "KD-[0-9]{8}"
    scrub = scrubber(customer=customer, phone=phone, job="İş-[0-9]+")
    assert scrub(text) == (None if left is None else (left, tuple(names.split(", "))))


@given(st.integers(10**11, 10**18))
def test_one_in_ten_check_digits_is_right(number: int) -> None:
    """Of the ten numbers that differ in the last digit one passes Luhn, if they are a card's."""
    passing = [d for d in range(10) if card_number(f"{number}{d}")]
    assert len(passing) <= 1
    assert len([d for d in range(10) if card_number(f"4{number % 10**14:014}{d}")]) == 1


@given(st.text(max_size=200))
def test_what_was_scrubbed_is_clean(text: str) -> None:
    scrub = scrubber()
    hit = scrub(text)
    if hit is not None:
        assert scrub(hit[0]) is None


PIECES = st.sampled_from(
    [
        "jo@example.com",
        "4111111111111111",
        JWT,
        "192.168.17.4",
        "2001:db8::1",
        "password=hunter22",
        "DE89370400440532013000",
    ]
)
AROUND = st.text(st.characters(codec="ascii", exclude_characters="%"), max_size=30)


@given(AROUND, PIECES, AROUND)
def test_personal_data_between_spaces_never_stays(before: str, planted: str, after: str) -> None:
    hit = scrubber()(f"{before} {planted} {after}")
    assert hit is not None
    secret = planted.rpartition("=")[2]
    assert secret not in hit[0].replace(before, "", 1) or secret in before + after


@pytest.mark.parametrize(
    "piece",
    ["a", "1", "a.", "1.", "a@", "%40", "://", "?a", "=", "a=", "&", ":", "1:", "eyJ", "eyJaaaaaa.",
     "token:", "-----BEGIN ", "bearer ", "4111 ", "a1B", "sk-", "#", "?", "\u00e4@", ": ", "' ",
     "%25", "%2", "4111-", "4111", "DE89", "DE89 3704 ", "authorization: digest ", "cookie:a=",
     "basic ", "\ufdfa", "\u00ad", "\uff11", "%EF%BC%91"],
)  # fmt: skip
def test_no_text_takes_long(piece: str) -> None:
    """The longest that is looked at; a rule that took the square of its length took seconds."""
    text = (piece * MAX_TEXT)[:MAX_TEXT]
    begin = time.process_time()
    scrubber()(text + "@")
    assert time.process_time() - begin < 0.5
