"""websockets, with its `broadcast`, on uvloop."""

import sys
from collections import defaultdict

import uvloop
from websockets.asyncio.server import ServerConnection, broadcast, serve

rooms: defaultdict[str, set[ServerConnection]] = defaultdict(set)


async def listen(names: list[str], connection: ServerConnection) -> None:
    for name in names:
        rooms[name].add(connection)
    await connection.send("ready")
    try:
        await connection.wait_closed()
    finally:
        for name in names:
            rooms[name].discard(connection)


async def publish(connection: ServerConnection) -> None:
    async for message in connection:
        assert isinstance(message, str)
        broadcast(rooms[message[:6]], message)


async def handler(connection: ServerConnection) -> None:
    assert connection.request is not None
    path = connection.request.path
    if path == "/publish":
        await publish(connection)
    else:
        await listen(path.removeprefix("/listen/").split("-"), connection)


async def main(port: int) -> None:
    async with serve(handler, "127.0.0.1", port) as server:
        await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
