"""Draws the life of a connection, from the table that governs it: `python docs/picture.py`.

The states and the messages come from `yaat.lifecycle.TABLE`; only where a state stands and which
way an arrow takes is said here. A state or a step that has no place is a `KeyError`; a place or
a way that nothing in the table needs is a `ValueError`.
"""

from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import NamedTuple

from yaat.lifecycle import INCOMING, TABLE, State

FILE = Path(__file__).parent / "images" / "life.svg"
WIDTH, HEIGHT = 1010, 410
BOX_WIDTH, BOX_HEIGHT = 168, 62

PLACES = {  # the middle of each box
    State.CONNECTING: (110, 220),
    State.PENDING: (365, 220),
    State.DENYING: (645, 90),
    State.GONE: (645, 220),
    State.OPEN: (645, 350),
    State.CLOSING: (900, 220),
    State.CLOSED: (900, 350),
}


class Way(NamedTuple):
    """How an arrow runs, as the path of an SVG, and where the middle of its label is."""

    path: str
    label: tuple[int, int]


WAYS = {
    (State.CONNECTING, State.PENDING): Way("M194 220 H275", (237, 212)),
    (State.PENDING, State.OPEN): Way("M395 251 L555 338", (450, 310)),
    (State.PENDING, State.DENYING): Way("M395 189 L555 102", (490, 152)),
    (State.PENDING, State.CLOSING): Way("M345 189 C345 -35 900 -35 900 183", (345, 110)),
    (State.PENDING, State.GONE): Way("M449 220 H555", (502, 212)),
    (State.DENYING, State.GONE): Way("M645 121 V183", (645, 156)),
    (State.DENYING, State.CLOSING): Way("M729 112 L826 183", (792, 146)),
    (State.OPEN, State.GONE): Way("M645 319 V257", (645, 294)),
    (State.OPEN, State.CLOSING): Way("M729 328 L826 257", (776, 300)),
    (State.CLOSING, State.CLOSED): Way("M900 251 V313", (900, 284)),
}

LEGEND = (
    '<tspan class="incoming">comes in</tspan> \N{MIDDLE DOT} '
    '<tspan class="outgoing">is sent</tspan> \N{MIDDLE DOT} '
    "\N{ANTICLOCKWISE OPEN CIRCLE ARROW} stays"
)
ARROW_HEAD = (
    '<defs><marker id="arrow" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="8" '
    'markerHeight="8" orient="auto"><path d="M0 0 L10 5 L0 10 z"/></marker></defs>'
)
STYLE = """
  text { font: 15px "DejaVu Sans", Verdana, sans-serif; text-anchor: middle; fill: #1d2a30; }
  .name { font-weight: bold; }
  .stay { font-size: 12px; }
  .label { font-size: 13px; paint-order: stroke; stroke: #fff; stroke-width: 5px; }
  .incoming { fill: #0b6e66; }
  .outgoing { fill: #8a4b08; }
  rect { fill: #e4f3f1; stroke: #0b6e66; stroke-width: 1.5; }
  rect.ended { fill: #eceff1; stroke: #5f6f78; }
  rect.sheet { fill: #fff; stroke: none; }
  path { fill: none; stroke: #5f6f78; stroke-width: 1.6; marker-end: url(#arrow); }
  marker path { fill: #5f6f78; stroke: none; marker-end: none; }
"""


def picture() -> str:
    """Return the picture as an SVG."""
    check()
    steps: dict[tuple[State, State], list[str]] = {}
    for state, legal in TABLE.items():
        for message, following in legal.items():
            steps.setdefault((state, following), []).append(message)
    moves = {step: messages for step, messages in steps.items() if step[0] is not step[1]}
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        "<title>The life of a connection</title>",
        f"<style>{STYLE}</style>",
        ARROW_HEAD,
        f'<rect class="sheet" width="{WIDTH}" height="{HEIGHT}" rx="12"/>',
        *(line for step, messages in moves.items() for line in arrow(WAYS[step], messages)),
        *(line for state in TABLE for line in box(state, steps.get((state, state), []))),
        text((180, 385), LEGEND, "stay"),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def check() -> None:
    """Refuse a place or a way that nothing in the table needs.

    Raises:
        ValueError: There is one.
    """
    moves = {(state, to) for state, legal in TABLE.items() for to in legal.values() if to != state}
    if extra := (PLACES.keys() - TABLE.keys()) | (WAYS.keys() - moves):
        raise ValueError(f"nothing in the table needs {extra}")


def arrow(way: Way, messages: list[str]) -> Iterator[str]:
    """Draw one step: its line, and the messages that make it."""
    yield f'<path d="{way.path}"/>'
    yield text(way.label, spans(messages), "label")


def box(state: State, staying: list[str]) -> Iterator[str]:
    """Draw one state, and the messages that leave it as it is."""
    x, y = PLACES[state]
    ended = ' class="ended"' if state in (State.GONE, State.CLOSED) else ""
    yield (
        f'<rect{ended} x="{x - BOX_WIDTH // 2}" y="{y - BOX_HEIGHT // 2}" '
        f'width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="10"/>'
    )
    yield text((x, y - 4 if staying else y + 5), escape(state.name), "name")
    if staying:
        yield text((x, y + 17), f"\N{ANTICLOCKWISE OPEN CIRCLE ARROW} {spans(staying)}", "stay")


def spans(messages: list[str]) -> str:
    """Return messages as text, coloured by the way they go."""
    return ", ".join(
        f'<tspan class="{"incoming" if message in INCOMING else "outgoing"}">'
        f"{escape(message.removeprefix('websocket.'))}</tspan>"
        for message in messages
    )


def text(middle: tuple[int, int], content: str, kind: str) -> str:
    """Write `content` in the middle of a place."""
    x, y = middle
    return f'<text class="{kind}" x="{x}" y="{y}">{content}</text>'


if __name__ == "__main__":
    FILE.write_text(picture(), encoding="utf-8")
