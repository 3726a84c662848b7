"""socketify, that is uWebSockets with callbacks in Python: a limit."""

import json
import sys
from typing import Any

from socketify import App, OpCode  # type: ignore[import-untyped]


def echo(socket: Any, message: str | bytes, opcode: OpCode) -> None:
    socket.send(message, opcode)


def echo_json(socket: Any, message: str | bytes, opcode: OpCode) -> None:
    socket.send(json.dumps(json.loads(message)), opcode)


LARGEST = 1 << 20
app = App()
for path, handler in (("/text", echo), ("/bytes", echo), ("/json", echo_json)):
    app.ws(
        path,
        {
            "message": handler,
            "max_payload_length": LARGEST,
            "max_backpressure": 16 * LARGEST,
        },
    )

if __name__ == "__main__":
    app.listen({"host": "127.0.0.1", "port": int(sys.argv[1])})
    app.run()
