"""Yaat, yet another ASGI toolkit: the WebSocket toolkit for Python."""

from yaat.app import Yaat
from yaat.channels import (
    POSITIONED,
    RAW,
    Channel,
    ChannelOptions,
    Channels,
    Position,
    Present,
    Publication,
    connect,
    connect_blocking,
)
from yaat.constants import WebSocketCloseEvent
from yaat.endpoint import Endpoint, WebSocketEndpoint
from yaat.exceptions import (
    BrokerError,
    BrokerRefused,
    BrokerTimeout,
    BrokerUnavailable,
    ChannelError,
    HTTPException,
    MalformedError,
    MessageError,
    PositionLost,
    Refused,
    RouteError,
    StateError,
    TooBigError,
    UsageError,
    WebSocketDisconnect,
    WebSocketException,
    WrongKindError,
    YaatError,
)
from yaat.observer import Observer
from yaat.policy import Policy
from yaat.requests import Request
from yaat.routing import Router
from yaat.websockets import WebSocket

__version__ = "0.2.0"

__all__ = [
    "POSITIONED",
    "RAW",
    "BrokerError",
    "BrokerRefused",
    "BrokerTimeout",
    "BrokerUnavailable",
    "Channel",
    "ChannelError",
    "ChannelOptions",
    "Channels",
    "Endpoint",
    "HTTPException",
    "MalformedError",
    "MessageError",
    "Observer",
    "Policy",
    "Position",
    "PositionLost",
    "Present",
    "Publication",
    "Refused",
    "Request",
    "RouteError",
    "Router",
    "StateError",
    "TooBigError",
    "UsageError",
    "WebSocket",
    "WebSocketCloseEvent",
    "WebSocketDisconnect",
    "WebSocketEndpoint",
    "WebSocketException",
    "WrongKindError",
    "Yaat",
    "YaatError",
    "connect",
    "connect_blocking",
]
