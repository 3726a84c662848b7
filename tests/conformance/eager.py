"""The protocol class with short messages compressed, too."""

from typing import ClassVar

from yaat.server import ServerSettings, WebSocketProtocol


class Eager(WebSocketProtocol):
    """It compresses whatever gets shorter by it; the class itself leaves short messages alone."""

    settings: ClassVar[ServerSettings] = ServerSettings(compress_from=0)
