"""What a URL of Redis says, and what is said of one that is wrong: nothing secret."""

import ssl
import traceback
from pathlib import Path
from typing import Any

import pytest

from wires import certificate
from yaat.brokers import open_broker
from yaat.brokers.redis import RedisBroker
from yaat.brokers.redis.settings import SCHEMES, Address, Place, Settings, read, tls
from yaat.exceptions import ArgumentError

SECRET = "s3cret"


def place(url: str) -> Place:
    return read(url, {})[0]


def settings(url: str, **options: Any) -> Settings:
    return read(url, options)[1]


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://", Place("single", (Address("localhost", 6379),))),
        ("redis://h", Place("single", (Address("h", 6379),))),
        ("redis://H:1/", Place("single", (Address("h", 1),))),
        ("valkey://127.0.0.1:6380/2", Place("single", (Address("127.0.0.1", 6380),))),
        ("redis://u:p@[::1]:7000", Place("single", (Address("::1", 7000),))),
        ("redis://[fe80::1]", Place("single", (Address("fe80::1", 6379),))),
        ("rediss://h", Place("single", (Address("h", 6379),), is_tls=True)),
        ("valkeys://h", Place("single", (Address("h", 6379),), is_tls=True)),
        ("unix:///run/redis.sock", Place("single", (Address("/run/redis.sock", 0),))),
        ("unix://u:p@/a%20b?db=3", Place("single", (Address("/a b", 0),))),
        (
            "redis+sentinel://u:p@a,b:1,[::1]:2/main",
            Place("sentinel", (Address("a", 26379), Address("b", 1), Address("::1", 2)), "main"),
        ),
        (
            "valkeys+sentinel://a/my%20main/3",
            Place("sentinel", (Address("a", 26379),), "my main", is_tls=True),
        ),
        (
            "redis+cluster://a,b:1",
            Place("cluster", (Address("a", 6379), Address("b", 1))),
        ),
        ("rediss+cluster://a/0", Place("cluster", (Address("a", 6379),), is_tls=True)),
        ("valkey+cluster://a/", Place("cluster", (Address("a", 6379),))),
    ],
)
def test_where(url: str, expected: Place) -> None:
    assert place(url) == expected


@pytest.mark.parametrize(
    ("url", "username", "password"),
    [
        ("redis://h", None, None),
        ("redis://@h", None, None),
        ("redis://:@h", None, None),
        ("redis://u@h", "u", None),
        ("redis://:p@h", None, "p"),
        ("redis://u:p@h", "u", "p"),
        ("redis://u%3A:p%2F%40%3A@h", "u:", "p/@:"),
        ("redis://u:p:q@h", "u", "p:q"),
        ("redis://u:p@q@h", "u", "p@q"),
        ("unix://:p@/s", None, "p"),
        ("redis+sentinel://u:p@h/s", "u", "p"),
        ("redis://h?username=u&password=p", "u", "p"),
    ],
)
def test_who(url: str, username: str | None, password: str | None) -> None:
    found = settings(url)
    assert (found.username, found.password) == (username, password)


@pytest.mark.parametrize(
    ("url", "db"),
    [
        ("redis://h", 0),
        ("redis://h/", 0),
        ("redis://h/15", 15),
        ("redis://h/?db=3", 3),
        ("redis://h/4?db=3", 4),
        ("unix:///s?db=2", 2),
        ("redis+sentinel://h/s", 0),
        ("redis+sentinel://h/s/5", 5),
    ],
)
def test_which_database(url: str, db: int) -> None:
    assert settings(url).db == db


def test_every_option_can_be_said_in_a_url() -> None:
    query = (
        "prefix=p&epochs=trust&timeout=1.5&connect_timeout=2&retry_base=.01&retry_cap=3&probe=4"
        "&require=no&partitions=8&max_payload=9&max_pending=10&write_buffer=11&position_ttl=12"
        "&presence_ttl=13&once_ttl=14&sentinel_username=su&sentinel_password=sp&ssl_ca_certs=ca"
        "&ssl_certfile=ce&ssl_keyfile=ke&ssl_check_hostname=no&ssl_cert_reqs=none"
    )
    assert settings("redis://u:p@h/7?" + query) == Settings(
        username="u",
        password="p",
        db=7,
        prefix="p",
        epochs="trust",
        timeout=1.5,
        connect_timeout=2.0,
        retry_base=0.01,
        retry_cap=3.0,
        probe=4.0,
        require=False,
        partitions=8,
        max_payload=9,
        max_pending=10,
        write_buffer=11,
        position_ttl=12.0,
        presence_ttl=13.0,
        once_ttl=14.0,
        sentinel_username="su",
        sentinel_password="sp",
        ssl_ca_certs="ca",
        ssl_certfile="ce",
        ssl_keyfile="ke",
        ssl_check_hostname=False,
        ssl_cert_reqs="none",
    )


def test_keywords_have_the_last_word() -> None:
    found = settings("redis://u:p@h/1?timeout=1&require=yes", db=2, timeout=3.0, password="q")
    assert (found.username, found.password, found.db, found.timeout) == ("u", "q", 2, 3.0)
    assert found.require


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "not a URL of Redis"),
        ("redis", "not a URL of Redis"),
        ("redis:h", "URL"),
        ("http://h", "not a URL of Redis"),
        ("redis+other://h", "not a URL of Redis"),
        ("unix+sentinel:///s", "not a URL of Redis"),
        ("redis://h#0", "not a URL of Redis"),
        ("redis://[::1", "URL"),
        ("redis://h:x", "host:port"),
        ("redis://h:70000", "host:port"),
        ("redis://h:-1", "host:port"),
        ("redis://h:0", "host:port"),
        ("redis://a,b", "several servers"),
        ("redis://h/x", "number of a database"),
        ("redis://h/1/2", "database"),
        ("redis://h/-1", "database"),
        ("redis://h/" + "9" * 5000, "database"),
        ("redis+cluster://h/1", "one database"),
        ("redis+cluster://h/0/0", "one database"),
        ("redis+sentinel://h", "name the service"),
        ("redis+sentinel://h/", "name the service"),
        ("redis+sentinel://h/s/x", "number of a database"),
        ("unix://", "path"),
        ("unix:///", "path"),
        ("unix://h/s", "path"),
        ("redis://h?what=1", "no option"),
        ("redis://h?timeout=x", "timeout is a number"),
        ("redis://h?timeout=", "timeout is a number"),
        ("redis://h?partitions=1.5", "partitions is a number"),
        ("redis://h?db=1e3", "db is a number"),
        ("redis://h?require=maybe", "require is yes or no"),
        ("redis://h?db=-1", "number of a database"),
        ("redis://h?epochs=loose", "strict or trust"),
        ("redis://h?ssl_cert_reqs=some", "required or none"),
        ("redis://h?timeout=0", "timeout must be above 0"),
        ("redis://h?timeout=nan", "timeout must be above 0"),
        ("redis://h?max_pending=-1", "max_pending must be above 0"),
        ("redis://h?partitions=0", "partitions"),
        ("redis://h?partitions=16385", "partitions"),
        ("redis://h?prefix=a{b}", "prefix"),
        ("redis://h?prefix={}", "prefix"),
        ("redis://h?prefix=}", "prefix"),
    ],
)
def test_what_is_wrong(url: str, words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        RedisBroker(url)


@pytest.mark.parametrize(
    "options",
    [
        {"what": 1},
        {"db": -1},
        {"timeout": 0},
        {"prefix": "{"},
        {"prefix": "\ud800"},
        {"epochs": "other"},
        {"ssl_cert_reqs": "other"},
        {"partitions": 20_000},
    ],
)
def test_what_is_wrong_in_a_keyword(options: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match=next(iter(options))):
        RedisBroker("redis://h", **options)


@pytest.mark.parametrize("name", ["position_ttl", "presence_ttl", "once_ttl"])
def test_for_ever_is_very_long(name: str) -> None:
    assert RedisBroker(f"redis://h?{name}=inf")
    assert RedisBroker("redis://h", **{name: 1e308})


@pytest.mark.parametrize(
    "url",
    [
        "://:s3cret@h",
        "//:s3cret@h",
        "s3cret@h",
        "http://:s3cret@h",
        "redis://:s3cret@[::1",
        "redis://:s3cret@h\u2100st",
        "redis://:s3cret@h:port",
        "redis://:s3cret@h:70000",
        "redis://:s3cret/@h",
        "redis://:s3cret/more@h",
        "redis://:s3cret/1@h",
        "redis://:1/s3cret@h",
        "redis://:s3cret?@h",
        "redis://:1?s3cret@h",
        "redis://:1?timeout=s3cret@h",
        "redis://:1?require=s3cret@h",
        "redis://:1?epochs=s3cret@h",
        "redis://:1?ssl_cert_reqs=s3cret@h",
        "redis://:1?prefix={s3cret@h",
        "redis://:1#s3cret@h",
        "redis://:s3cret@a,b",
        "redis://:s3cret@h/x",
        "redis://:s3cret@h?what=1",
        "redis://:s3cret@h?timeout=x",
        "redis://h?sentinel_password=s3cret&what=1",
        "redis+sentinel://:s3cret@h",
        "redis+sentinel://:1/s3cret@h",
        "redis+sentinel://:1/s3cret@h/main",
        "redis+cluster://:1/s3cret@h",
        "unix://:s3cret@h/s",
        "unix://:s3cret/more@/s",
        "unix://:1?s3cret@/s",
    ],
)
@pytest.mark.parametrize("make", [open_broker, RedisBroker])
def test_no_error_has_what_is_secret(make: Any, url: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        make(url)
    error: BaseException | None = caught.value
    while error is not None:
        assert SECRET not in str(error)
        assert SECRET not in repr(error)
        error = error.__cause__ or error.__context__
    frames = "".join(traceback.format_exception(caught.value))
    assert SECRET not in frames.replace(url, "")


@pytest.mark.parametrize(
    "url",
    [
        "redis://u:s3cret@h:1/2",
        "redis://h?password=s3cret",
        "redis://h?sentinel_password=s3cret",
        "redis+sentinel://u:s3cret@h/main",
        "redis+cluster://u:s3cret@h",
        "unix://u:s3cret@/s",
    ],
)
def test_nothing_that_is_shown_has_what_is_secret(url: str) -> None:
    broker = RedisBroker(url)
    found = read(url, {})
    for shown in (repr(broker), str(broker), repr(broker.settings), repr(found), str(found[0])):
        assert SECRET not in shown


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://u:p@h", "RedisBroker('h:6379')"),
        ("redis://[::1]:1", "RedisBroker('[::1]:1')"),
        ("unix:///s", "RedisBroker('/s')"),
        ("redis+cluster://a,b:1", "RedisBroker('a:6379, b:1')"),
        ("redis+sentinel://a,b/main", "RedisBroker(\"'main' of the sentinels a:26379, b:26379\")"),
    ],
)
def test_what_is_shown(url: str, shown: str) -> None:
    assert repr(RedisBroker(url)) == shown


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_opens_a_broker(scheme: str) -> None:
    rest = "/run/s" if scheme == "unix" else "h/main" if "sentinel" in scheme else "h"
    broker = open_broker(f"{scheme}://{rest}")
    assert isinstance(broker, RedisBroker)
    assert broker.presence_ttl == 60.0


# TLS


def context_of(url: str) -> ssl.SSLContext:
    context = tls(*read(url, {}))
    assert context is not None
    return context


@pytest.mark.parametrize("url", ["redis://h", "unix:///s", "redis+sentinel://h/s"])
def test_no_tls_without_the_second_s(url: str) -> None:
    assert tls(*read(url, {})) is None


def test_a_certificate_has_to_be_good() -> None:
    context = context_of("rediss://h")
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname


def test_a_certificate_may_be_of_another_host() -> None:
    context = context_of("rediss://h?ssl_check_hostname=no")
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert not context.check_hostname


def test_any_certificate_will_do() -> None:
    context = context_of("rediss://h?ssl_cert_reqs=none")
    assert context.verify_mode is ssl.CERT_NONE
    assert not context.check_hostname


def test_the_certificates_that_are_named(tmp_path: Path) -> None:
    mine, key = certificate(tmp_path)
    context = context_of(f"rediss://h?ssl_ca_certs={mine}&ssl_certfile={mine}&ssl_keyfile={key}")
    assert context.cert_store_stats()["x509"] == 1


@pytest.mark.parametrize("name", ["ssl_ca_certs", "ssl_certfile"])
def test_a_certificate_that_is_not_there(name: str, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="certificates cannot be used"):
        context_of(f"rediss://h?{name}={tmp_path / 'none'}")
