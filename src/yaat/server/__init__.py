"""The server: uvicorn with a WebSocket class of our own, good for every ASGI application.

    yaat run app:app
    uvicorn --ws yaat.server:WebSocketProtocol app:app

It needs the extra `yaat[server]`.
"""

try:
    import httptools  # noqa: F401
    import uvicorn  # noqa: F401
    import websockets  # noqa: F401
except ImportError as missing:
    raise ImportError(f"the server needs {missing.name}: pip install 'yaat[server]'") from missing

from yaat.server.protocol import WebSocketProtocol
from yaat.server.serving import run
from yaat.server.settings import ServerSettings

__all__ = ["ServerSettings", "WebSocketProtocol", "run"]
