"""What the channels of an application are like: options by patterns of names."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Final, Literal, get_args

from yaat.exceptions import ArgumentError

Slow = Literal["cut", "drop_oldest", "drop_newest", "latest"]
"""What happens to a member that reads too slowly."""

_PLACE: Final = re.compile(r"\{(\w+)(:\w+)?\}")
MOST_PLACES: Final = 3
_REMEMBERED: Final = 16_384  # names whose options need not be looked for again


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelOptions:
    """What the channels of one pattern have.

    Args:
        history: How many publications are kept; 0: none, and there are no positions.
        ttl: How long, in seconds, each is kept.
        presence: Whether it is known who is there.
        slow: What becomes of a member for which more than `max_waiting` bytes wait. `"cut"`: its
            connection is closed with 1013; a client that resumes has lost nothing. `"drop_oldest"`
            and `"drop_newest"`: publications are left out for it. `"latest"`: a publication takes
            the place of the one with the same key that waits; one without a key, or for which
            there is no room, as `"drop_oldest"`.
        max_waiting: How many bytes may wait for one member, beyond what its server holds. Each
            publication counts as its payload and 400 bytes. One is always held.

    Raises:
        ArgumentError: A value that cannot be meant.
    """

    history: int = 0
    ttl: float = 300.0
    presence: bool = False
    slow: Slow = "cut"
    max_waiting: int = 1_048_576

    def __post_init__(self) -> None:
        if self.history < 0:
            raise ArgumentError(f"ChannelOptions.history is 0 or more, not {self.history!r}")
        for name in ("ttl", "max_waiting"):
            if not getattr(self, name) > 0:
                raise ArgumentError(
                    f"ChannelOptions.{name} must be above 0, not {getattr(self, name)!r}"
                )
        if self.slow not in get_args(Slow):
            known = ", ".join(get_args(Slow))
            raise ArgumentError(f"ChannelOptions.slow is one of {known}, not {self.slow!r}")


DEFAULT: Final = ChannelOptions()


class Channels:
    """The patterns of an application's channels. Publishers and members share them.

    Args:
        patterns: Options by pattern; the first that matches a name counts. `{name}` stands for one
            or more characters other than `:`; at the end, `{name:path}` for one or more of any; all
            else stands for itself. Between two places stands something, and between two `:` there
            are three places at most: names come from peers, and are to be matched quickly. A name
            that none matches has the default options: no history, no presence.

    Raises:
        ArgumentError: A pattern that cannot be meant.
        TypeError: Something else than `ChannelOptions`.
    """

    def __init__(self, patterns: Mapping[str, ChannelOptions] | None = None) -> None:
        self.patterns: Final = MappingProxyType(dict(patterns or {}))
        for pattern, options in self.patterns.items():
            if not isinstance(options, ChannelOptions):
                raise TypeError(f"{pattern!r} needs ChannelOptions, not {type(options).__name__}")
        compiled = [(_compiled(pattern), options) for pattern, options in self.patterns.items()]

        @lru_cache(_REMEMBERED)
        def find(name: str) -> ChannelOptions:
            return next((options for regex, options in compiled if regex.fullmatch(name)), DEFAULT)

        self._find: Final = find

    def options(self, name: str) -> ChannelOptions:
        """Return the options of the channel `name`."""
        return self._find(name)

    def __repr__(self) -> str:
        return f"Channels({dict(self.patterns)!r})"


def _compiled(pattern: str) -> re.Pattern[str]:
    regex, end = "", 0
    for place in _PLACE.finditer(pattern):
        is_path = place[2] == ":path" and place.end() == len(pattern)
        if place[2] is not None and not is_path:
            raise ArgumentError(
                f"in {pattern!r}: {place[0]} is neither {{name}} nor, at the end, {{name:path}}"
            )
        if place.start() == end > 0:
            raise ArgumentError(f"in {pattern!r}: nothing stands before {place[0]}")
        regex += _literal(pattern, end, place.start()) + (".+" if is_path else "[^:]+")
        end = place.end()
    regex += _literal(pattern, end, len(pattern))
    if any(part.count("{}") > MOST_PLACES for part in _PLACE.sub("{}", pattern).split(":")):
        raise ArgumentError(f"{pattern!r} has more than {MOST_PLACES} places between two ':'")
    return re.compile(regex, re.DOTALL)


def _literal(pattern: str, start: int, end: int) -> str:
    text = pattern[start:end]
    if not pattern or "{" in text or "}" in text:
        raise ArgumentError(f"{pattern!r} is no pattern of names: 'room:{{id}}' is one")
    return re.escape(text)
