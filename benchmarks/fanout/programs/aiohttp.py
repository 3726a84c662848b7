"""aiohttp, with the loop of its chat example, on uvloop."""

import sys
from collections import defaultdict

import uvloop
from aiohttp import web

routes = web.RouteTableDef()
rooms: defaultdict[str, set[web.WebSocketResponse]] = defaultdict(set)


@routes.get("/listen/{names}")
async def listen(request: web.Request) -> web.WebSocketResponse:
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    names = request.match_info["names"].split("-")
    for name in names:
        rooms[name].add(socket)
    await socket.send_str("ready")
    try:
        async for _ in socket:
            pass
    finally:
        for name in names:
            rooms[name].discard(socket)
    return socket


@routes.get("/publish")
async def publish(request: web.Request) -> web.WebSocketResponse:
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    async for message in socket:
        for each in list(rooms[message.data[:6]]):
            await each.send_str(message.data)
    return socket


app = web.Application()
app.add_routes(routes)

if __name__ == "__main__":
    loop = uvloop.new_event_loop()
    web.run_app(
        app, host="127.0.0.1", port=int(sys.argv[1]), access_log=None, print=None, loop=loop
    )
