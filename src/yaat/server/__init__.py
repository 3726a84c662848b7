"""The server: a WebSocket protocol class for uvicorn, good for every ASGI application.

    uvicorn --ws yaat.server:WebSocketProtocol app:app

It needs the extra `yaat[server]`.
"""

from yaat.server.protocol import WebSocketProtocol
from yaat.server.settings import ServerSettings

__all__ = ["ServerSettings", "WebSocketProtocol"]
