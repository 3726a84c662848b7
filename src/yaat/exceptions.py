"""What can go wrong. Two questions choose the class: whose fault is it, and what goes on the wire.

    YaatError
    ├── UsageError (also RuntimeError)      the program is wrong; a peer never causes it      1011
    │   ├── ArgumentError (also ValueError) a value that no connection could take
    │   ├── StateError                      a message at the wrong time
    │   └── RouteError                      a route, mount or handler that cannot work
    ├── MessageError (also ValueError)      the peer sent what the application does not take
    │   ├── WrongKindError                  text where bytes were expected, or the reverse    1003
    │   ├── MalformedError                  not UTF-8, not JSON                               1007
    │   └── TooBigError                     longer than the policy allows                     1009
    ├── Refused                             the application says no: 403 before accept        1008
    │   └── DenialUnsupported (also UsageError)  the server cannot answer with a response     1008
    ├── ChannelError                        a channel cannot give what was asked of it        1008
    │   ├── ChannelNameError (also ValueError)   no channel can have this name                1008
    │   └── PositionLost                    history does not reach back: a resume is impossible 4010
    └── BrokerError                         what carries the channels did not do it           1013
        ├── BrokerRefused                   it is there, and says no
        └── BrokerUnavailable               it cannot be reached
            └── BrokerTimeout               it does not answer

`WebSocketDisconnect(code, reason)`, `WebSocketException(code, reason)` and `HTTPException` are
Starlette's own classes: what a handler or a middleware written for Starlette catches or raises
means the same here. A `WebSocketDisconnect` is not an error: the peer has left.
"""

from starlette.exceptions import HTTPException, WebSocketException
from starlette.websockets import WebSocketDisconnect

__all__ = [
    "ArgumentError",
    "BrokerError",
    "BrokerRefused",
    "BrokerTimeout",
    "BrokerUnavailable",
    "ChannelError",
    "ChannelNameError",
    "DenialUnsupported",
    "HTTPException",
    "MalformedError",
    "MessageError",
    "PositionLost",
    "Refused",
    "RouteError",
    "StateError",
    "TooBigError",
    "UsageError",
    "WebSocketDisconnect",
    "WebSocketDisconnected",
    "WebSocketException",
    "WrongKindError",
    "YaatError",
]


class YaatError(Exception):
    """Every error that Yaat raises by itself.

    Attributes:
        close_code: What goes on the wire if nobody catches it; with `reason`.
        status: The HTTP status with which a handshake is answered then.

    Spec: RFC 6455, section 7.4.1, for the codes.
    """

    close_code = 1011
    reason = ""
    status = 500


class UsageError(YaatError, RuntimeError):
    """The program is wrong. A peer can never cause it."""


class ArgumentError(UsageError, ValueError):
    """An argument has a value that no connection, policy or route could take."""


class StateError(UsageError):
    """A message at the wrong time; the text names the state, the message and what is legal."""


WebSocketDisconnected = StateError
"""Starlette's name for it."""


class RouteError(UsageError):
    """A route, a mount or a handler that cannot work as it is given."""


class MessageError(YaatError, ValueError):
    """The peer sent what the application does not take. The text never quotes the payload."""

    close_code = 1003
    status = 400


class WrongKindError(MessageError):
    """A text message where a bytes message was expected, or the reverse."""

    close_code = 1003


class MalformedError(MessageError):
    """A message that is not the JSON or the UTF-8 it has to be."""

    close_code = 1007


class TooBigError(MessageError):
    """A message longer than `Policy.max_message_bytes`."""

    close_code = 1009


class Refused(YaatError):  # noqa: N818 - the word for what it does
    """The application says no: raise it in a handler or a middleware.

    Before `accept` the handshake is answered with `status` (403 where the server cannot answer
    with a response) and `reason` as a plain text body; after it, the connection is closed with
    `code` and `reason`.

    Args:
        reason: Said to the peer, so nothing secret: at most 123 bytes of UTF-8.
        status: The HTTP status before `accept`.
        code: The close code after `accept`.
        headers: Added to the HTTP response, for example `{"www-authenticate": "Bearer"}`.
    """

    close_code = 1008

    def __init__(
        self,
        reason: str = "",
        *,
        status: int = 403,
        code: int = 1008,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.status = status
        self.close_code = code
        self.headers = headers or {}


class DenialUnsupported(Refused, UsageError):  # noqa: N818 - a refusal is named as what it is
    """The server cannot answer a handshake with a response of the application's own.

    Uncaught, it refuses the handshake in the one way that every server has: with a 403.
    """


class ChannelError(YaatError):
    """A channel cannot give what was asked of it."""

    close_code = 1008
    status = 400


class ChannelNameError(ChannelError, ValueError):
    """A name that no channel can have. It may well have come from a peer."""


class PositionLost(ChannelError):  # noqa: N818 - the word for what happened
    """What came after a position is not all there any more: whoever stood there begins anew.

    Uncaught, it closes the connection with 4010, by which a client knows that it has to do so.

    Args:
        channel: The name of the channel.
    """

    close_code = 4010
    reason = "position lost"
    status = 409

    def __init__(self, channel: str) -> None:
        super().__init__(f"the history of {channel!r} does not reach back to that position")
        self.channel = channel


class BrokerError(YaatError):
    """What carries the channels did not do what was asked. Uncaught, it closes with 1013."""

    close_code = 1013
    status = 503


class BrokerUnavailable(BrokerError):  # noqa: N818 - the word for what it is
    """The broker cannot be reached.

    Args:
        reason: What happened, and what to do about it.
        maybe_published: Whether what was to be published may have been, all the same.
        retry_in: How long, in seconds, until it is tried again; None: it is not.
    """

    def __init__(
        self, reason: str, *, maybe_published: bool = False, retry_in: float | None = None
    ) -> None:
        super().__init__(reason)
        self.maybe_published = maybe_published
        self.retry_in = retry_in


class BrokerTimeout(BrokerUnavailable):
    """The broker did not answer in time. What was asked of it may be done all the same."""


class BrokerRefused(BrokerError):  # noqa: N818 - the word for what it is
    """The broker is there and says no: it is full, or denies it. Nothing was published."""
