"""ServerSettings: how the server runs, said once for the classes and for the command line."""

import math
import re
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

from yaat.exceptions import ArgumentError

# Fields below are grouped as `yaat run --help` prints them.
WHERE = "Where to listen"
WHAT = "What to serve"
PROCESSES = "Processes"
TLS = "TLS"
PROXY = "Behind a proxy"
LOG = "Log"
HANDSHAKES = "Requests and handshakes"
CONNECTIONS = "Connections"
STOPPING = "Stopping"


def _in(group: str, default: Any) -> Any:
    return field(default=default, metadata={"group": group})


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """How `yaat run` serves; its command line is made from this.

    Each is an option of the command line; the first sentence of what is said here is its help.
    Times are in seconds, sizes in bytes. With `uvicorn --ws` a subclass of `WebSocketProtocol` may
    set those that the class keeps to by itself; for the others uvicorn has options of its own.

    Args:
        host: Address to listen on.
        port: Port to listen on; 0 for any that is free.
        uds: Unix socket to listen on instead. It is removed at the end.
        fd: File descriptor of a socket to listen on instead. It was opened by who started this.
        backlog: Connections that the kernel holds until they are taken.
        app_dir: Directory from which the application is imported.
        factory: Whether to call APP, so that it makes the application.
        root_path: Path under which a proxy serves the application.
        workers: Processes that share the socket, else $WEB_CONCURRENCY or one.
        reload: Whether to start anew when a file changes; for development.
        reload_dirs: Directory to watch. None given: the current one.
        reload_includes: Pattern of files to watch besides `*.py`. It needs `watchfiles`.
        reload_excludes: Pattern of files not to watch. It needs `watchfiles`.
        loop: The event loop: auto, asyncio, uvloop. Auto is uvloop where that is installed.
        ssl_certfile: Certificate, with those that lead to its root. It turns TLS on.
        ssl_keyfile: Its private key, if it is in another file.
        ssl_keyfile_password: Password of the private key.
        ssl_ca_certs: Certificates of those whose clients are trusted.
        ssl_cert_reqs: Whether clients need a certificate: 0 no, 1 may have, 2 yes.
        proxy_headers: Whether to believe X-Forwarded-For and X-Forwarded-Proto.
        forwarded_allow_ips: From whom, with commas, else $FORWARDED_ALLOW_IPS or loopback.
        access_log: Whether to log each request.
        log_level: Least of critical, error, warning, info, debug, trace to log.
        log_config: File that sets up logging, .ini, .json or .yaml.
        handshake_timeout: How long the head of a request may take, and TLS before it. Then the
            connection is cut; a head that had begun is answered with 408.
        max_headers: How many headers a request may have. More are answered with 431.
        max_header_bytes: How long one line of a request's head may be. A longer one is answered
            with 431.
        keep_alive_timeout: How long a connection may wait for its next request.
        max_connections: How many WebSockets a process holds. Further handshakes are answered with
            503.
        max_connections_per_address: How many of them one address may have in a process.
        max_message_bytes: The longest message, of all its fragments, inflated. A longer one closes
            with 1009.
        idle_timeout: How long there may be no message either way. Then it is closed with 1001;
            pings do not count, and up to a quarter more may pass.
        write_buffer: High-water mark of what a peer has not read. Above it `send()` waits until a
            quarter of it is left.
        read_buffer: High-water mark of what the application has not received. Above it no more is
            read, so that the peer feels it; one message is always taken.
        max_tiny_fragments: How many fragments below 64 bytes one message may have.
        ping_interval: Time from one ping to the next. None: no pings.
        ping_timeout: How long nothing may come after a ping. None: for ever.
        compression: Whether to agree on permessage-deflate.
        compress_from: Size from which a message is compressed. JSON of 512 bytes shrinks by half;
            below that it fits in one packet either way.
        drain: How long the closes are spread when the server stops. Zero: all at once.
        handler_timeout: How long a handler may go on behind a close by a stop. Then it is
            cancelled.
        close_timeout: How long a peer may take to answer our close, or to hang up.
        shutdown_timeout: How long requests and cancelled handlers may hold up a stop.

    Raises:
        ArgumentError: A value that cannot be meant. It is a `ValueError`.
    """

    host: str = _in(WHERE, "127.0.0.1")
    port: int = _in(WHERE, 8000)
    uds: str | None = _in(WHERE, None)
    fd: int | None = _in(WHERE, None)
    backlog: int = _in(WHERE, 2_048)
    app_dir: str = _in(WHAT, ".")
    factory: bool = _in(WHAT, False)
    root_path: str = _in(WHAT, "")
    workers: int | None = _in(PROCESSES, None)
    reload: bool = _in(PROCESSES, False)
    reload_dirs: tuple[str, ...] = _in(PROCESSES, ())
    reload_includes: tuple[str, ...] = _in(PROCESSES, ())
    reload_excludes: tuple[str, ...] = _in(PROCESSES, ())
    loop: str = _in(PROCESSES, "auto")
    ssl_certfile: str | None = _in(TLS, None)
    ssl_keyfile: str | None = _in(TLS, None)
    ssl_keyfile_password: str | None = _in(TLS, None)
    ssl_ca_certs: str | None = _in(TLS, None)
    ssl_cert_reqs: int = _in(TLS, 0)
    proxy_headers: bool = _in(PROXY, True)
    forwarded_allow_ips: str | None = _in(PROXY, None)
    access_log: bool = _in(LOG, True)
    log_level: str = _in(LOG, "info")
    log_config: str | None = _in(LOG, None)
    handshake_timeout: float = _in(HANDSHAKES, 10.0)
    max_headers: int = _in(HANDSHAKES, 128)
    max_header_bytes: int = _in(HANDSHAKES, 8_192)
    keep_alive_timeout: float = _in(HANDSHAKES, 5.0)
    max_connections: int | None = _in(CONNECTIONS, None)
    max_connections_per_address: int | None = _in(CONNECTIONS, None)
    max_message_bytes: int = _in(CONNECTIONS, 1_048_576)
    idle_timeout: float | None = _in(CONNECTIONS, None)
    write_buffer: int = _in(CONNECTIONS, 65_536)
    read_buffer: int = _in(CONNECTIONS, 65_536)
    max_tiny_fragments: int = _in(CONNECTIONS, 1_024)
    ping_interval: float | None = _in(CONNECTIONS, 20.0)
    ping_timeout: float | None = _in(CONNECTIONS, 20.0)
    compression: bool = _in(CONNECTIONS, True)
    compress_from: int = _in(CONNECTIONS, 512)
    drain: float = _in(STOPPING, 0.0)
    handler_timeout: float = _in(STOPPING, 1.0)
    close_timeout: float = _in(STOPPING, 10.0)
    shutdown_timeout: float = _in(STOPPING, 10.0)

    def __post_init__(self) -> None:
        for name in _ABOVE_ZERO:
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ArgumentError(f"ServerSettings.{name} must be above 0, not {value!r}")
        for name in _FROM_ZERO:
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ArgumentError(f"ServerSettings.{name} must not be below 0, but is {value!r}")
        if self.port > _MOST_PORTS:
            raise ArgumentError(f"ServerSettings.port is at most {_MOST_PORTS}, not {self.port}")
        for name, choices in _CHOICES.items():
            if (value := getattr(self, name)) not in choices:
                known = ", ".join(map(str, choices))
                raise ArgumentError(f"ServerSettings.{name} is one of {known}, not {value!r}")

    def but(self, **changes: Any) -> Self:
        """Return settings like these but for `changes`."""
        return replace(self, **changes)


_MOST_PORTS = 65_535
_ABOVE_ZERO = (
    "backlog",
    "workers",
    "handshake_timeout",
    "max_headers",
    "max_header_bytes",
    "max_connections",
    "max_connections_per_address",
    "max_message_bytes",
    "idle_timeout",
    "write_buffer",
    "read_buffer",
    "ping_interval",
    "ping_timeout",
    "close_timeout",
)
_FROM_ZERO = (
    "port",
    "fd",
    "keep_alive_timeout",
    "max_tiny_fragments",
    "compress_from",
    "drain",
    "handler_timeout",
    "shutdown_timeout",
)
_CHOICES = {
    "loop": ("auto", "asyncio", "uvloop"),
    "ssl_cert_reqs": (0, 1, 2),
    "log_level": ("critical", "error", "warning", "info", "debug", "trace"),
}


def described() -> dict[str, str]:
    """Return for each setting the first sentence that is said of it above."""
    text = ServerSettings.__doc__ or ""  # without docstrings (python -OO) there is no help
    said = re.findall(r"^ {8}(\w+): (.+?\.)(?=\s)", text, re.MULTILINE | re.DOTALL)
    sentences = {name: " ".join(sentence.split()).removesuffix(".") for name, sentence in said}
    return {each.name: sentences.get(each.name, "") for each in fields(ServerSettings)}
