"""A receive that is given up takes no message with it, on any server."""

import asyncio
import random

from apps.impatient import PATIENCE
from clients import connect
from servers import ServerPool, ServerSpec

COUNT = 250


async def test_no_message_is_lost_with_a_receive_that_is_given_up(
    spec: ServerSpec, servers: ServerPool
) -> None:
    """Granian drops what it has in its hands when the call that waits for it is cancelled."""
    server = servers.get(spec, "apps.impatient:app")
    url = server.url("/count")
    pause = random.Random(2)
    async with connect(url, http_version=spec.facts.http_version) as client:
        for number in range(COUNT):
            await client.send_text(str(number))
            await asyncio.sleep(2 * PATIENCE * pause.random())
        await client.send_text("how many?")
        seen = await client.receive_json()
    assert seen["messages"] == COUNT
    assert seen["given up"] > 0
