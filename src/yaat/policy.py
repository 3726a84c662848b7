"""Policy: what a connection may do, in one frozen object."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, Self

from yaat.exceptions import ArgumentError

_DEFAULT_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}

# A host and perhaps a port, and nothing else that a URL may have (RFC 6454, 6.2). The dot at the
# end of a host says that it is a whole one.
_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s\\/?#@:\[\]]+?)\.?(?::([0-9]{1,5}))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The limits of a connection. Given to an application, a router or a route; the nearest counts.

    Args:
        origins: Which pages may connect, by the `Origin` header of the handshake, besides those of
            the host itself: origins (`"https://example.com"`), patterns in which `*` stands for
            letters, digits, dots and hyphens (`"https://*.example.com"`), compiled regular
            expressions that match the whole origin, or `"*"`, alone or in the list, for every
            page. A client that sends no `Origin` is no browser and may connect.
        max_message_bytes: The longest message that is taken, in bytes of the whole message.
        read_ahead: How many bytes are held of messages that came in while the handler was not
            receiving; then reading stops, so that the peer feels it. One message is always held.
            What the server holds by itself comes on top.
        close_timeout: How long, in seconds, the end of a connection may take: handing over our
            close, the peer's answer to it, and the clean-up of what `start_soon` began.

    Raises:
        ArgumentError: A value that cannot be meant.
    """

    origins: Sequence[str | re.Pattern[str]] | Literal["*"] = ()
    max_message_bytes: int = 1_048_576
    read_ahead: int = 65_536
    close_timeout: float = 10.0

    def __post_init__(self) -> None:
        if isinstance(self.origins, str):
            if self.origins != "*":
                raise ArgumentError(f'origins is a list of origins or "*", not {self.origins!r}')
        else:
            # A tuple, so that nobody who shares the policy can change it.
            object.__setattr__(self, "origins", tuple(self.origins))
        for origin in self.origins:
            if isinstance(origin, str) and "://" not in origin and origin not in ("*", "null"):
                raise ArgumentError(f"an origin has a scheme: 'https://{origin}', not {origin!r}")
        for name in ("max_message_bytes", "read_ahead", "close_timeout"):
            if not getattr(self, name) > 0:
                raise ArgumentError(f"Policy.{name} must be above 0, not {getattr(self, name)!r}")

    def but(self, **changes: Any) -> Self:
        """Return a policy like this one but for `changes`."""
        return replace(self, **changes)

    def allows_origin(self, origin: str, host: str | None) -> bool:
        """Tell whether a page of `origin` may connect to `host`, the handshake's `Host` header.

        Spec: RFC 6455, section 10.2 (origin considerations); RFC 6454, section 7.
        """
        if "*" in self.origins or _is_same_origin(origin, host):
            return True
        return any(_matches(origin, allowed) for allowed in self.origins)


DEFAULT: Final = Policy()


def _is_same_origin(origin: str, host: str | None) -> bool:
    """Compare host and port. The scheme is not compared: behind a TLS proxy ours is not known."""
    scheme, _, authority = origin.removesuffix("/").partition("://")
    default = _DEFAULT_PORTS.get(scheme.lower())
    theirs, ours = _host_and_port(authority, default), _host_and_port(host or "", default)
    return default is not None and theirs is not None and theirs == ours


def _host_and_port(authority: str, default: int | None) -> tuple[str, int | None] | None:
    found = _AUTHORITY.fullmatch(authority)
    return found and (found[1].lower(), int(found[2]) if found[2] else default)


def _matches(origin: str, allowed: str | re.Pattern[str]) -> bool:
    if isinstance(allowed, str):
        escaped = re.escape(allowed.rstrip("/")).replace(r"\*", "[a-zA-Z0-9.-]+")
        return re.fullmatch(escaped, origin, re.IGNORECASE) is not None
    return allowed.fullmatch(origin) is not None
