"""What a URL of Redis or Valkey says: which servers, how to get in, and the bounds."""

import contextlib
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final, Literal, NamedTuple, get_args
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from yaat.brokers.contract import MAX_PAYLOAD, check_positive
from yaat.exceptions import ArgumentError

SLOTS: Final = 16384
"""Into how many slots a cluster divides its keys.

Spec: Redis cluster specification, "Key distribution model"."""

Epochs = Literal["strict", "trust"]
"""Whether the position of a channel outlives the server process that counted it."""

Mode = Literal["single", "sentinel", "cluster"]

PORT: Final = 6379
SENTINEL_PORT: Final = 26379

_NAMES: Final = ("redis", "rediss", "valkey", "valkeys")
SCHEMES: Final = (
    "unix",
    *(name + mode for name in _NAMES for mode in ("", "+sentinel", "+cluster")),
)


class Address(NamedTuple):
    """Where a server listens: host and port, or (port 0) the path of a unix socket."""

    host: str
    port: int

    def __str__(self) -> str:
        if not self.port:
            return self.host
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a `RedisBroker` works. Times are in seconds.

    Args:
        username, password: Who we are to the server.
        db: The number of the database.
        prefix: With what the names of all keys begin; two applications on one server have two.
        epochs: `"strict"`: a server that was started anew, or took over from another one, may have
            lost something, so a channel gets a new epoch from it. `"trust"`: it has lost nothing
            that it acknowledged; right for `appendonly yes` with `appendfsync always`.
        timeout: Of one operation.
        connect_timeout: Of connecting, and of the start.
        retry_base, retry_cap: The wait before the n-th try to connect is random, between 0 and
            `retry_base` doubled n times, but `retry_cap` at most.
        probe: How long nothing may have come live until something is published to see whether it
            comes; as long is waited for it. So often is looked, too, which servers there are.
        require: Whether the start fails when no server can be reached; else it goes on trying.
        partitions: Into how many parts a cluster's channels are divided. Each process has to say
            the same.
        max_payload: The longest publication, in bytes.
        max_pending: How many operations may wait for an answer; more wait for their turn.
        write_buffer: How many bytes may wait to be sent; more wait for their turn.
        position_ttl: How long the position of a channel is remembered after the last publication
            or look at it.
        presence_ttl: How long somebody is present who is not refreshed.
        once_ttl: How long an idempotency key is remembered.
        sentinel_username, sentinel_password: Who we are to the sentinels.
        ssl_ca_certs, ssl_certfile, ssl_keyfile: Files, for TLS.
        ssl_check_hostname: Whether the certificate has to be of that host.
        ssl_cert_reqs: `"none"`: any certificate will do.

    Raises:
        ArgumentError: A value that cannot be meant.
    """

    username: str | None = None
    password: str | None = field(default=None, repr=False)
    db: int = 0
    prefix: str = "yaat"
    epochs: Epochs = "strict"
    timeout: float = 5.0
    connect_timeout: float = 5.0
    retry_base: float = 0.1
    retry_cap: float = 0.5
    probe: float = 10.0
    require: bool = True
    partitions: int = 64
    max_payload: int = MAX_PAYLOAD
    max_pending: int = 10_000
    write_buffer: int = 16_777_216
    position_ttl: float = 86_400.0
    presence_ttl: float = 60.0
    once_ttl: float = 300.0
    sentinel_username: str | None = None
    sentinel_password: str | None = field(default=None, repr=False)
    ssl_ca_certs: str | None = None
    ssl_certfile: str | None = None
    ssl_keyfile: str | None = None
    ssl_check_hostname: bool = True
    ssl_cert_reqs: Literal["required", "none"] = "required"

    def __post_init__(self) -> None:
        check_positive(**{name: getattr(self, name) for name in _BOUNDS})
        if self.epochs not in get_args(Epochs):
            raise ArgumentError(f"epochs is strict or trust, not {self.epochs!r}")
        if self.ssl_cert_reqs not in ("required", "none"):
            raise ArgumentError(f"ssl_cert_reqs is required or none, not {self.ssl_cert_reqs!r}")
        if self.db < 0:
            raise ArgumentError(f"db is the number of a database, not {self.db!r}")
        if self.partitions > SLOTS:
            raise ArgumentError(f"partitions are {SLOTS} at most, not {self.partitions!r}")
        if not self.prefix.isprintable() or set("{}") & set(self.prefix):
            raise ArgumentError("prefix is text without braces: a cluster looks for them")


_QUOTED: Final = "is a '/', '?' or '@' in the password written as %2F, %3F or %40?"
_WRONG: Final = f"not a URL of Redis or Valkey; {_QUOTED}"
_DIGITS: Final = 10

_BOUNDS: Final = (
    *("timeout", "connect_timeout", "retry_base", "retry_cap", "probe", "partitions"),
    *("max_payload", "max_pending", "write_buffer", "position_ttl", "presence_ttl", "once_ttl"),
)


class Place(NamedTuple):
    """Which servers a URL means, without what is secret.

    Attributes:
        mode: One server, a master that sentinels name, or a cluster.
        addresses: The servers, the sentinels, or some of the cluster.
        service: What the sentinels call the master.
        is_tls: Whether the connections are encrypted.
    """

    mode: Mode
    addresses: tuple[Address, ...]
    service: str = ""
    is_tls: bool = False

    def __str__(self) -> str:
        where = ", ".join(map(str, self.addresses))
        return f"{self.service!r} of the sentinels {where}" if self.service else where


def read(url: str, options: Mapping[str, Any]) -> tuple[Place, Settings]:
    """Read a URL. `options` have the last word.

    Raises:
        ArgumentError: It is none, or it has an option that is not known. Nothing of the URL is
            quoted but the names of options: what is secret may stand anywhere in one that is wrong.
    """
    unknown = options.keys() - _OPTIONS.keys()
    if unknown:
        raise ArgumentError(f"RedisBroker has no option {', '.join(sorted(unknown))}")
    parts = _split(url)
    if parts.scheme not in SCHEMES or parts.fragment or "@" in parts.path + parts.query:
        raise ArgumentError(f"{_WRONG}; it begins with one of {', '.join(SCHEMES)}")
    told = {name: _option(name, value) for name, value in parse_qsl(parts.query, True)}
    name, _, mode = parts.scheme.partition("+")
    login, _, hosts = parts.netloc.rpartition("@")
    if login:
        user, _, password = login.partition(":")
        told |= {"username": unquote(user) or None, "password": unquote(password) or None}
    if name == "unix":
        place = Place("single", (_unix(hosts, parts.path),))
    else:
        is_tls = name in ("rediss", "valkeys")
        place, db = _servers(mode, hosts, parts.path, is_tls=is_tls)
        told |= {} if db is None else {"db": db}
    return place, Settings(**{**told, **options})


def _split(url: str) -> SplitResult:
    with contextlib.suppress(ValueError):
        return urlsplit(url)
    raise ArgumentError(_WRONG)


def _unix(hosts: str, path: str) -> Address:
    if hosts or not path.strip("/"):
        raise ArgumentError("a unix socket is given by its path: unix:///run/redis.sock")
    return Address(unquote(path), 0)


def _servers(mode: str, hosts: str, path: str, *, is_tls: bool) -> tuple[Place, int | None]:
    port = SENTINEL_PORT if mode == "sentinel" else PORT
    addresses = tuple(_address(host, port) for host in hosts.split(","))
    first, _, second = unquote(path).strip("/").partition("/")
    if mode == "sentinel":
        if not first:
            raise ArgumentError("name the service: redis+sentinel://host:26379/SERVICE")
        return Place("sentinel", addresses, first, is_tls), _db(second)
    if len(addresses) > 1 and not mode:
        raise ArgumentError("several servers are redis+cluster:// or redis+sentinel://")
    if second or (mode and first not in ("", "0")):
        raise ArgumentError("a cluster has one database" if mode else "the path is a database: /0")
    return Place("cluster" if mode else "single", addresses, "", is_tls), _db(first)


def _db(text: str) -> int | None:
    if text and not (text.isdecimal() and len(text) < _DIGITS):
        raise ArgumentError(f"the path of the URL is the number of a database; {_QUOTED}")
    return int(text) if text else None


def _address(text: str, default: int) -> Address:
    with contextlib.suppress(ValueError):
        parts = urlsplit(f"//{text}")
        port = default if parts.port is None else parts.port
        if port and not parts.username and not parts.password:
            return Address(parts.hostname or "localhost", port)
    raise ArgumentError(f"a server in the URL is not host:port; {_QUOTED}")


def _option(name: str, value: str) -> Any:
    if name not in _OPTIONS:
        raise ArgumentError(f"no option of a URL is called so; there are {', '.join(_OPTIONS)}")
    default = _OPTIONS[name]
    with contextlib.suppress(KeyError, ValueError):
        if isinstance(default, bool):
            return {"yes": True, "no": False}[value]
        return type(default)(value) if isinstance(default, (int, float)) else value
    raise ArgumentError(f"{name} is {'yes or no' if isinstance(default, bool) else 'a number'}")


_OPTIONS: Final[dict[str, Any]] = {each.name: each.default for each in fields(Settings)}


def tls(place: Place, settings: Settings) -> ssl.SSLContext | None:
    """Return how to encrypt; None: not at all.

    Raises:
        ArgumentError: A file cannot be used.
    """
    if not place.is_tls:
        return None
    try:
        context = ssl.create_default_context(cafile=settings.ssl_ca_certs)
        if settings.ssl_certfile is not None:
            # An encrypted key is refused: OpenSSL would ask the terminal for its password.
            context.load_cert_chain(settings.ssl_certfile, settings.ssl_keyfile, lambda: b"")
    except OSError as error:
        files = (settings.ssl_ca_certs, settings.ssl_certfile, settings.ssl_keyfile)
        named = ", ".join(filter(None, files))
        raise ArgumentError(f"the certificates cannot be used ({named}): {error}") from error
    is_any = settings.ssl_cert_reqs == "none"
    context.check_hostname = settings.ssl_check_hostname and not is_any
    if is_any:
        context.verify_mode = ssl.CERT_NONE
    return context
