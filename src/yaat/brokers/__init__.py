"""Brokers: what carries publications. A URL chooses one, and its driver is imported then."""

from importlib import import_module
from typing import Final

from yaat.brokers.contract import Broker
from yaat.exceptions import ArgumentError, UsageError

__all__ = ["Broker", "open_broker"]

_REDIS: Final = [
    f"{name}{mode}"
    for name in ("redis", "rediss", "valkey", "valkeys")
    for mode in ("", "+sentinel", "+cluster")
]
_MODULES: Final = {"memory": "memory", "unix": "redis", **dict.fromkeys(_REDIS, "redis")}
_EXTRAS: Final = {"redis": "hiredis"}
"""What the module of a broker needs, and bears the name of the extra."""


def open_broker(url: str) -> Broker:
    """Return a broker for `url`; it connects when it is started.

    Raises:
        ArgumentError: No broker has this scheme, or it has no such option. What may be secret in
            the URL is not quoted.
        UsageError: Its driver is not installed.
    """
    scheme = url.partition(":")[0].lower() if ":" in url else ""
    if scheme not in _MODULES:
        known = ", ".join(f"{name}://" for name in _MODULES)
        named = repr(scheme) if "://" in url else "that"
        raise ArgumentError(f"no broker is known for {named}; there are: {known}")
    module = _MODULES[scheme]
    try:
        broker: Broker = import_module(f"yaat.brokers.{module}").from_url(url)
    except ModuleNotFoundError as error:
        if error.name != _EXTRAS.get(module):
            raise
        raise UsageError(f"{scheme}:// needs {error.name}: pip install 'yaat[{module}]'") from error
    return broker
