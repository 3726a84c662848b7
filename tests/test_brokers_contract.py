"""The words of the contract: positions, publications, and what no broker takes."""

import inspect
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from yaat.brokers.contract import (
    LONGEST_NAME,
    MAX_PAYLOAD,
    NOWHERE,
    Broker,
    Content,
    Kind,
    Position,
    PresenceStats,
    Present,
    Publication,
    Published,
    check_name,
    check_open,
    check_payload,
    check_positive,
    is_complete,
)
from yaat.exceptions import (
    ArgumentError,
    BrokerUnavailable,
    ChannelNameError,
    MalformedError,
    TooBigError,
)


def publication(kind: Kind = "text", payload: bytes = b"x", offset: int = 7) -> Publication:
    return Publication(Content(kind, payload), offset, "e", offset - 1, 1.5)


# Positions


def test_a_position_travels_as_text() -> None:
    position = Position(12, "kD3fQ9")
    assert str(position) == f"{position}" == "12-kD3fQ9"
    assert Position.parse("12-kD3fQ9") == position
    assert type(Position.parse("12-kD3fQ9")) is Position
    assert str(NOWHERE) == "0-"
    assert Position.parse("0-") == NOWHERE


@given(st.integers(0, 10**18 - 1), st.text())
@example(10**18 - 1, "")
@example(1, "a-b--")  # a random epoch in base64 for URLs has dashes
@example(1, "\n")
def test_what_is_written_can_be_read(offset: int, epoch: str) -> None:
    assert Position.parse(str(Position(offset, epoch))) == Position(offset, epoch)


WRONG = {
    "empty": "",
    "no dash": "12",
    "no offset": "-kD3fQ9",
    "another dash": "12_kD3fQ9",
    "a sign": "+12-kD3fQ9",
    "below 0": "-12-kD3fQ9",
    "a space": " 12-kD3fQ9",
    "a fraction": "1.5-kD3fQ9",
    "an exponent": "1e3-kD3fQ9",
    "underlined": "1_0-kD3fQ9",
    "hexadecimal": "0x1f-kD3fQ9",
    "digits of another script": "١٢-kD3fQ9",
    "a digit that is no decimal": "²-kD3fQ9",
    "more than any channel has": "1000000000000000000-e",
    "more digits than Python reads": "1" * 5000 + "-e",
    "JSON": '{"offset":12,"epoch":"e"}',
    "null": "null",
}


@pytest.mark.parametrize("text", WRONG.values(), ids=WRONG)
def test_what_is_no_position(text: str) -> None:
    with pytest.raises(MalformedError, match=r"^a position looks like '12-kD3fQ9xx'$") as caught:
        Position.parse(text)
    assert isinstance(caught.value, ValueError)


@given(st.text())
@example("9" * 18 + "-")
@example("9" * 19 + "-")
def test_whatever_is_read_is_small_or_refused(text: str) -> None:
    try:
        position = Position.parse(text)
    except MalformedError:
        return
    assert 0 <= position.offset < 2**63
    assert text.endswith(f"{position.offset}-{position.epoch}")


# Publications


@pytest.mark.parametrize(
    ("kind", "payload", "data"),
    [
        ("text", "né 😀".encode(), "né 😀"),
        ("text", b"", ""),
        ("text", b'{"a":1}', '{"a":1}'),
        ("bytes", b"\x00\xff", b"\x00\xff"),
        ("json", b'{"a":[1,null]}', {"a": [1, None]}),
        ("json", b'"text"', "text"),
        ("json", b"null", None),
        ("join", b'{"client":"c","user":null,"info":1}', {"client": "c", "user": None, "info": 1}),
        ("leave", b"{}", {}),
    ],
)
def test_the_data_is_what_was_published(kind: Kind, payload: bytes, data: object) -> None:
    assert publication(kind, payload).data == data
    assert type(publication(kind, payload).data) is type(data)


def test_the_data_of_a_broker_that_brings_nonsense() -> None:
    with pytest.raises(MalformedError):
        publication("json", b"{").data  # noqa: B018 - a property
    with pytest.raises(UnicodeDecodeError):
        publication("text", b"\xff").data  # noqa: B018


def test_where_one_stands_who_has_seen_it() -> None:
    assert publication(offset=7).position == Position(7, "e")
    assert type(publication().position) is Position
    assert Published(7, "e").position == Position(7, "e")
    assert type(Published(7, "e").position) is Position
    assert Published(*NOWHERE).position == NOWHERE
    assert Published(7, "e") == (7, "e", False)
    assert Content("text", b"") == ("text", b"", None, None)


def test_who_is_present() -> None:
    assert Present("c") == Present("c", None, None) != Present("c", "u")
    assert PresenceStats(2, 1) == PresenceStats(clients=2, users=1)
    with pytest.raises(AttributeError):
        Present("c").client = "d"  # type: ignore[misc]
    with pytest.raises(AttributeError):
        PresenceStats(2, 1).clients = 3  # type: ignore[misc]


# Whether something is missing

TOP = Position(9, "e")
AFTER_7 = [publication(offset=8), publication(offset=9)]


@pytest.mark.parametrize(
    ("since", "publications", "top", "expected"),
    [
        (Position(7, "e"), AFTER_7, TOP, True),
        (Position(9, "e"), [], TOP, True),
        (Position(0, "e"), [], Position(0, "e"), True),
        (Position(6, "e"), AFTER_7, TOP, False),  # 7 has been trimmed
        (Position(8, "e"), AFTER_7, TOP, False),
        (Position(8, "e"), [], TOP, False),  # all has been trimmed
        (Position(7, "d"), AFTER_7, TOP, False),
        (Position(9, "d"), [], TOP, False),
        (Position(10, "e"), [], TOP, False),  # the server has gone back in time
        (NOWHERE, [], Position(0, "e"), False),
        (Position(7, "e"), AFTER_7[:1], TOP, True),  # as many as were asked for
        (Position(6, "e"), [publication(offset=7), publication(offset=9)], TOP, False),
        (Position(7, "e"), [AFTER_7[0], AFTER_7[1]._replace(epoch="d")], TOP, False),
        (Position(7, "e"), AFTER_7, Position(9, "f"), False),
    ],
)
def test_whether_a_history_is_complete(
    since: Position, publications: list[Publication], top: Position, *, expected: bool
) -> None:
    assert is_complete(since, publications, top) is expected


def test_offsets_may_skip() -> None:
    """What counts is that each names the one before it, not that they are numbered one by one."""
    first = Publication(Content("text", b""), 40, "e", 7, 0.0)
    assert is_complete(Position(7, "e"), [first], Position(40, "e"))
    assert not is_complete(Position(39, "e"), [first], Position(40, "e"))


# What no broker takes


@pytest.mark.parametrize(
    "name",
    ["a", " ", "\x00", "\r\n", "room:1", "*", ">", "{x}", "日本", "é" * 127, "a" * 255, "😀" * 63],
)
def test_a_name_that_can_be(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "the name of a channel has 1 to 255 bytes, not 0"),
        ("a" * 256, "the name of a channel has 1 to 255 bytes, not 256"),
        ("é" * 128, "the name of a channel has 1 to 255 bytes, not 256"),
        ("\ud800", "the name of a channel has no form in UTF-8"),
        ("a" * 5000, "the name of a channel has 1 to 255 bytes, not 5000"),
    ],
)
def test_a_name_that_cannot_be(name: str, why: str) -> None:
    with pytest.raises(ChannelNameError) as caught:
        check_name(name)
    assert str(caught.value) == why
    assert isinstance(caught.value, ValueError)
    assert LONGEST_NAME == 255


@pytest.mark.parametrize("name", [None, b"room", 5, ["room"]])
def test_a_name_that_is_none(name: Any) -> None:
    with pytest.raises(TypeError, match=f"is a str, not {type(name).__name__}$"):
        check_name(name)


def test_a_payload_that_is_too_long() -> None:
    check_payload(b"", 1)
    check_payload(b"x" * MAX_PAYLOAD, MAX_PAYLOAD)
    with pytest.raises(TooBigError, match=r"^a publication of 3 bytes; the broker takes 2$"):
        check_payload(b"xyz", 2)


def test_a_broker_that_is_not_started() -> None:
    check_open(lambda: None)
    with pytest.raises(BrokerUnavailable) as caught:
        check_open(None)
    assert not caught.value.maybe_published
    assert caught.value.retry_in is None


@pytest.mark.parametrize("value", [0, -1, 0.0, float("nan"), float("-inf")])
def test_a_bound_that_cannot_be(value: float) -> None:
    check_positive(least=5e-324, most=float("inf"), count=1)
    with pytest.raises(ArgumentError, match=r"^second must be above 0, not "):
        check_positive(first=1, second=value)


def test_every_operation_is_of_the_contract() -> None:
    """Who writes a broker is told of each that is missing, and each says what it has to do."""
    with pytest.raises(TypeError, match="abstract"):
        Broker()  # type: ignore[abstract]
    for name, operation in vars(Broker).items():
        if inspect.isfunction(operation):
            assert name in Broker.__abstractmethods__
            assert inspect.iscoroutinefunction(operation)
            assert operation.__doc__
