"""The protocol class with every message compressed, the shortest too."""

from typing import ClassVar

from yaat.server import ServerSettings, WebSocketProtocol


class Eager(WebSocketProtocol):
    """What the cases of compression call for; the class itself sends short messages as they are."""

    settings: ClassVar[ServerSettings] = ServerSettings(compress_from=0)
