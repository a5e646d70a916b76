"""The privacy rule: what is masked, what only looks like it, and that a batch does what its texts do one by one."""

from collections.abc import Sequence
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yalm.corpus.document import Document, to_table
from yalm.corpus.rules.privacy import Kind, Privacy
from yalm.corpus.rules.rule import Batch

ALL = Privacy(mask=get_args(Kind))
PIECES = [
    "anna@mail.example.ru",
    "+7 (495) 123-45-67",
    "8(3822)12-34-56",
    "+44 20 7946 0958",
    "81.8.8.108",
    "4111 1111 1111 1111",
    "4111-1111",
    "10.0.0.1",
    "version ",
    "v",
    "1.2.3.104",
    "8",
    "+7",
    "@",
    ".",
    "-",
    " ",
    "(",
    ")",
    "495",
    "12",
    "б",
    "\n",
]
texts = st.lists(st.lists(st.sampled_from(PIECES), max_size=8).map("".join), max_size=6)


def batch(values: Sequence[str]) -> Batch:
    return Batch(to_table((Document(text, str(i), "web") for i, text in enumerate(values)), "web", 0))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Write to anna.b+news@mail.example.ru.", "Write to [email]."),
        ("Пишите: почта@пример.рф, ответим", "Пишите: [email], ответим"),
        (f"{'a' * 64}@{'b' * 63}.co", "[email]"),
        ("<a@b.co>;c_d@e-f.org", "<[email]>;[email]"),
        ("Звоните +7 (495) 123-45-67 или 8 (3822) 12-34-56!", "Звоните [phone] или [phone]!"),
        ("тел. 89161234567, 8-916-123-45-67, +79161234567, 8 (35167) 2-34-56", "тел. " + ", ".join(["[phone]"] * 4)),
        ("8 800 2000 600 (бесплатно) или 8 495 123 45 67.", "[phone] (бесплатно) или [phone]."),
        ("тел.+7 495 1234567, т.8-495-123-45-67, tel.+442079460958", "тел.[phone], т.[phone], tel.[phone]"),
        ("+1234567890, +123456789012345", "[phone], [phone]"),
        ("8 (3822) - 12 - 34 - 56, +7\u00a0495\u00a01234567", "[phone], [phone]"),
        ("Call +44 20 7946 0958 or +1 (212) 555-0123.", "Call [phone] or [phone]."),
        ("from 81.8.8.108 and 93.184.216.34:80, 81.8.104.4-81.8.8.108.", "from [ip] and [ip]:80, [ip]-[ip]."),
        ("Карта 4111 1111 1111 1111, 5500-0000-0000-0004; 2200000000000004.", "Карта [card], [card]; [card]."),
    ],
)
def test_what_identifies_people_is_masked(text: str, expected: str) -> None:
    assert ALL.masked(text) == (expected, expected.count("["))
    assert ALL.judge(batch(["", text])).columns["text"].to_pylist() == ["", expected]


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("email", ["a@b.co"]),
        ("phone", ["8(3822)   12-34-56", "8 (35167)   2-34-56", "+1   2345   6   7   8   9   0", "84951234567"]),
        ("ip", ["8.8.8.108", "108.8.8.8", "8.104.108.8"]),
        ("card", ["4111111111111111", "4111 1111 1111 1111", "5500-0000-0000-0004"]),
    ],
)
def test_each_alone_is_found_in_a_batch_where_only_its_kind_is_looked_for(kind: Kind, values: list[str]) -> None:
    assert Privacy(mask=(kind,)).judge(batch(values)).columns["text"].to_pylist() == [f"[{kind}]"] * len(values)


@pytest.mark.parametrize(
    "text",
    [
        "at @home, user@localhost, a @ b.org, f(x)@y, decorator @foo.bar, a@.co, a@b.c",
        f"{'a' * 65}@b.co, a@{'b' * 64}.co",
        "В 1895 году 8 495 человек, 8 345 678 901 234 рубля, 12 000 000",
        "1.8 495 123 45 67, 1,8 495 123 45 67, +123456789, +1234567890123456, 8 (495)   123-45-67, 8 295 123-45-67",
        "+10 000 000 рублей, 1+1234567890123, 2018-2019, 8.03.2019 12:00",
        "6.5.4.2. Text, 10.0.0.1, 127.0.0.1, 192.168.1.20, 256.1.1.1, 81.8.8.108.8, 081.8.8.108",
        "93.84.16.34, 192.0.2.1, 224.0.0.251",
        "version 81.8.8.108, v81.8.8.108, Версии 81.8.8.108, lib-81.8.8.108, 81.8.8.108-beta, 81.8.8.108rc1",
        "4111 1111 1111 1112, 4111 1111-1111 1111, 41111111111111111, 0.4111111111111111",
        "Section 1.2.3, 3.14159265358979, 2001:db8::1",
        "",
    ],
)
def test_what_only_looks_like_it_stays(text: str) -> None:
    assert ALL.masked(text) == (text, 0)


@given(texts, st.sets(st.sampled_from(get_args(Kind))))
def test_a_batch_is_masked_as_its_texts_are_one_by_one(values: list[str], kinds: set[Kind]) -> None:
    rule = Privacy(mask=tuple(kinds))
    verdict = rule.judge(batch(values))
    expected = [rule.masked(text) for text in values]
    assert not verdict.drop.any()
    if kinds:
        assert verdict.measures["privacy.masked"].tolist() == [count for _, count in expected]
    assert ("text" in verdict.columns) == any(count for _, count in expected)
    if verdict.columns:
        assert verdict.columns["text"].type == batch(values).texts.type
        assert verdict.columns["text"].to_pylist() == [text for text, _ in expected]


def test_only_the_kinds_asked_for_are_masked_each_with_its_placeholder() -> None:
    text = "a@b.org +7 495 123-45-67 81.8.8.108 4111111111111111"
    assert Privacy().masked(text) == (text, 0)
    assert Privacy(mask=("ip", "email"), ip="0.0.0.0", email=r"<\1>").masked(text) == (
        r"<\1> +7 495 123-45-67 0.0.0.0 4111111111111111",
        2,
    )
    assert Privacy(mask=("phone",)).masked(text)[0] == "a@b.org [phone] 81.8.8.108 4111111111111111"


@pytest.mark.parametrize("piece", ["a.", "a@", "a-", "1.", "1-", "8 ", "+7(", "4111 ", "a@a."])
def test_a_text_of_beginnings_alone_ends_in_linear_time_unmasked(piece: str) -> None:
    assert ALL.masked(piece * 50_000) == (piece * 50_000, 0)
