"""Channels: many sockets, many processes; publish, listen, history, presence."""

from yaat.brokers.contract import (
    Position,
    PresenceStats,
    Present,
    Publication,
    Published,
)
from yaat.channels.blocking import BlockingChannel, BlockingHub
from yaat.channels.channel import Channel, History, PresenceEvent
from yaat.channels.formats import POSITIONED, RAW, Format
from yaat.channels.hub import Hub
from yaat.channels.members import Member, Socket
from yaat.channels.options import ChannelOptions, Channels
from yaat.channels.outside import connect, connect_blocking

__all__ = [
    "POSITIONED",
    "RAW",
    "BlockingChannel",
    "BlockingHub",
    "Channel",
    "ChannelOptions",
    "Channels",
    "Format",
    "History",
    "Hub",
    "Member",
    "Position",
    "PresenceEvent",
    "PresenceStats",
    "Present",
    "Publication",
    "Published",
    "Socket",
    "connect",
    "connect_blocking",
]
