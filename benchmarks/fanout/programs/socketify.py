"""socketify, that is uWebSockets with its topics: a limit."""

import sys
from typing import Any

from socketify import App, OpCode  # type: ignore[import-untyped]

app = App()


def upgrade(response: Any, request: Any, context: Any) -> None:
    head = (request.get_header(f"sec-websocket-{name}") for name in ("key", "protocol"))
    response.upgrade(*head, "", context, request.get_parameter(0).split("-"))


def enter(socket: Any) -> None:
    for name in socket.get_user_data():
        socket.subscribe(name)
    socket.send("ready", OpCode.TEXT)


def publish(_socket: Any, message: str, opcode: OpCode) -> None:
    app.publish(message[:6], message, opcode)


BACKPRESSURE = {"max_backpressure": 1 << 20}
LISTEN = {"upgrade": upgrade, "open": enter, "message": lambda *_: None}
app.ws("/listen/:names", BACKPRESSURE | LISTEN)
app.ws("/publish", BACKPRESSURE | {"message": publish})

if __name__ == "__main__":
    app.listen({"host": "127.0.0.1", "port": int(sys.argv[1])})
    app.run()
