"""What happened in a run: one line for each event, by one clock for all processes."""

import json
from collections.abc import Iterable
from typing import Literal, NamedTuple, Self

What = Literal[
    "began",  # a publisher has begun to publish a message
    "acked",  # it was told that the message is published
    "refused",  # it was told that the message is not published
    "unsure",  # it was told that nobody knows
    "seen",  # a subscriber got a message
    "told",  # a subscriber was told that it has lost something, or may have
    "anew",  # it begins anew: what it sees next is the first of what it is brought then
    "hit",  # a fault
    "back",  # from here on the broker can be reached by `who` after a fault
    "wiped",  # the broker has lost what it kept, or says so
    "note",  # what a reader of the log may want to know, and the checker does not
]


class Event(NamedTuple):
    """One thing that happened.

    Attributes:
        time: In seconds, by the clock that all processes of a machine share.
        what: What happened.
        who: The publisher, or the subscriber (`"node/number"`); of a fault, whom it concerns: a
            node, a subscriber, or "": all of them.
        message: Which message; "" of what concerns none.
        text: More for a reader; of a fault its kind.
    """

    time: float
    what: What
    who: str = ""
    message: str = ""
    text: str = ""

    def __str__(self) -> str:
        words = (f"{self.time:9.3f}", f"{self.what:7}", self.who, self.message, self.text)
        return " ".join(word for word in words if word)

    def line(self) -> str:
        """Return it as it is written."""
        return json.dumps(self)

    @classmethod
    def parse(cls, line: str | bytes) -> Self:
        """Read what `line` returned."""
        return cls(*json.loads(line))

    def concerns(self, subscriber: str) -> bool:
        """Whether a fault concerns a subscriber."""
        return self.who in ("", subscriber, node_of(subscriber))


def node_of(subscriber: str) -> str:
    """Return the node of a subscriber."""
    return subscriber.partition("/")[0]


def in_order(events: Iterable[Event]) -> list[Event]:
    """Return events by their time; of one time in the order given."""
    return sorted(events, key=lambda event: event.time)
