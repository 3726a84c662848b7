"""Server classes with bounds of their own, as a user would derive them."""

from yaat.server import ServerSettings, WebSocketProtocol


class Hasty(WebSocketProtocol):
    """Does not wait long for an answer to a close frame."""

    settings = ServerSettings(close_timeout=0.2)
