"""The servers that the cases run against."""

from collections.abc import Callable

from servers import ServerSpec

APP = "conformance.app:app"
OURS = "yaat.server:WebSocketProtocol"
EAGER = "conformance.eager:Eager"
LOOPS = ("uvloop", "asyncio")
# The longest messages of group 9 have 16 MiB; what uvicorn allows by default is just that.
MAX_SIZE = 64 * 2**20
# A case of compression takes a ping for its end: one that takes longer than the 20 s after which
# uvicorn has a ping sent would fail for it.
PING_INTERVAL = 3_600


def options(websocket_class: str) -> list[str]:
    """Return the options of uvicorn that the cases depend on."""
    limits = f"--ws-max-size {MAX_SIZE} --ws-ping-interval {PING_INTERVAL}"
    return ["--ws", websocket_class, *limits.split()]


def uvicorn(websocket_class: str, loop: str) -> Callable[[str, int], list[str]]:
    def arguments(app: str, port: int) -> list[str]:
        address = f"--host 127.0.0.1 --port {port} --loop {loop}"
        # At this level it writes nothing, as long as nothing is wrong.
        quiet = "--lifespan off --log-level warning"
        return ["uvicorn", app, *address.split(), *quiet.split(), *options(websocket_class)]

    return arguments


def served(loop: str, websocket_class: str = OURS) -> ServerSpec:
    """Return uvicorn with a WebSocket class, on a loop."""
    name = f"{loop}-{websocket_class.replace(':', '.')}"
    return ServerSpec(name, uvicorn(websocket_class, loop))
