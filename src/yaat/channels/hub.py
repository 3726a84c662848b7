"""Hub: the channels of an application."""

from yaat.brokers.contract import Broker
from yaat.channels.channel import Channel
from yaat.channels.node import Node
from yaat.channels.options import Channels


class Hub(Node):
    """The channels of an application on this node.

    It starts by itself, in the event loop of its first use, and belongs to that loop until it is
    closed. An application has one: `Yaat.hub`.

    Args:
        broker: What carries them: a `Broker`, or its URL; None: memory of its own.
        channels: Their options.

    Raises:
        ArgumentError: There is no broker for that URL.
    """

    def __init__(
        self, broker: Broker | str | None = None, channels: Channels | None = None
    ) -> None:
        super().__init__(broker, channels)

    def channel(self, name: str) -> Channel:
        """Return a channel.

        Raises:
            ChannelNameError: No channel can have this name.
        """
        return Channel(self, name)

    @property
    def dropped(self) -> int:
        """How many publications were left out, so far, for members that read too slowly."""
        return self.counts.dropped

    @property
    def cut(self) -> int:
        """How many connections were closed, so far, since they read too slowly."""
        return self.counts.cut
