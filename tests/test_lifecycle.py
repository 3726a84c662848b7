"""The table of a connection's life, held against every pair of a state and a message."""

import re
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yaat.exceptions import StateError, WebSocketDisconnect
from yaat.lifecycle import (
    INCOMING,
    OUTGOING,
    TABLE,
    State,
    can_receive,
    illegal,
    is_silent,
    move,
)

# The design's own words, one line for each state; "-> …" is where it goes, "silent" is "nothing
# sent", "left" is what comes of sending when the peer has gone. All that is not here is illegal.
DESIGN = """
connecting  in connect              -> pending
pending     out accept              -> open
pending     out close               -> closing
pending     out http.response.start -> denying
pending     in disconnect           -> gone
open        in receive              -> open
open        out send                -> open
open        out close               -> closing
open        in disconnect           -> gone
denying     out http.response.body  -> denying
denying     out http.response.end   -> closing
denying     in disconnect           -> gone
closing     in receive              -> closing
closing     out close               -> closing silent
closing     in disconnect           -> closed
gone        out close               -> gone silent
gone        out accept              left
gone        out send                left
gone        out http.response.start left
gone        out http.response.body  left
gone        out http.response.end   left
closed      out close               -> closed silent
"""

STATES = ["connecting", "pending", "open", "denying", "closing", "gone", "closed"]
IN = ["connect", "receive", "disconnect"]
OUT = ["accept", "send", "close", "http.response.start", "http.response.body", "http.response.end"]

LINE = re.compile(r"(\w+) +(in|out) ([\w.]+) +(?:-> (\w+)( silent)?|(left))")
ROWS = [match.groups() for match in LINE.finditer(DESIGN)]
GOES = {(state, name): to for state, _, name, to, *_ in ROWS if to}
SILENT = {(state, name) for state, _, name, _, silent, _ in ROWS if silent}
LEFT = {(state, name) for state, _, name, *_, left in ROWS if left}

PAIRS = list(product(STATES, IN + OUT))


def test_the_expectation_was_read_whole() -> None:
    assert len(ROWS) == len(DESIGN.strip().splitlines()) == len(GOES) + len(LEFT)


def test_the_states_and_the_alphabet() -> None:
    assert [str(state) for state in State] == STATES
    assert {f"websocket.{name}" for name in IN} == INCOMING
    assert {f"websocket.{name}" for name in OUT} == OUTGOING
    assert list(TABLE) == list(State)


@pytest.mark.parametrize(("state", "name"), PAIRS)
def test_every_message_in_every_state(state: str, name: str) -> None:
    message = f"websocket.{name}"
    if (state, name) in GOES:
        assert move(State(state), message) is State(GOES[state, name])
    elif (state, name) in LEFT:
        with pytest.raises(WebSocketDisconnect) as left:
            move(State(state), message)
        assert left.value.code == 1006
    else:
        with pytest.raises(StateError) as caught:
            move(State(state), message)
        assert_says_all(str(caught.value), state, name)
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__, "a KeyError above it would tell nobody anything"


def assert_says_all(text: str, state: str, name: str) -> None:
    """Hold the text of a StateError against the design: the state, the message, what is legal."""
    way = IN if name in IN else OUT
    legal = [
        f"websocket.{each}"
        for each in way
        if (state, each) in GOES and each != "http.response.end"  # no message of ASGI's
    ]
    first, _, rest = text.partition(";")
    assert first == f"websocket.{name} is not legal while {state}"
    named = re.match(r" legal here: ([^ ]+(?:, [^ ]+)*?)\.( |$)", rest)
    assert named is not None
    assert sorted(named[1].split(", ")) == sorted(legal or ["nothing"])
    assert f"but got 'websocket.{name}'" in text
    for each in legal:
        assert f'"{each}"' in text
    assert ("accept()" in text) is (state in ("connecting", "pending"))


@pytest.mark.parametrize("state", State)
def test_only_a_close_can_be_silent(state: State) -> None:
    for name in IN + OUT:
        assert is_silent(state, f"websocket.{name}") is ((state.value, name) in SILENT)


@pytest.mark.parametrize("state", State)
def test_where_something_can_still_come_in(state: State) -> None:
    assert can_receive(state) is any((state.value, name) in GOES for name in IN)


@pytest.mark.parametrize("state", State)
def test_the_error_for_what_is_no_message_at_all(state: State) -> None:
    for name in ("", "websocket.ping", "http.request", "close"):
        with pytest.raises(StateError, match=f"not legal while {state}"):
            move(state, name)
        assert not is_silent(state, name)


@pytest.mark.parametrize("state", State)
def test_an_error_for_a_way_names_only_that_way(state: State) -> None:
    incoming, outgoing = (str(illegal(state, "x", way)) for way in (INCOMING, OUTGOING))
    assert not any(f'"{name}"' in incoming for name in OUTGOING)
    assert not any(f'"{name}"' in outgoing for name in INCOMING)


@given(messages=st.lists(st.sampled_from(sorted(INCOMING | OUTGOING)), max_size=12))
def test_no_way_leads_back(messages: list[str]) -> None:
    """Whatever happens, in whatever order: a connection opens once and ends once."""
    order = {name: place for place, name in enumerate(STATES)}
    state = State.CONNECTING
    for message in messages:
        try:
            after = move(state, message)
        except (StateError, WebSocketDisconnect):
            continue
        assert after is state or order[after] > order[state]
        state = after
    if state in (State.GONE, State.CLOSED):
        assert not can_receive(state)


def test_every_state_is_reached_and_every_life_can_end() -> None:
    reached, ahead = set(), [State.CONNECTING]
    while ahead:
        state = ahead.pop()
        if state not in reached:
            reached.add(state)
            ahead += TABLE[state].values()
    assert reached == set(State)
    for state in State:
        if can_receive(state) and state is not State.CONNECTING:
            assert "websocket.disconnect" in TABLE[state], f"a peer that leaves while {state}"
