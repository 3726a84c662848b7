"""picows with its layer that is used like `websockets`, on uvloop as its pages recommend."""

import json
import sys

import uvloop
from picows.websockets import ServerConnection, serve


async def echo(connection: ServerConnection) -> None:
    async for message in connection:
        await connection.send(message)


async def echo_json(connection: ServerConnection) -> None:
    async for message in connection:
        await connection.send(json.dumps(json.loads(message)))


async def handler(connection: ServerConnection) -> None:
    await (echo_json if connection.request.path == "/json" else echo)(connection)


async def main(port: int) -> None:
    async with serve(handler, "127.0.0.1", port, compression=None) as server:
        await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
