"""Close codes and reasons: which may travel, and what goes in the place of those that may not."""

import json
from enum import IntEnum
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from yaat.constants import (
    MAX_REASON_BYTES,
    STAND_INS,
    WebSocketCloseEvent,
    checked_reason,
    may_travel,
    travelling_code,
)
from yaat.exceptions import ArgumentError, UsageError

NAMES = {
    "NORMAL_CLOSURE": 1000,
    "GOING_AWAY": 1001,
    "PROTOCOL_ERROR": 1002,
    "UNSUPPORTED_DATA": 1003,
    "NO_STATUS_RECEIVED": 1005,
    "ABNORMAL_CLOSURE": 1006,
    "INVALID_FRAME_PAYLOAD_DATA": 1007,
    "POLICY_VIOLATION": 1008,
    "MESSAGE_TOO_BIG": 1009,
    "MISSING_EXTENSION": 1010,
    "INTERNAL_ERROR": 1011,
    "SERVICE_RESTART": 1012,
    "TRY_AGAIN_LATER": 1013,
    "BAD_GATEWAY": 1014,
    "TLS_HANDSHAKE": 1015,
}

# RFC 6455, 7.4.1 and 7.4.2, and the IANA registry: what may stand in a close frame.
TRAVELLING = {1000, 1001, 1002, 1003, *range(1007, 1015), *range(3000, 5000)}

# "MUST NOT be set as a status code in a Close control frame by an endpoint" (7.4.1).
REPLACED = {1005: 1000, 1006: 1011, 1015: 1011}


def test_the_names_are_those_of_the_page() -> None:
    assert {event.name: event.value for event in WebSocketCloseEvent} == NAMES


def test_a_name_is_its_number() -> None:
    assert issubclass(WebSocketCloseEvent, IntEnum)
    code: int = WebSocketCloseEvent.ABNORMAL_CLOSURE
    assert code == 1006
    assert f"{code}" == str(code) == "1006"
    assert json.dumps({"code": WebSocketCloseEvent.GOING_AWAY}) == '{"code": 1001}'
    assert WebSocketCloseEvent(1012) is WebSocketCloseEvent.SERVICE_RESTART


@given(code=st.integers())
@example(code=1004)
@example(code=1014)
@example(code=1015)
@example(code=1016)
@example(code=2999)
@example(code=3000)
@example(code=4999)
@example(code=5000)
def test_every_number_travels_is_replaced_or_refused(code: int) -> None:
    assert may_travel(code) is (code in TRAVELLING)
    if code in TRAVELLING:
        assert travelling_code(code) == code
    elif code in REPLACED:
        assert travelling_code(code) == REPLACED[code]
    else:
        with pytest.raises(ArgumentError) as caught:
            travelling_code(code)
        assert isinstance(caught.value, ValueError)
        assert isinstance(caught.value, UsageError)
        assert str(code) in str(caught.value)


def test_the_numbers_around_the_borders() -> None:
    assert {code for code in range(900, 5100) if may_travel(code)} == TRAVELLING


def test_what_travels_is_a_plain_int() -> None:
    """A server that looks at the type, or serialises it, must not meet an enum."""
    for event in WebSocketCloseEvent:
        assert type(travelling_code(event)) is int


def test_what_stands_in_may_travel() -> None:
    assert {int(code) for code in STAND_INS} == set(REPLACED)
    assert all(may_travel(code) for code in STAND_INS.values())


@given(reason=st.text())
@example(reason="x" * 123)
@example(reason="x" * 124)
@example(reason="é" * 61 + "x")
@example(reason="é" * 62)
@example(reason="\N{PILE OF POO}" * 31)
def test_a_reason_is_as_long_as_a_close_frame_lets_it(reason: str) -> None:
    size = len(reason.encode())
    if size <= 123:
        assert checked_reason(reason) == reason
    else:
        with pytest.raises(ArgumentError, match=f"123 bytes of UTF-8, this one has {size}"):
            checked_reason(reason)


def test_no_reason_is_the_empty_one() -> None:
    assert checked_reason(None) == ""
    assert MAX_REASON_BYTES == 123


@pytest.mark.parametrize("reason", ["\ud800", "half a \udc80 pair"])
def test_a_reason_that_cannot_be_encoded(reason: str) -> None:
    with pytest.raises(ArgumentError, match="encodable as UTF-8") as caught:
        checked_reason(reason)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("code", ["1000", 1000.0, None, b"1"])
def test_a_code_is_an_int(code: Any) -> None:
    with pytest.raises(TypeError, match="a close code is an int"):
        travelling_code(code)


@pytest.mark.parametrize("reason", [b"bye", 5, ["bye"]])
def test_a_reason_is_a_str(reason: Any) -> None:
    with pytest.raises(TypeError, match="a close reason is a str"):
        checked_reason(reason)
