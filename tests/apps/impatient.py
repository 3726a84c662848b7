"""A handler that waits for each message only so long, and then tries again."""

import asyncio

from yaat import WebSocket, Yaat

PATIENCE = 0.002
"""In seconds: about as long as it takes the next message to come."""

app = Yaat()


@app.websocket_route("/count")
async def count(websocket: WebSocket) -> None:
    """Count the messages before "how many?", in spite of many a receive that was given up."""
    await websocket.accept()
    messages = given_up = 0
    while True:
        try:
            async with asyncio.timeout(PATIENCE):
                if await websocket.receive_text() == "how many?":
                    break
        except TimeoutError:
            given_up += 1
        else:
            messages += 1
    await websocket.send_json({"messages": messages, "given up": given_up})
