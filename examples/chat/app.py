"""A chat: every address under /rooms/ is a room, and every tab that opens it a member."""

import asyncio
from collections import defaultdict
from contextlib import suppress
from itertools import chain, count
from pathlib import Path

from yaat import Policy, Refused, Request, WebSocket, Yaat
from yaat.constants import WebSocketCloseEvent as WsClose
from yaat.responses import FileResponse

NAME, ROOM, TEXT = 24, 40, 1000  # the longest of each, in characters
BACKLOG = 100  # events waiting for a member: with so many it is closed
PATIENCE = 5.0  # seconds that a member may take to read one of them
PAUSE = 0.05  # seconds between two messages of one member: a flood waits in its own connection

Inbox = asyncio.Queue[dict[str, object]]
rooms: defaultdict[str, dict[str, Inbox]] = defaultdict(dict)  # who is in which room

app = Yaat(policy=Policy(max_message_bytes=16 * 1024))


@app.route("/")
@app.route("/rooms/{room}")
async def page(_request: Request) -> FileResponse:
    """Answer with the one page; it finds its room in its own address."""
    return FileResponse(Path(__file__).with_name("chat.html"))


@app.websocket_route("/rooms/{room}")
async def chat(websocket: WebSocket, room: str) -> None:
    """Keep one member in a room for as long as its connection lives."""
    await websocket.accept()
    wanted = websocket.query_params.get("name", "").strip()
    if not (0 < len(wanted) <= NAME and wanted.isprintable() and len(room) <= ROOM):
        raise Refused("This name will not do")
    members, inbox = rooms[room], Inbox(BACKLOG)
    name = unique(wanted, members)
    members[name] = inbox
    try:
        tell(members, "joined", name=name, here=sorted(members))
        websocket.start_soon(deliver, inbox, websocket)
        async for message in websocket.iter_json():
            match message:
                case {"text": str(text)} if 0 < len(text) <= TEXT:
                    tell(members, "said", name=name, text=text)
                case _:
                    raise Refused("Not a chat message")
            await asyncio.sleep(PAUSE)
    finally:  # however it ended: by a close, a lost cable, a mistake of theirs or ours
        del members[name]
        tell(members, "left", name=name, here=sorted(members))
        if not members:
            del rooms[room]


def unique(name: str, taken: dict[str, Inbox]) -> str:
    """Return the name, with a number behind it if somebody in the room has it already."""
    names = chain([name], (f"{name} {number}" for number in count(2)))
    return next(free for free in names if free not in taken)


def tell(members: dict[str, Inbox], happened: str, **details: object) -> None:
    """Put an event into every inbox; it never waits, so no member can hold up another."""
    for inbox in members.values():
        with suppress(asyncio.QueueFull):  # `deliver` will see that it was full
            inbox.put_nowait({"type": happened, **details})


async def deliver(inbox: Inbox, websocket: WebSocket) -> None:
    """Send a member what is in its inbox, until it falls too far behind."""
    with suppress(TimeoutError):
        event = await inbox.get()
        while inbox.qsize() + 1 < BACKLOG:  # it was not full before, so nothing has been left out
            async with asyncio.timeout(PATIENCE):
                await websocket.send_json(event)
            event = await inbox.get()
    raise Refused("You read too slowly", code=WsClose.TRY_AGAIN_LATER)
