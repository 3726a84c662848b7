"""socketify, that is uWebSockets with its topics: a limit."""

import sys
from typing import Any

from socketify import App, OpCode  # type: ignore[import-untyped]

app = App()


def enter(socket: Any) -> None:
    socket.subscribe("all")
    socket.send("ready", OpCode.TEXT)


def publish(_socket: Any, message: str, opcode: OpCode) -> None:
    app.publish("all", message, opcode)


BACKPRESSURE = {"max_backpressure": 1 << 20}
app.ws("/listen", BACKPRESSURE | {"open": enter, "message": lambda *_: None})
app.ws("/publish", BACKPRESSURE | {"message": publish})

if __name__ == "__main__":
    app.listen({"host": "127.0.0.1", "port": int(sys.argv[1])})
    app.run()
