"""picows with nothing between its parser and the echo: a limit, with no check of any kind."""

import json
import sys

import uvloop
from picows import (
    WSFrame,
    WSListener,
    WSMsgType,
    WSTransport,
    WSUpgradeRequest,
    ws_create_server,
)


class Echo(WSListener):
    """Echoes frame by frame."""

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.CLOSE:
            transport.send_close(frame.get_close_code(), frame.get_close_message())
            transport.disconnect()
        else:
            self.echo(transport, frame)

    def echo(self, transport: WSTransport, frame: WSFrame) -> None:
        transport.send(frame.msg_type, frame.get_payload_as_bytes())


class EchoJSON(Echo):
    """Parses and writes JSON."""

    def echo(self, transport: WSTransport, frame: WSFrame) -> None:
        value = json.loads(frame.get_payload_as_utf8_text())
        transport.send(frame.msg_type, json.dumps(value).encode())


def listener(request: WSUpgradeRequest) -> WSListener:
    return EchoJSON() if request.path == b"/json" else Echo()


async def main(port: int) -> None:
    server = await ws_create_server(listener, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
