"""websockets, with its `broadcast`, on uvloop."""

import sys

import uvloop
from websockets.asyncio.server import ServerConnection, broadcast, serve

connections: set[ServerConnection] = set()


async def listen(connection: ServerConnection) -> None:
    connections.add(connection)
    await connection.send("ready")
    try:
        await connection.wait_closed()
    finally:
        connections.discard(connection)


async def publish(connection: ServerConnection) -> None:
    async for message in connection:
        broadcast(connections, message)


async def handler(connection: ServerConnection) -> None:
    assert connection.request is not None
    await (publish if connection.request.path == "/publish" else listen)(connection)


async def main(port: int) -> None:
    async with serve(handler, "127.0.0.1", port) as server:
        await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
