"""The life of a connection: one table of states and of the messages that are legal in each.

A connection is born CONNECTING. The server's `connect` makes it PENDING: the handshake waits for
the application's answer. That answer is `accept` (OPEN: messages flow both ways), `close` (a plain
refusal) or a response of the application's own (DENYING). It ends on one of two sides: the peer
leaves (GONE), or we close (CLOSING, while what the peer had already sent still comes in) and the
server reports the end (CLOSED).

The alphabet is ASGI's own message types, plus `RESPONSE_END`, our name for the last body of a
denial response. The table says all there is: nothing about the life of a connection is decided
elsewhere, and whoever drives one (the `WebSocket`, the test client) moves along it.

Spec: ASGI, "WebSocket" (www.rst) and "Websocket Denial Response" (extensions.rst).
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from yaat.exceptions import StateError, WebSocketDisconnect

CONNECT: Final = "websocket.connect"
RECEIVE: Final = "websocket.receive"
DISCONNECT: Final = "websocket.disconnect"
ACCEPT: Final = "websocket.accept"
SEND: Final = "websocket.send"
CLOSE: Final = "websocket.close"
RESPONSE_START: Final = "websocket.http.response.start"
RESPONSE_BODY: Final = "websocket.http.response.body"
RESPONSE_END: Final = "websocket.http.response.end"

INCOMING = frozenset({CONNECT, RECEIVE, DISCONNECT})
OUTGOING = frozenset({ACCEPT, SEND, CLOSE, RESPONSE_START, RESPONSE_BODY, RESPONSE_END})


class State(StrEnum):
    """Where a connection is in its life."""

    CONNECTING = "connecting"
    PENDING = "pending"
    OPEN = "open"
    DENYING = "denying"
    CLOSING = "closing"
    GONE = "gone"
    CLOSED = "closed"


TABLE: Final[Mapping[State, Mapping[str, State]]] = {
    State.CONNECTING: {
        CONNECT: State.PENDING,
    },
    State.PENDING: {
        ACCEPT: State.OPEN,
        CLOSE: State.CLOSING,
        RESPONSE_START: State.DENYING,
        DISCONNECT: State.GONE,
    },
    State.OPEN: {
        RECEIVE: State.OPEN,
        SEND: State.OPEN,
        CLOSE: State.CLOSING,
        DISCONNECT: State.GONE,
    },
    State.DENYING: {
        RESPONSE_BODY: State.DENYING,
        RESPONSE_END: State.CLOSING,
        DISCONNECT: State.GONE,
    },
    State.CLOSING: {
        RECEIVE: State.CLOSING,  # it was in flight
        CLOSE: State.CLOSING,
        DISCONNECT: State.CLOSED,
    },
    State.GONE: {
        CLOSE: State.GONE,
    },
    State.CLOSED: {
        CLOSE: State.CLOSED,
    },
}


def move(state: State, message: str) -> State:
    """Return the state after `message` (an ASGI message type) in `state`.

    Raises:
        WebSocketDisconnect: Something is to be sent and the peer has gone. That is life, not a
            mistake. Its code is 1006; who knows the true one raises by itself.
        StateError: The message is not legal in this state.
    """
    try:
        return TABLE[state][message]
    except KeyError:
        if state is State.GONE and message in OUTGOING:
            raise WebSocketDisconnect(1006) from None
        raise illegal(state, message, OUTGOING if message in OUTGOING else INCOMING) from None


def is_silent(state: State, message: str) -> bool:
    """Tell whether a legal `message` says nothing new, so that nothing is sent: a second close."""
    return message == CLOSE and TABLE[state].get(message) is state


def can_receive(state: State) -> bool:
    """Tell whether anything more can come in while in `state`."""
    return not INCOMING.isdisjoint(TABLE[state])


def illegal(state: State, message: str, way: frozenset[str]) -> StateError:
    """Return the error for a `message` that is not legal in `state`.

    Its text names the state, the message and what would be legal; it ends in Starlette's words.

    Args:
        state: Where the connection is.
        message: The ASGI message type.
        way: `INCOMING` or `OUTGOING`.
    """
    legal = [name for name in TABLE[state] if name in way and name != RESPONSE_END]
    hint = " Call accept() first." if state in (State.CONNECTING, State.PENDING) else ""
    expected = " or ".join(f'"{name}"' for name in legal) or "nothing"
    return StateError(
        f"{message} is not legal while {state}; legal here: {', '.join(legal) or 'nothing'}.{hint}"
        f" Expected ASGI message {expected}, but got {message!r}"
    )
