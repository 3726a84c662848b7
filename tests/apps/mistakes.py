"""Events that an application must not send, whatever the server is."""

from typing import Any

Event = dict[str, Any]


def accept(**facts: Any) -> Event:
    return {"type": "websocket.accept", **facts}


def denial(**facts: Any) -> Event:
    return {"type": "websocket.http.response.start", "status": 403, **facts}


AFTER: dict[str, Event] = {
    "neither": {"type": "websocket.send"},
    "neither-but-keys": {"type": "websocket.send", "text": None, "bytes": None},
    "both": {"type": "websocket.send", "text": "a", "bytes": b"a"},
    "text-of-bytes": {"type": "websocket.send", "text": b"a"},
    "text-of-int": {"type": "websocket.send", "text": 1},
    "bytes-of-text": {"type": "websocket.send", "bytes": "a"},
    "bytes-of-int": {"type": "websocket.send", "bytes": 3},
    "surrogate": {"type": "websocket.send", "text": "\ud800"},
    "unknown": {"type": "websocket.ping"},
    "http": {"type": "http.response.start", "status": 200, "headers": []},
    "no-type": {"text": "a"},
    "incoming": {"type": "websocket.receive", "text": "a"},
    "incoming-disconnect": {"type": "websocket.disconnect", "code": 1000},
    "accept-twice": {"type": "websocket.accept"},
    "denial-too-late": denial(headers=[]),
    "code-text": {"type": "websocket.close", "code": "1000"},
    "code-999": {"type": "websocket.close", "code": 999},
    "code-1004": {"type": "websocket.close", "code": 1004},
    "code-5000": {"type": "websocket.close", "code": 5000},
    "code-70000": {"type": "websocket.close", "code": 70000},
    "code-negative": {"type": "websocket.close", "code": -1},
    "reason-long": {"type": "websocket.close", "reason": "ä" * 62},
    "reason-bytes": {"type": "websocket.close", "reason": b"bye"},
    "reason-surrogate": {"type": "websocket.close", "reason": "\ud800"},
}

BEFORE: dict[str, Event] = {
    "send": {"type": "websocket.send", "text": "a"},
    "body": {"type": "websocket.http.response.body", "body": b""},
    "unknown": {"type": "websocket.ping"},
    "no-type": {},
    "http": {"type": "http.response.start", "status": 200, "headers": []},
    "incoming-connect": {"type": "websocket.connect"},
    "incoming-disconnect": {"type": "websocket.disconnect", "code": 1000},
    "subprotocol-crlf": accept(subprotocol="chat\r\nx-evil: 1"),
    "subprotocol-control": accept(subprotocol="ch\x01at"),
    "subprotocol-space": accept(subprotocol="chat room"),
    "subprotocol-empty": accept(subprotocol=""),
    "subprotocol-not-ascii": accept(subprotocol="chät"),
    "subprotocol-never-offered": accept(subprotocol="bogus"),
    "subprotocol-of-another-type": accept(subprotocol=1),
    "value-crlf": accept(headers=[(b"x-a", b"1\r\nx-evil: 1")]),
    "value-nul": accept(headers=[(b"x-a", b"1\x00")]),
    "value-control": accept(headers=[(b"x-a", b"\x01")]),
    "value-of-another-type": accept(headers=[(b"x-a", 1)]),
    "headers-of-another-type": accept(headers=5),
    "name-space": accept(headers=[(b"x a", b"1")]),
    "name-pseudo": accept(headers=[(b":status", b"200")]),
    "name-empty": accept(headers=[(b"", b"1")]),
    "name-crlf": accept(headers=[(b"x-a\r\nx-evil", b"1")]),
    # ASGI, "Accept - send event": "MUST NOT include a header named sec-websocket-protocol".
    "name-subprotocol": accept(headers=[(b"sec-websocket-protocol", b"chat")]),
    "name-accept": accept(headers=[(b"Sec-WebSocket-Accept", b"x")]),
    "denial-of-nothing": {"type": "websocket.http.response.start"},
    "denial-of-text": denial(status="no"),
    "denial-of-101": denial(status=101),
    "denial-of-1000": denial(status=1000),
    "denial-value-crlf": denial(headers=[(b"x-a", b"1\r\nx-evil: 1")]),
    "denial-name-crlf": denial(headers=[(b"x-a\r\nx-evil", b"1")]),
}
