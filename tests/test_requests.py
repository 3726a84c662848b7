"""What a request and a WebSocket have in common, read from every scope that a server may give."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from starlette import datastructures
from starlette.requests import HTTPConnection as StarletteConnection
from starlette.requests import Request as StarletteRequest

from yaat.channels import Channel, ChannelOptions, Channels, Hub
from yaat.exceptions import ChannelNameError, UsageError
from yaat.requests import URL, HTTPConnection, Request
from yaat.types import Message
from yaat.websockets import WebSocket

HTTP: dict[str, Any] = {
    "type": "http",
    "method": "GET",
    "path": "/shop/über",
    "query_string": b"a=1&a=2&q=%C3%A9",
    "headers": [(b"host", b"example.com:8080"), (b"x-tag", b"one"), (b"x-tag", b"two")],
    "scheme": "https",
    "server": ("127.0.0.1", 8000),
    "client": ("192.0.2.7", 4711),
}


def connection(kind: str = "http", **keys: Any) -> HTTPConnection:
    return HTTPConnection({"type": kind, "path": "/", **keys})


def test_the_url_is_a_string() -> None:
    url = Request(dict(HTTP)).url
    text = "https://example.com:8080/shop/über?a=1&a=2&q=%C3%A9"
    assert isinstance(url, str)
    assert url == text
    assert text == url
    assert url != "https://example.com/"
    assert hash(url) == hash(text)
    assert "/shop" in url
    assert url.startswith("https://")
    assert f"{url}" == str(url) == text
    assert json.loads(json.dumps({"url": url})) == {"url": text}
    assert repr(url) == f"URL({text!r})"


def test_the_url_equals_starlettes() -> None:
    url = Request(dict(HTTP)).url
    assert isinstance(url, datastructures.URL)
    assert url == StarletteRequest(dict(HTTP)).url
    assert url != 7


def test_the_url_has_its_parts() -> None:
    url = Request(dict(HTTP)).url
    assert url.scheme == "https"
    assert url.netloc == "example.com:8080"
    assert url.host == url.hostname == "example.com"
    assert url.port == 8080
    assert url.path == "/shop/über"
    assert url.query == "a=1&a=2&q=%C3%A9"
    assert url.fragment == ""
    assert url.username is None
    assert url.password is None
    assert url.components.path == "/shop/über"
    assert url.host_header == "example.com:8080"
    assert url.server == ("127.0.0.1", 8000)


def test_a_url_from_a_string() -> None:
    url = URL("wss://me:secret@example.com:8443/chat?room=1#top")
    assert url.host == "example.com"
    assert url.server == ("example.com", 8443)
    assert url.host_header is None
    assert url.fragment == "top"
    assert (url.username, url.password) == ("me", "secret")
    assert "secret" in url
    assert "secret" not in repr(url)
    assert URL("/chat").server is None


def test_a_url_from_its_parts() -> None:
    assert URL(scheme="ws", netloc="example.com", path="/chat") == "ws://example.com/chat"


@pytest.mark.parametrize(
    ("scheme", "secure"), [("http", False), ("ws", False), ("https", True), ("wss", True)]
)
def test_is_secure_is_a_method_and_a_property(scheme: str, secure: bool) -> None:  # noqa: FBT001
    url = connection(scheme=scheme).url.replace(scheme=scheme, netloc="example.com")
    assert url.is_secure() is secure
    assert bool(url.is_secure) is secure


def test_replace_takes_text_as_a_string_does_and_parts_as_starlette_does() -> None:
    url = URL("http://example.com/a/a?x=1")
    assert url.replace("a/a", "b") == "http://example.com/b?x=1"
    assert url.replace("a", "b", 1) == "http://exbmple.com/a/a?x=1"
    changed = url.replace(scheme="https", port=444)
    assert changed == "https://example.com:444/a/a?x=1"
    assert isinstance(changed, URL)


def test_query_parameters_are_changed_as_in_starlette() -> None:
    url = URL("http://example.com/?a=1&b=2")
    assert url.include_query_params(c=3) == "http://example.com/?a=1&b=2&c=3"
    assert url.replace_query_params(c=3) == "http://example.com/?c=3"
    assert url.remove_query_params(["a"]).is_secure() is False
    assert url.remove_query_params("a") == "http://example.com/?b=2"


def test_the_root_path_is_not_added_to_the_path_that_has_it() -> None:
    mounted = connection(path="/api/chat", root_path="/api", headers=[(b"host", b"example.com")])
    assert mounted.url == "http://example.com/api/chat"
    assert mounted.base_url == "http://example.com/api/"
    assert connection(headers=[(b"host", b"h")], query_string=b"a=1").base_url == "http://h/"


def test_the_base_url_of_a_mounted_application_is_that_of_the_outermost() -> None:
    scope: dict[str, Any] = {"app_root_path": "/app", "root_path": "/app/mounted"}
    assert connection(path="/app/mounted/x", **scope).base_url == "/app/"


def test_a_url_for_a_route_is_made_of_the_base_url() -> None:
    class Routes:
        def url_path_for(self, name: str, /, **_: Any) -> datastructures.URLPath:
            return datastructures.URLPath(f"/{name}", protocol="websocket")

    keys: dict[str, Any] = {
        "headers": [(b"host", b"example.com")],
        "scheme": "https",
        "router": Routes(),
    }
    assert connection(**keys).url_for("chat") == "wss://example.com/chat"


@pytest.mark.parametrize(
    ("kind", "keys", "url"),
    [
        ("http", {}, "/"),
        ("http", {"headers": None, "query_string": None, "scheme": None}, "/"),
        ("http", {"server": ("example.com", 80)}, "http://example.com/"),
        ("http", {"server": ["example.com", "8080"]}, "http://example.com:8080/"),
        ("http", {"server": ("::1", 8080)}, "http://[::1]:8080/"),
        ("http", {"server": ("/run/app.sock", None)}, "/"),
        ("http", {"server": "somewhere"}, "/"),
        ("websocket", {"server": ("example.com", 80)}, "ws://example.com/"),
        ("websocket", {"headers": [[b"host", b"example.com"]]}, "ws://example.com/"),
        ("websocket", {"headers": ((b"host", b"h"),), "scheme": "wss"}, "wss://h/"),
    ],
)
def test_a_url_from_a_scope_that_lacks_keys(kind: str, keys: dict[str, Any], url: str) -> None:
    assert connection(kind, **keys).url == url


def test_a_host_that_is_none_is_not_believed() -> None:
    keys: dict[str, Any] = {"headers": [(b"host", b"evil/path?")], "server": ("example.com", 80)}
    assert connection(**keys).url == "http://example.com/"
    assert connection(**keys).url.host_header == "evil/path?"


def test_a_query_that_is_not_utf8_does_not_raise() -> None:
    assert connection(query_string=b"a=\xff").url == "/?a=\N{REPLACEMENT CHARACTER}"
    assert connection(query_string=b"a=\xff").query_params["a"] == "ÿ"


def test_what_the_scope_lacks_is_empty() -> None:
    bare = connection("websocket")
    assert dict(bare.headers) == {}
    assert dict(bare.query_params) == {}
    assert dict(connection(query_string=None).query_params) == {}
    assert bare.cookies == {}
    assert bare.path_params == {}
    assert bare.client is None
    assert bare.path == "/"


def test_everything_is_parsed_once() -> None:
    request = Request(dict(HTTP))
    assert request.url is request.url
    assert request.headers is request.headers
    assert request.query_params is request.query_params


def test_nothing_is_kept_before_it_is_asked_for() -> None:
    assert vars(connection()) == {"scope": {"type": "http", "path": "/"}}


def test_headers_are_a_case_insensitive_mapping() -> None:
    headers = Request(dict(HTTP)).headers
    assert headers["X-Tag"] == headers["x-tag"] == "one"
    assert headers.getlist("X-TAG") == ["one", "two"]
    assert "HOST" in headers
    assert headers.get("x-none") is None
    assert dict(headers) == {"host": "example.com:8080", "x-tag": "one"}
    assert not hasattr(headers, "__setitem__")


def test_query_parameters_are_strings() -> None:
    parameters = Request(dict(HTTP)).query_params
    assert parameters["a"] == "2"
    assert parameters.getlist("a") == ["1", "2"]
    assert dict(parameters) == {"a": "2", "q": "é"}


@pytest.mark.parametrize(
    ("client", "host", "port"),
    [
        (("192.0.2.7", 4711), "192.0.2.7", 4711),
        (["192.0.2.7", "54200"], "192.0.2.7", 54200),
        (("192.0.2.7", None), "192.0.2.7", 0),
    ],
)
def test_the_client_has_a_host_and_a_port(client: Any, host: str, port: int) -> None:
    address = connection(client=client).client
    assert address is not None
    assert (address.host, address.port) == (host, port)


def test_it_is_a_mapping_of_the_scope_and_has_what_starlettes_has() -> None:
    request = Request({**HTTP, "app": "app", "session": {"n": 1}, "user": "me", "auth": "all"})
    assert isinstance(request, StarletteRequest)
    assert isinstance(request, StarletteConnection)
    assert request["path"] == request.path == "/shop/über"
    assert (request.app, request.user, request.auth) == ("app", "me", "all")
    assert request.session == {"n": 1}
    request.state.name = "kept"
    assert request.scope["state"] == {"name": "kept"}


def test_a_request_can_be_given_the_type_of_its_state() -> None:
    assert Request[dict[str, Any]](dict(HTTP)).method == "GET"


def test_a_request_is_none_of_a_websocket() -> None:
    with pytest.raises(UsageError, match="'websocket'"):
        Request({"type": "websocket", "path": "/"})


async def test_the_body_is_starlettes() -> None:
    messages: Iterator[Message] = iter(
        [
            {"type": "http.request", "body": b'{"a":', "more_body": True},
            {"type": "http.request", "body": b" 1}"},
        ]
    )

    async def receive() -> Message:
        return next(messages)

    request = Request(dict(HTTP), receive)
    assert await request.json() == {"a": 1}
    assert await request.body() == b'{"a": 1}'


async def test_a_channel_is_one_of_the_application_around_it() -> None:
    hub = Hub(None, Channels({"room:{id}": ChannelOptions(history=1)}))
    for each in (
        Request({**HTTP, "yaat.hub": hub}),
        connection("http", **{"yaat.hub": hub}),
        WebSocket({"type": "websocket", "path": "/", "yaat.hub": hub}, unused, unused),
    ):
        channel = each.channel("room:1")
        assert isinstance(channel, Channel)
        assert (channel.name, channel.options.history) == ("room:1", 1)
        await channel.publish("x")
        assert (await hub.channel("room:1").history()).publications[0].data == "x"
        for name in ("", "a" * 256, "\ud800"):
            with pytest.raises(ChannelNameError):
                each.channel(name)
    await hub.close()


def test_without_an_application_there_are_no_channels() -> None:
    why = r"^channels need a Yaat around the handler; elsewhere there is app.channel\(name\)$"
    for each in (Request(dict(HTTP)), connection("websocket")):
        with pytest.raises(UsageError, match=why):
            each.channel("room:1")


async def unused(*_: object) -> Any:
    raise AssertionError
