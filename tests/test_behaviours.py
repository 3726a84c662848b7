"""One life on every server: each behaviour is one test, run against every peer.

A peer is a real server process with a client on a real socket, or the test client in process. What
a server truly cannot do is a fact of its specification, and is asserted as that.
"""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

import pytest

from apps.behaviours import BAD_ACCEPTS, BAD_EVENTS, BAD_FIRST_EVENTS, SECRET
from clients import Client, Closed, Http2, Refused, SocketClient
from peers import Peer, ServerPeer
from servers import SPECS, Server, ServerPool, ServerSpec

Leave = Callable[[Client], Any]

# The ways of a client to leave, and the code of its close frame, if it sends one.
LEAVING: dict[str, tuple[Leave, int | None]] = {
    "close": (lambda client: client.hang_up(4321, "done"), 4321),
    "close-without-code": (lambda client: client.hang_up(None), 1005),
    "fin": (lambda client: client.vanish(), None),
    "rst": (lambda client: client.reset(), None),
}


@pytest.fixture(params=LEAVING)
def way(request: pytest.FixtureRequest) -> str:
    """Each way to leave in turn."""
    return str(request.param)


def learned(peer: Peer, way: str) -> int:
    """The code that the handler learns."""
    code = LEAVING[way][1]
    if code is None:
        return peer.facts.code_after_loss
    return code if peer.facts.tells_close_code else 1006


def assert_arrived(received: list[Any], sent: list[Any], way: str) -> None:
    """Assert that all arrived; before an RST, what came first: TCP throws the rest away."""
    assert received == (sent[: len(received)] if way == "rst" else sent)


async def send(client: Client, message: str | bytes) -> None:
    """Send a text or a bytes message."""
    if isinstance(message, str):
        await client.send_text(message)
    else:
        await client.send_bytes(message)


async def closed(client: Client) -> tuple[int, str]:
    """Read to the end of the connection; return the code and reason that the client saw."""
    try:
        while True:
            await client.receive()
    except Closed as end:
        return end.code, end.reason


async def refused(peer: Peer, path: str, **options: Any) -> Refused:
    """Connect to what does not accept."""
    with pytest.raises(Refused) as answer:
        async with peer.connect(path, **options):
            pytest.fail("it was accepted")
    return answer.value


async def open_the_gate(peer: Peer) -> None:
    """Let the handler that waits at the gate go on."""
    async with peer.connect("/open-the-gate"):
        pass


async def assert_quiet_end(peer: Peer) -> None:
    """Assert that the application ended without an error for anybody to see."""
    await peer.settled()
    assert peer.errors() == []
    assert peer.escaped() == []
    assert peer.tracebacks() == 0, peer.written()


async def assert_one_error(peer: Peer, error: str = f"ValueError('{SECRET}')") -> None:
    """Assert that the error was logged once, with its traceback, on `yaat.error`."""
    await peer.settled()
    assert [(log["logger"], log["error"]) for log in peer.errors()] == [("yaat.error", error)]
    assert peer.escaped() == []
    assert peer.tracebacks() == 0, peer.written()


# How it ends


async def test_a_handler_that_returns_closes_with_1000(peer: Peer) -> None:
    async with peer.connect("/return") as client:
        assert await client.receive() == "bye"
        assert await closed(client) == (1000, "")
    await assert_quiet_end(peer)


async def test_an_exception_closes_with_1011_and_one_log_record(peer: Peer) -> None:
    async with peer.connect("/raise") as client:
        assert await client.receive() == "oh"
        code, reason = await closed(client)
        assert code == 1011
        assert SECRET not in reason
    await assert_one_error(peer)


async def test_a_stray_cancellation_closes_with_1011(peer: Peer) -> None:
    async with peer.connect("/cancel") as client:
        assert (await closed(client))[0] == 1011


@pytest.mark.parametrize(
    ("path", "message", "code"),
    [
        ("/want/text", b"bytes", 1003),
        ("/want/bytes", "text", 1003),
        ("/want/json", b"{}", 1003),
        ("/want/json", "{not json", 1007),
        ("/want-json-bytes", b"\xff", 1007),
        ("/want/text", "x" * 1001, 1009),
        ("/want/text", "ä" * 501, 1009),
        ("/want/bytes", b"x" * 1001, 1009),
        ("/want/json", '"' + "x" * 1000 + '"', 1009),
    ],
)
async def test_a_message_that_is_not_taken(
    peer: Peer, path: str, message: str | bytes, code: int
) -> None:
    async with peer.connect(path) as client:
        await send(client, message)
        assert (await closed(client))[0] == peer.facts.close_code(code)
    await assert_quiet_end(peer)


@pytest.mark.parametrize(("kind", "message"), [("text", "x" * 1000), ("bytes", b"x" * 1000)])
async def test_a_message_as_big_as_the_policy_allows(
    peer: Peer, kind: str, message: str | bytes
) -> None:
    async with peer.connect(f"/want/{kind}") as client:
        await send(client, message)
        assert (await closed(client))[0] == 1000
    value = (await peer.recorded("got"))["value"]
    assert value == (message if isinstance(message, str) else message.hex())


async def test_a_wrong_message_may_be_forgiven(peer: Peer) -> None:
    async with peer.connect("/forgive") as client:
        await client.send_text("text")
        await client.send_text("{not json")
        assert await client.receive() == "all forgiven"
    await peer.recorded("forgiven", 2)
    kinds = [record["kinds"] for record in peer.records("forgiven")]
    assert [kind[0] for kind in kinds] == ["WrongKindError", "MalformedError"]
    assert all("ValueError" in kind for kind in kinds)


async def test_refused_after_accept_closes_with_1008(peer: Peer) -> None:
    async with peer.connect("/refused-after") as client:
        reason = "no entry" if peer.facts.sends_reason else ""
        assert await closed(client) == (peer.facts.close_code(1008), reason)
    await assert_quiet_end(peer)


async def test_a_websocket_exception_closes_with_its_code(peer: Peer) -> None:
    async with peer.connect("/websocket-exception/4003") as client:
        assert await closed(client) == (4003, "mine" if peer.facts.sends_reason else "")
    await assert_quiet_end(peer)


async def test_an_http_exception_after_accept_closes_with_1008(peer: Peer) -> None:
    async with peer.connect("/http-exception-after") as client:
        code, reason = await closed(client)
        assert code == peer.facts.close_code(1008)
        assert reason == ("who are you" if peer.facts.sends_reason else "")
    await assert_quiet_end(peer)


@pytest.mark.parametrize("code", [1000, 1001, 1013, 3000, 4999])
async def test_a_close_code_travels(peer: Peer, code: int) -> None:
    async with peer.connect(f"/close/{code}?reason={quote('tschüss')}") as client:
        seen, reason = await closed(client)
        assert seen == peer.facts.close_code(code)
        assert reason == ("tschüss" if peer.facts.sends_reason else "")
    assert (await peer.recorded("close"))["error"] == "nothing"
    await assert_quiet_end(peer)


@pytest.mark.parametrize(("code", "seen"), [(1005, 1000), (1006, 1011), (1015, 1011)])
async def test_a_reserved_close_code_is_replaced(peer: Peer, code: int, seen: int) -> None:
    async with peer.connect(f"/close/{code}") as client:
        assert await closed(client) == (seen, "")
    assert (await peer.recorded("close"))["error"] == "nothing"
    await assert_quiet_end(peer)


@pytest.mark.parametrize("code", [0, 999, 1004, 1016, 2999, 5000, 70000])
async def test_a_close_code_out_of_range_is_a_value_error(peer: Peer, code: int) -> None:
    async with peer.connect(f"/close/{code}") as client:
        assert await closed(client) == (1000, "")
    assert "ValueError" in (await peer.recorded("close"))["kinds"]


@pytest.mark.parametrize(
    ("reason", "error"),
    [("x" * 123, None), ("ä" * 61, None), ("x" * 124, "ValueError"), ("ä" * 62, "ValueError")],
)
async def test_a_close_reason_has_at_most_123_bytes(
    peer: Peer, reason: str, error: str | None
) -> None:
    async with peer.connect(f"/close/4000?reason={quote(reason)}") as client:
        seen = await closed(client)
    record = await peer.recorded("close")
    if error:
        assert error in record["kinds"]
        assert seen == (1000, "")
    else:
        assert record["error"] == "nothing"
        assert seen == (4000, reason if peer.facts.sends_reason else "")


async def test_a_close_leaves_behind_a_message(peer: Peer) -> None:
    async with peer.connect("/send-and-close") as client:
        assert await client.receive() == "last"
        assert (await closed(client))[0] == 4001
    await assert_quiet_end(peer)


async def test_a_second_close_does_nothing(peer: Peer) -> None:
    async with peer.connect("/close-twice") as client:
        assert await closed(client) == (4001, "first" if peer.facts.sends_reason else "")
    assert (await peer.recorded("close"))["error"] == "nothing"
    # Sending after our own close is a mistake of the program, not a departure.
    assert (await peer.recorded("send"))["error"] == "StateError"
    await assert_quiet_end(peer)


# How it is refused


@pytest.mark.parametrize(
    "path", ["/close-before-accept", "/return-before-accept", "/websocket-exception-before"]
)
async def test_a_plain_refusal_is_a_403(peer: Peer, path: str) -> None:
    assert (await refused(peer, path)).status == 403
    await assert_quiet_end(peer)


async def test_an_exception_before_accept_is_a_500(peer: Peer) -> None:
    answer = await refused(peer, "/raise-before-accept")
    assert answer.status == (500 if peer.facts.can_deny else 403)
    assert SECRET.encode() not in answer.body
    await assert_one_error(peer)


async def test_an_http_exception_before_accept_is_that_status(peer: Peer) -> None:
    answer = await refused(peer, "/http-exception")
    if peer.facts.can_deny:
        assert (answer.status, answer.body) == (401, b"who are you")
        assert ("www-authenticate", "Bearer") in answer.headers
    else:
        assert answer.status == 403
    await assert_quiet_end(peer)


async def test_refused_before_accept_is_its_status(peer: Peer) -> None:
    answer = await refused(peer, "/refused-before")
    if peer.facts.can_deny:
        assert (answer.status, answer.body) == (429, b"no entry")
        assert ("retry-after", "7") in answer.headers
    else:
        assert answer.status == 403
    await assert_quiet_end(peer)


@pytest.mark.parametrize(
    ("path", "status", "body"),
    [
        ("/deny", 418, b"full"),
        ("/deny-in-parts", 503, b"one two three"),
        ("/deny-raw", 418, b"one two"),
        ("/deny-uncaught", 418, b"full"),
    ],
)
async def test_a_denial_response(peer: Peer, path: str, status: int, body: bytes) -> None:
    answer = await refused(peer, path)
    if peer.facts.can_deny:
        assert (answer.status, answer.body) == (status, body)
    else:
        assert answer.status == 403
        if path != "/deny-uncaught":
            assert "RuntimeError" in (await peer.recorded("denial"))["kinds"]
    await assert_quiet_end(peer)


async def test_no_route_is_a_404(peer: Peer) -> None:
    answer = await refused(peer, "/nowhere")
    assert answer.status == (404 if peer.facts.can_deny else 403)
    await assert_quiet_end(peer)


async def test_a_cross_origin_handshake_is_refused_with_a_hint(peer: Peer) -> None:
    answer = await refused(peer, "/echo", headers=[("origin", "https://evil.example")])
    assert answer.status == 403
    await peer.recorded("ended")
    hints = [log for log in peer.records("log") if "origins" in log["message"]]
    assert [hint["logger"].partition(".")[0] for hint in hints] == ["yaat"]


@pytest.mark.parametrize("origin", ["null", "http://127.0.0.1:1", "http://127.0.0.1.evil.example"])
async def test_what_only_looks_like_the_same_origin_is_refused(peer: Peer, origin: str) -> None:
    assert (await refused(peer, "/echo", headers=[("origin", origin)])).status == 403


async def test_the_same_origin_is_accepted(peer: Peer) -> None:
    async with peer.connect("/echo", headers=[("origin", peer.origin)]) as client:
        await client.send_text("hello")
        assert await client.receive() == "hello"


async def test_a_policy_opens_up(peer: Peer) -> None:
    async with peer.connect("/open", headers=[("origin", "https://evil.example")]):
        pass
    async with peer.connect("/listed", headers=[("origin", "https://a.example.com")]):
        pass
    answer = await refused(peer, "/listed", headers=[("origin", "https://evil.example")])
    assert answer.status == 403


# How it begins


async def test_the_first_subprotocol_that_was_offered_is_chosen(peer: Peer) -> None:
    async with peer.connect("/choose", subprotocols=["chat", "graphql"]) as client:
        assert client.subprotocol == "graphql"
    async with peer.connect("/choose", subprotocols=["telnet"]) as client:
        assert client.subprotocol is None
    async with peer.connect("/choose") as client:
        assert client.subprotocol is None


async def test_accept_headers_reach_the_client(peer: Peer) -> None:
    async with peer.connect("/choose") as client:
        seen = [pair for pair in client.headers if pair[0] in {"x-one", "x-two"}]
    sent = [("x-one", "1"), ("x-two", "a"), ("x-two", "b")]
    assert seen == (sent if peer.facts.sends_accept_headers else [])


@pytest.mark.parametrize("path", ["/bad-accept", "/bad-raw-accept"])
@pytest.mark.parametrize("case", BAD_ACCEPTS)
async def test_a_bad_accept_is_refused_before_it_reaches_the_server(
    peer: Peer, case: str, path: str
) -> None:
    async with peer.connect(f"{path}/{case}", subprotocols=["chat"]) as client:
        assert client.subprotocol == "chat"
        assert await client.receive() == "still here"
    kinds = (await peer.recorded("accept"))["kinds"]
    assert ("TypeError" if case.endswith("another-type") else "ValueError") in kinds
    await assert_quiet_end(peer)


@pytest.mark.parametrize("query", ["", "&bare"])
async def test_the_scope_is_read_whatever_the_server_left_out(peer: Peer, query: str) -> None:
    headers = [("x-harness", "yes"), ("cookie", "a=1; b=2")]
    path = f"/scope/caf%C3%A9?q=gr%C3%BC%C3%9F&q=dich{query}"
    async with peer.connect(path, headers=headers, subprotocols=["one", "two"]) as client:
        seen = await client.receive_json()
    assert seen["url"].startswith("ws://")
    assert (seen["path"], seen["name"]) == ("/scope/café", "café")
    assert (seen["header"], seen["cookies"]) == ("yes", {"a": "1", "b": "2"})
    if query:
        assert (seen["query"], seen["client"], seen["subprotocols"]) == ({}, None, [])
    else:
        assert seen["query"]["q"] == "dich"
        assert isinstance(seen["client"][1], int)
        assert seen["subprotocols"] == ["one", "two"]


async def test_the_version_of_http(peer: Peer) -> None:
    """For the peer over HTTP/2 this shows that it spoke RFC 8441."""
    async with peer.connect("/scope/me") as client:
        version = (await client.receive_json())["http_version"]
    # daphne leaves the key out, which means 1.1.
    assert (version or "1.1") == peer.facts.http_version


# What the handler learns


async def test_what_a_receiving_handler_learns(peer: Peer, way: str) -> None:
    async with peer.connect("/learn") as client:
        await client.receive()
        await LEAVING[way][0](client)
        end = await peer.recorded("end")
    reason = "done" if way == "close" and peer.facts.tells_reason else ""
    assert (end["error"], end["code"], end["reason"] or "") == (
        "WebSocketDisconnect",
        learned(peer, way),
        reason,
    )
    again = await peer.recorded("receive again")
    assert (again["error"], again["code"]) == ("WebSocketDisconnect", end["code"])
    send = await peer.recorded("send")
    assert (send["error"], send["code"]) == ("WebSocketDisconnect", end["code"])
    assert (await peer.recorded("close"))["error"] == "nothing"
    await assert_quiet_end(peer)


async def test_what_raw_receive_tells(peer: Peer, way: str) -> None:
    async with peer.connect("/learn-raw") as client:
        await client.receive()
        await client.send_text("one")
        await client.send_bytes(b"\x02")
        await LEAVING[way][0](client)
        left = await peer.recorded("left")
    assert left["code"] == learned(peer, way)
    assert_arrived((await peer.recorded("received"))["messages"], ["one", "02"], way)
    assert (await peer.recorded("receive again"))["error"] == "StateError"
    await assert_quiet_end(peer)


async def test_a_departure_that_nobody_catches_is_ordinary_life(peer: Peer, way: str) -> None:
    async with peer.connect("/learn-uncaught") as client:
        await client.receive()
        await LEAVING[way][0](client)
        await peer.recorded("ended")
    await assert_quiet_end(peer)


async def test_the_class_is_that_of_starlette(peer: Peer) -> None:
    async with peer.connect("/disconnect-type") as client:
        await client.close(1001)
        assert (await peer.recorded("left"))["code"] == (
            1001 if peer.facts.tells_close_code else 1006
        )


@pytest.mark.parametrize(
    ("kind", "sent", "got"),
    [
        ("text", ["one", "", "zwölf"], ["one", "", "zwölf"]),
        ("bytes", [b"\x01", b"", b"\xff"], ["01", "", "ff"]),
        ("json", ['{"a": [1, null]}', "2", '"x"'], [{"a": [1, None]}, 2, "x"]),
    ],
)
async def test_iteration_ends_when_the_peer_leaves(
    peer: Peer, kind: str, sent: list[Any], got: list[Any], way: str
) -> None:
    async with peer.connect(f"/iterate/{kind}") as client:
        for message in sent:
            await send(client, message)
        await LEAVING[way][0](client)
        assert_arrived((await peer.recorded("received"))["messages"], got, way)
    await assert_quiet_end(peer)


@pytest.mark.parametrize("path", ["/first-send", "/first-send-after-receiving"])
async def test_the_first_send_after_the_loss_raises(peer: Peer, way: str, path: str) -> None:
    async with peer.connect(path) as client:
        if path == "/first-send-after-receiving":
            await client.send_text("hello")
        await client.receive()
        await peer.recorded("busy")
        await LEAVING[way][0](client)
        await open_the_gate(peer)
        send = await peer.recorded("send")
    assert send["error"] == "WebSocketDisconnect"
    assert send["code"] == learned(peer, way)
    if path == "/first-send":
        assert (await peer.recorded("send again"))["error"] == "WebSocketDisconnect"
    await assert_quiet_end(peer)


async def test_a_handler_that_only_sends_is_told(
    peer: Peer, way: str, record_property: Callable[[str, object], None]
) -> None:
    async with peer.connect("/only-send") as client:
        for _ in range(3):
            assert await client.receive() == "tick"
        left_at = time.monotonic()
        await LEAVING[way][0](client)
        end = await peer.recorded("end")
    assert end["error"] == "WebSocketDisconnect"
    assert end["code"] == learned(peer, way)
    # hypercorn, daphne and granian never tell; the promise of 50 ms is measured elsewhere.
    assert end["at"] - left_at < 1
    record_property("seconds until the send raised", round(end["at"] - left_at, 4))
    await assert_quiet_end(peer)


async def test_a_handler_that_only_sends_ends_quietly(peer: Peer, way: str) -> None:
    async with peer.connect("/only-send-uncaught") as client:
        assert await client.receive() == "tick"
        await LEAVING[way][0](client)
        await peer.recorded("ended")
    await assert_quiet_end(peer)


@pytest.mark.parametrize("way", ["fin", "rst"])
async def test_a_send_that_waits_for_room_is_told(peer: Peer, way: str) -> None:
    async with peer.connect("/flood", receive_buffer=4096) as client:
        await peer.recorded("flooding")
        await client.receive()
        await LEAVING[way][0](client)
        assert (await peer.recorded("end"))["error"] == "WebSocketDisconnect"
    await assert_quiet_end(peer)


async def test_a_peer_may_leave_before_it_was_answered(peer: Peer) -> None:
    async with peer.abandon("/pending"):
        await peer.recorded("pending")
    await open_the_gate(peer)
    assert (await peer.recorded("accept"))["error"] == "WebSocketDisconnect"
    await assert_quiet_end(peer)


# A connection is a scope


@pytest.mark.parametrize("source", ["ticks", "silence"])
async def test_a_stream_ends_when_the_peer_leaves(peer: Peer, way: str, source: str) -> None:
    async with peer.connect(f"/stream/{source}") as client:
        if source == "ticks":
            assert await client.receive() == "tick"
        await LEAVING[way][0](client)
        await peer.recorded("source closed")
        await peer.recorded("stream ended")
    await assert_quiet_end(peer)


async def test_a_stream_ends_with_its_source(peer: Peer) -> None:
    async with peer.connect("/stream/three") as client:
        assert [await client.receive() for _ in range(3)] == ["text", b"bytes", '{"json":[1]}']
        assert await closed(client) == (1000, "")
    await peer.recorded("source closed")
    await assert_quiet_end(peer)


async def test_a_stream_raises_what_its_source_raises(peer: Peer) -> None:
    async with peer.connect("/stream/broken") as client:
        assert await client.receive() == "one"
        assert (await closed(client))[0] == 1011
    await assert_one_error(peer)


async def test_wait_closed(peer: Peer, way: str) -> None:
    async with peer.connect("/wait-closed") as client:
        await client.receive()
        await LEAVING[way][0](client)
        await peer.recorded("end")
    send = await peer.recorded("send")
    assert (send["error"], send["code"]) == ("WebSocketDisconnect", learned(peer, way))
    await assert_quiet_end(peer)


@pytest.mark.parametrize("path", ["/children", "/children-of-a-busy-handler"])
async def test_children_end_with_the_connection(peer: Peer, way: str, path: str) -> None:
    async with peer.connect(path) as client:
        await client.receive()
        await peer.recorded("first began")
        await LEAVING[way][0](client)
        if path == "/children-of-a-busy-handler":
            await open_the_gate(peer)
        await peer.recorded("ended", 2 if path == "/children-of-a-busy-handler" else 1)
    # They were awaited: nothing of theirs comes later than the end of the application.
    assert peer.records("first ended")
    if path == "/children":
        assert peer.records("second ended")
    await assert_quiet_end(peer)


async def test_children_end_when_the_handler_returns(peer: Peer) -> None:
    async with peer.connect("/children-of-a-busy-handler") as client:
        await client.receive()
        await peer.recorded("first began")
        await open_the_gate(peer)
        assert await closed(client) == (1000, "")
    await peer.recorded("first ended")
    await assert_quiet_end(peer)


async def test_an_exception_of_a_child_ends_the_connection(peer: Peer) -> None:
    async with peer.connect("/child-raises") as client:
        assert await client.receive() == "oh"
        code, reason = await closed(client)
        assert code == 1011
        assert SECRET not in reason
    await peer.recorded("ended")
    assert peer.records("handler left")
    assert peer.records("sibling ended")
    await assert_one_error(peer)


async def test_a_refusal_of_a_child_closes_with_its_code(peer: Peer) -> None:
    async with peer.connect("/child-refuses") as client:
        assert (await closed(client))[0] == 4007
    await assert_quiet_end(peer)


# Order and size


async def test_what_several_tasks_send_leaves_in_the_order_of_the_calls(peer: Peer) -> None:
    async with peer.connect("/tasks", receive_buffer=4096) as client:
        await peer.recorded("sending")
        messages = [await client.receive() for _ in range(60)]
        await client.send_text("that was all")
        assert (await closed(client))[0] == 1000
    heads = [(m if isinstance(m, str) else m.decode()).split() for m in messages]
    calls = [(int(call), int(task), int(number)) for call, task, number in heads]
    assert [call for call, _, _ in calls] == list(range(60))
    for task in range(3):
        assert [number for _, sender, number in calls if sender == task] == list(range(20))
    assert all(isinstance(m, str) is bool(c[2] % 2) for m, c in zip(messages, calls, strict=True))


async def test_nothing_is_lost_while_the_handler_only_sends(peer: Peer) -> None:
    sent = [f"message {number}" for number in range(50)]
    async with peer.connect("/late-reader") as client:
        assert await client.receive() == "tick"
        for message in sent:
            await client.send_text(message)
        await open_the_gate(peer)
        while await client.receive() != "now":
            pass
        await client.close()
        assert (await peer.recorded("received"))["messages"] == sent
    await assert_quiet_end(peer)


async def test_who_only_sends_still_pushes_back(peer: Peer) -> None:
    """What is read ahead is bounded: a client that sends and sends has to wait; nothing is lost."""
    sent, enough = 0, asyncio.Event()

    async def push() -> None:
        nonlocal sent
        # 16 MiB: the buffers of the kernels and of the servers take 3 to 6 of them.
        while sent < 256 and not enough.is_set():
            await client.send_bytes(str(sent).encode().ljust(2**16))
            sent += 1
        await client.send_bytes(b"-1")

    async with peer.connect("/late-counter") as client:
        pushing = asyncio.create_task(push())
        before = -1
        while sent > before:
            before = sent
            await asyncio.wait((pushing,), timeout=0.3)
        assert pushing.done() is not peer.facts.pushes_back
        enough.set()
        await open_the_gate(peer)
        await pushing
        assert (await peer.recorded("counted"))["numbers"] == [*range(sent), -1]
    await assert_quiet_end(peer)


async def test_big_messages(peer: Peer) -> None:
    data = bytes(range(256)) * 4000
    text = "ä" * 500_000
    async with peer.connect("/echo-bytes") as client:
        await client.send_bytes(data)
        assert await client.receive() == data
    async with peer.connect("/echo") as client:
        await client.send_text(text)
        assert await client.receive() == text


async def test_json(peer: Peer) -> None:
    value = {"text": "grüß dich \u2028 \x00", "list": [1, -2.5, None, True], "empty": {}}
    async with peer.connect("/echo-json") as client:
        await client.send_json(value)
        assert await client.receive_json() == value


async def test_empty_messages(peer: Peer) -> None:
    async with peer.connect("/echo-raw") as client:
        await client.send_text("")
        await client.send_bytes(b"")
        await client.send_text("end")
        if peer.facts.sends_empty:
            assert await client.receive() == ""
            assert await client.receive() == b""
        assert await client.receive() == "end"


async def test_wrong_values_do_not_reach_the_server(peer: Peer) -> None:
    async with peer.connect("/wrong-values") as client:
        # In ASCII, for a report of a lone surrogate cannot be written.
        assert ascii(await client.receive()) == "'still here'"
    await peer.recorded("ended")
    errors = [set(record["kinds"]) & {"TypeError", "ValueError"} for record in peer.records("call")]
    expected = [{"TypeError"}] * 6
    expected[2] = {"ValueError"}
    assert errors == expected
    await assert_quiet_end(peer)


@pytest.mark.parametrize("case", BAD_EVENTS)
async def test_a_bad_event_is_refused_before_it_reaches_the_server(peer: Peer, case: str) -> None:
    async with peer.connect(f"/bad-event/{case}") as client:
        assert ascii(await client.receive()) == "'still here'"
    record = await peer.recorded("event")
    assert {"UsageError", "TypeError", "ValueError"} & set(record["kinds"]), record
    await assert_quiet_end(peer)


@pytest.mark.parametrize("case", BAD_FIRST_EVENTS)
async def test_a_bad_answer_to_the_handshake_is_refused(peer: Peer, case: str) -> None:
    async with peer.connect(f"/bad-first-event/{case}") as client:
        assert await client.receive() == "still here"
    record = await peer.recorded("event")
    assert {"UsageError", "TypeError", "ValueError"} & set(record["kinds"]), record
    await assert_quiet_end(peer)


async def test_what_a_client_sees_when_the_server_stops(spec: ServerSpec, tmp_path: Path) -> None:
    with Server(spec, "apps.behaviours:app", tmp_path) as server:
        peer = ServerPeer(spec, server)
        async with peer.connect("/learn") as client:
            assert await client.receive() == "welcome"
            server.terminate()
            assert (await closed(client))[0] == spec.facts.code_on_stop


# RFC 8441, section 5: on HTTP/2 the end of the stream stands in place of the end of the connection


@pytest.fixture
def http2(servers: ServerPool) -> ServerPeer:
    """The server that speaks HTTP/2."""
    spec = SPECS["hypercorn-h2"]
    return ServerPeer(spec, servers.get(spec, "apps.behaviours:app"))


async def test_a_reset_stream_is_a_departure(http2: ServerPeer) -> None:
    async with http2.connect("/learn") as client:
        await client.receive()
        wire = cast("SocketClient", client).wire
        assert isinstance(wire, Http2)
        wire.reset_stream()
        assert (await http2.recorded("end"))["code"] == 1006
    await assert_quiet_end(http2)
