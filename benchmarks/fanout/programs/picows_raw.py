"""picows with nothing between its parser and the loop."""

import sys
from collections import defaultdict

import uvloop
from picows import (
    WSFrame,
    WSListener,
    WSMsgType,
    WSTransport,
    WSUpgradeRequest,
    ws_create_server,
)

rooms: defaultdict[bytes, set[WSTransport]] = defaultdict(set)


class Listener(WSListener):
    """Hears what is published."""

    def __init__(self, names: list[bytes]) -> None:
        self.names = names

    def on_ws_connected(self, transport: WSTransport) -> None:
        for name in self.names:
            rooms[name].add(transport)
        transport.send(WSMsgType.TEXT, b"ready")

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        for name in self.names:
            rooms[name].discard(transport)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.CLOSE:
            transport.send_close(frame.get_close_code(), frame.get_close_message())
            transport.disconnect()


class Publisher(WSListener):
    """Publishes frame by frame."""

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.CLOSE:
            transport.send_close(frame.get_close_code(), frame.get_close_message())
            transport.disconnect()
            return
        payload = frame.get_payload_as_bytes()
        for each in rooms[payload[:6]]:
            each.send(WSMsgType.TEXT, payload)


def listener(request: WSUpgradeRequest) -> WSListener:
    if request.path == b"/publish":
        return Publisher()
    return Listener(request.path.removeprefix(b"/listen/").split(b"-"))


async def main(port: int) -> None:
    server = await ws_create_server(listener, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
