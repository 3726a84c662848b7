"""A chat: every address under /rooms/ is a room, and every tab that opens it a member.

Two variables of the environment are read. BROKER is the URL of what carries the rooms; without it
they are in the memory of this process. WORKERS are the addresses of all that serve the same rooms:
a page goes on at another one when its own does not answer.
"""

import asyncio
import os
from contextlib import suppress
from pathlib import Path

from yaat import (
    POSITIONED,
    BrokerUnavailable,
    Channel,
    ChannelOptions,
    Channels,
    Policy,
    Refused,
    Request,
    WebSocket,
    Yaat,
)
from yaat.responses import FileResponse

BROKER = os.environ.get("BROKER") or None
WORKERS = os.environ.get("WORKERS", "").split()

NAME, TEXT = 24, 1000  # the longest of each, in characters
LAST = 50  # messages that a newcomer is shown
PAUSE = 0.05  # seconds between two messages of one member: a flood waits in its own connection
LOOK = 5  # seconds from one list of who is here to the next

# Who reads so slowly that 64 KiB wait is cut. It comes back, and the history has what it missed.
ROOM = ChannelOptions(history=500, ttl=3600, presence=True, max_waiting=65_536)

app = Yaat(
    broker=BROKER,
    channels=Channels({"room:{name:path}": ROOM}),
    policy=Policy(max_message_bytes=16_384, origins=WORKERS),  # their pages may come here
)


@app.route("/")
@app.route("/rooms/{room}")
async def page(_request: Request) -> FileResponse:
    """Answer with the one page; it finds its room in its own address."""
    return FileResponse(Path(__file__).with_name("chat.html"))


@app.websocket_route("/rooms/{room}")
async def chat(websocket: WebSocket, room: str) -> None:
    """Keep one member in a room for as long as its connection lives."""
    await websocket.accept()
    name = websocket.query_params.get("name", "").strip()
    if not (0 < len(name) <= NAME and name.isprintable()):
        raise Refused("This name will not do")
    since = websocket.query_params.get("since")  # the position that the page has reached, if any
    joined = websocket.channel(f"room:{room}").join(
        websocket, since=since, last=LAST, format=POSITIONED, user=name
    )
    async with joined as channel:
        websocket.start_soon(tell_who_is_here, websocket, channel)
        async for message in websocket.iter_json():
            match message:
                case {"text": str(text)} if 0 < len(text) <= TEXT:
                    await channel.publish({"name": name, "text": text})
                case _:
                    raise Refused("Not a chat message")
            await asyncio.sleep(PAUSE)


async def tell_who_is_here(websocket: WebSocket, channel: Channel) -> None:
    """Send the list, again and again: who was in a process that was killed does not say goodbye."""
    while True:
        with suppress(BrokerUnavailable):  # then the page has the last list for a while
            here = {present.client: present.user for present in await channel.presence()}
            await websocket.send_json({"here": here, "workers": WORKERS})
        await asyncio.sleep(LOOK)
