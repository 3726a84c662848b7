"""The tree of errors: what catches what, and what goes on the wire."""

import pytest
import starlette.exceptions
import starlette.websockets

import yaat
from yaat import exceptions
from yaat.exceptions import (
    ArgumentError,
    BrokerError,
    BrokerRefused,
    BrokerTimeout,
    BrokerUnavailable,
    ChannelError,
    ChannelNameError,
    DenialUnsupported,
    MalformedError,
    MessageError,
    PositionLost,
    Refused,
    RouteError,
    StateError,
    TooBigError,
    UsageError,
    WebSocketDisconnect,
    WrongKindError,
    YaatError,
)

# Whose fault it is, and what goes on the wire: error, parent, other kinds, close code and status.
TREE = [
    (YaatError, Exception, (), 1011, 500),
    (UsageError, YaatError, (RuntimeError,), 1011, 500),
    (ArgumentError, UsageError, (ValueError, RuntimeError), 1011, 500),
    (StateError, UsageError, (RuntimeError,), 1011, 500),
    (RouteError, UsageError, (RuntimeError,), 1011, 500),
    (MessageError, YaatError, (ValueError,), 1003, 400),
    (WrongKindError, MessageError, (ValueError,), 1003, 400),
    (MalformedError, MessageError, (ValueError,), 1007, 400),
    (TooBigError, MessageError, (ValueError,), 1009, 400),
    (Refused, YaatError, (), 1008, 403),
    (DenialUnsupported, Refused, (UsageError, RuntimeError), 1008, 403),
    (ChannelError, YaatError, (), 1008, 400),
    (ChannelNameError, ChannelError, (ValueError,), 1008, 400),
    (PositionLost, ChannelError, (), 4010, 409),
    (BrokerError, YaatError, (), 1013, 503),
    (BrokerRefused, BrokerError, (), 1013, 503),
    (BrokerUnavailable, BrokerError, (), 1013, 503),
    (BrokerTimeout, BrokerUnavailable, (BrokerError,), 1013, 503),
]


@pytest.mark.parametrize(("error", "parent", "others", "code", "status"), TREE)
def test_what_catches_it_and_what_it_closes_with(
    error: type[YaatError],
    parent: type[Exception],
    others: tuple[type, ...],
    code: int,
    status: int,
) -> None:
    assert error.__bases__[0] is parent
    assert all(issubclass(error, other) for other in others)
    raised = error("why")
    assert (raised.close_code, raised.status) == (code, status)
    assert "why" in str(raised)


def test_what_is_said_to_the_peer() -> None:
    """Nothing of what went wrong inside, least of all where the broker is."""
    said = {error: error("why").reason for error, *_ in TREE}
    assert {error: reason for error, reason in said.items() if reason} == {
        Refused: "why",
        DenialUnsupported: "why",
        PositionLost: "position lost",
    }


def test_a_position_that_was_lost() -> None:
    error = PositionLost("room:1\n")
    assert error.channel == "room:1\n"
    assert str(error) == r"the history of 'room:1\n' does not reach back to that position"


def test_a_broker_that_cannot_be_reached() -> None:
    error = BrokerUnavailable("nobody answers")
    assert (str(error), error.maybe_published, error.retry_in) == ("nobody answers", False, None)
    error = BrokerUnavailable("nobody answers", maybe_published=True, retry_in=0.5)
    assert (error.maybe_published, error.retry_in) == (True, 0.5)


def test_the_tree_is_complete() -> None:
    known = {error for error, *_ in TREE}
    found = {
        each
        for each in vars(exceptions).values()
        if isinstance(each, type) and issubclass(each, YaatError)
    }
    assert found == known


@pytest.mark.parametrize("of_others", [MessageError, ChannelError, BrokerError])
def test_the_fault_of_others_is_never_one_of_the_program(of_others: type[YaatError]) -> None:
    """`except UsageError` never hides what a peer did, nor `except MessageError` a bug."""
    for error, *_ in TREE:
        assert not (issubclass(error, of_others) and issubclass(error, UsageError))


def test_the_drawing_names_every_error() -> None:
    drawing = exceptions.__doc__ or ""
    for error, *_ in TREE:
        assert error.__name__ in drawing


def test_a_refusal_says_what_the_peer_is_told() -> None:
    plain = Refused()
    assert (plain.reason, plain.status, plain.close_code, plain.headers) == ("", 403, 1008, {})
    full = Refused("log in", status=401, code=4001, headers={"www-authenticate": "Bearer"})
    assert str(full) == full.reason == "log in"
    assert (full.status, full.close_code) == (401, 4001)
    assert full.headers == {"www-authenticate": "Bearer"}
    assert Refused.close_code == 1008, "one refusal does not change the others"


def test_a_denial_that_cannot_be_is_a_plain_403() -> None:
    error = DenialUnsupported("the server cannot")
    assert (error.status, error.close_code, error.headers) == (403, 1008, {})


def test_that_the_peer_left_is_no_error() -> None:
    assert not issubclass(WebSocketDisconnect, YaatError)
    departure = WebSocketDisconnect(1001, "bye")
    assert (departure.code, departure.reason) == (1001, "bye")


def test_what_starlette_has_is_starlettes() -> None:
    assert exceptions.HTTPException is starlette.exceptions.HTTPException
    assert exceptions.WebSocketException is starlette.exceptions.WebSocketException
    assert WebSocketDisconnect is starlette.websockets.WebSocketDisconnect
    assert exceptions.WebSocketDisconnected is StateError
    assert exceptions.HTTPException(404).detail == "Not Found"
    assert exceptions.WebSocketException(1008, "no").reason == "no"


def test_what_is_exported_is_there() -> None:
    for name in exceptions.__all__:
        assert hasattr(exceptions, name)
    rare = {"ArgumentError", "DenialUnsupported", "ChannelNameError"}
    errors = {error.__name__ for error, *_ in TREE} - rare
    assert errors <= set(yaat.__all__)
