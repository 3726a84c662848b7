"""aiohttp, on uvloop as its documentation recommends."""

import sys

import uvloop
from aiohttp import WSMsgType, web

routes = web.RouteTableDef()


async def opened(request: web.Request) -> web.WebSocketResponse:
    socket = web.WebSocketResponse(compress=False)
    await socket.prepare(request)
    return socket


@routes.get("/text")
@routes.get("/bytes")
async def echo(request: web.Request) -> web.WebSocketResponse:
    socket = await opened(request)
    async for message in socket:
        if message.type is WSMsgType.TEXT:
            await socket.send_str(message.data)
        else:
            await socket.send_bytes(message.data)
    return socket


@routes.get("/json")
async def echo_json(request: web.Request) -> web.WebSocketResponse:
    socket = await opened(request)
    async for message in socket:
        await socket.send_json(message.json())
    return socket


app = web.Application()
app.add_routes(routes)

if __name__ == "__main__":
    loop = uvloop.new_event_loop()
    web.run_app(
        app, host="127.0.0.1", port=int(sys.argv[1]), access_log=None, print=None, loop=loop
    )
