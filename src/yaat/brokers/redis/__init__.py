"""Redis and Valkey: one server, one behind sentinels, or a cluster. Needs `yaat[redis]`."""

from yaat.brokers.redis.broker import RedisBroker

__all__ = ["RedisBroker", "from_url"]


def from_url(url: str) -> RedisBroker:
    """Return the broker of a URL; see `RedisBroker`."""
    return RedisBroker(url)
