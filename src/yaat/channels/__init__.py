"""Channels: many sockets, many processes; publish, listen, history, presence."""

from yaat.brokers.contract import (
    Position,
    PresenceStats,
    Present,
    Publication,
    Published,
)
from yaat.channels.channel import Channel, History, PresenceEvent
from yaat.channels.formats import POSITIONED, RAW, Format
from yaat.channels.hub import Hub
from yaat.channels.members import Member, Socket
from yaat.channels.options import ChannelOptions, Channels

__all__ = [
    "POSITIONED",
    "RAW",
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
]
