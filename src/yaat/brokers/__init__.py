"""Brokers: what carries publications. A URL chooses one, and its driver is imported then."""

from importlib import import_module
from typing import Final
from urllib.parse import urlsplit

from yaat.brokers.contract import Broker
from yaat.exceptions import ArgumentError

__all__ = ["Broker", "open_broker"]

_MODULES: Final = {"memory": "memory"}


def open_broker(url: str) -> Broker:
    """Return a broker for `url`; it connects when it is started.

    Raises:
        ArgumentError: No broker has this scheme, or it has no such option.
    """
    try:
        scheme = urlsplit(url).scheme
    except ValueError as error:
        raise ArgumentError(f"{url!r} is no URL: {error}") from None
    if scheme not in _MODULES:
        known = ", ".join(f"{name}://" for name in _MODULES)
        raise ArgumentError(f"no broker is known for {scheme or url!r}; there are: {known}")
    broker: Broker = import_module(f"yaat.brokers.{_MODULES[scheme]}").from_url(url)
    return broker
