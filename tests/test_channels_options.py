"""The options of channels: which pattern gives a name what, and what cannot be meant."""

from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from yaat.channels.options import ChannelOptions, Channels, Slow
from yaat.exceptions import ArgumentError

KEPT = ChannelOptions(history=10)
OTHER = ChannelOptions(history=20)


def test_what_a_channel_has_that_nobody_thought_of() -> None:
    options = ChannelOptions()
    assert (options.history, options.ttl, options.presence) == (0, 300.0, False)
    assert (options.slow, options.max_waiting) == ("cut", 1_048_576)
    assert Channels().options("whatever") == options
    assert Channels({}).options("whatever") == options
    assert Channels({"room": KEPT}).options("other") == options


def test_options_are_a_value() -> None:
    assert ChannelOptions(history=10) == KEPT != OTHER
    assert hash(ChannelOptions(history=10)) == hash(KEPT)
    with pytest.raises(AttributeError):
        KEPT.history = 5  # type: ignore[misc]
    with pytest.raises(TypeError):
        ChannelOptions(10)  # type: ignore[call-arg]


@pytest.mark.parametrize("slow", ["cut", "drop_oldest", "drop_newest", "latest"])
def test_what_may_be_given(slow: Slow) -> None:
    options = ChannelOptions(history=1, ttl=0.001, presence=True, slow=slow, max_waiting=1)
    assert options.slow == slow
    assert ChannelOptions(ttl=float("inf")).ttl == float("inf")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"history": -1}, "ChannelOptions.history is 0 or more, not -1"),
        ({"ttl": 0}, "ChannelOptions.ttl must be above 0, not 0"),
        ({"ttl": -1.5}, "ChannelOptions.ttl must be above 0, not -1.5"),
        ({"ttl": float("nan")}, "ChannelOptions.ttl must be above 0, not nan"),
        ({"max_waiting": 0}, "ChannelOptions.max_waiting must be above 0, not 0"),
        (
            {"slow": "drop"},
            "ChannelOptions.slow is one of cut, drop_oldest, drop_newest, latest, not 'drop'",
        ),
        (
            {"slow": None},
            "ChannelOptions.slow is one of cut, drop_oldest, drop_newest, latest, not None",
        ),
    ],
)
def test_what_cannot_be_meant(options: dict[str, Any], why: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        ChannelOptions(**options)
    assert str(caught.value) == why


# Patterns and names

# pattern, names that it matches, names that it does not
TABLE = [
    ("room", ["room"], ["rooms", "a room", "Room", "", "room\n", "\nroom"]),
    ("room:1", ["room:1"], ["room:11", "room:"]),
    ("room:{id}", ["room:1", "room:a b", "room: ", "room:日本"], ["room:", "room", "room:1:2"]),
    ("room:{id}", ["room:\n", "room:a\nb", "room:\x00", "room:{id}", "room:}{"], ["xroom:1"]),
    ("room:{id}", ["room:\U0001f600", "room:\u2028", "room:/", "room:."], ["ROOM:1", "room::"]),
    ("{id}", ["a", "a.b", "{", " "], ["", "a:b", ":"]),
    ("{a}:{b}", ["a:b", "1:2"], ["a", ":b", "a:", "a:b:c", ":", "::"]),
    ("{a}-{b}-{c}", ["1-2-3", "1-2-3-4", "-----"], ["1-2", "--", "----:"]),
    ("{a}-{b}:{c}-{d}:{e}", ["1-2:3-4:5"], ["1-2:3-4", "1:2:3"]),
    ("{a}-{a}", ["a-b", "a-a", "a-b-c"], ["-", "a-"]),
    ("{größe}", ["x"], ["x:y"]),
    ("{1}", ["x"], ["x:y"]),
    ("log:{rest:path}", ["log:a", "log:a:b", "log::", "log:\n", "log:a/b"], ["log:", "log", "log"]),
    ("{all:path}", ["a", ":", "a:b", "\n", "\n\n", "\x00"], [""]),
    ("{a}:{b:path}", ["a:b", "a::", "a:b:c"], ["a", "a:", ":b"]),
    ("{a}-{b}-{c:path}", ["a-b-c", "a-b-c:d", "a-b-:"], ["a-b:-c", "a-b-"]),
    # Nothing else has a meaning of its own.
    ("a.c", ["a.c"], ["abc", "a\nc"]),
    ("a*", ["a*"], ["a", "aa", ""]),
    ("(a|b)", ["(a|b)"], ["a", "b"]),
    ("[ab]+", ["[ab]+"], ["a", "ab"]),
    (r"\d", [r"\d"], ["5"]),
    ("^a$", ["^a$"], ["a"]),
    ("a b#c", ["a b#c"], ["ab", "a b"]),
    ("room:<id>", ["room:<id>"], ["room:1"]),
    ("\n", ["\n"], ["", "\n\n"]),
    ("é", ["é"], ["e\u0301", "É"]),
]


@pytest.mark.parametrize(("pattern", "matching", "others"), TABLE)
def test_which_names_a_pattern_matches(
    pattern: str, matching: list[str], others: list[str]
) -> None:
    channels = Channels({pattern: KEPT})
    assert {name: channels.options(name) for name in matching} == dict.fromkeys(matching, KEPT)
    for name in others:
        assert channels.options(name) == ChannelOptions(), name


@given(st.text(min_size=1).filter(lambda text: not {"{", "}"} & set(text)), st.text(min_size=1))
@example("a.*(?i)", "\n")
def test_what_is_no_place_stands_for_itself(literal: str, inside: str) -> None:
    channels = Channels({literal: KEPT, literal + "{x:path}": OTHER})
    assert channels.options(literal) is KEPT
    assert channels.options(literal + inside) is OTHER


def test_the_first_that_matches_counts() -> None:
    options = [ChannelOptions(history=number) for number in range(4)]
    patterns = ["room:lobby", "room:{id}", "room:{rest:path}", "{all:path}"]
    channels = Channels(dict(zip(patterns, options, strict=True)))
    names = ["room:lobby", "room:1", "room:1:2", "log"]
    assert [channels.options(name) for name in names] == options
    backwards = Channels(dict(zip(patterns[::-1], options[::-1], strict=True)))
    assert {backwards.options(name) for name in names} == {options[3]}


def test_the_same_name_gets_the_same_again() -> None:
    channels = Channels({"room:{id}": KEPT})
    for _ in range(3):
        assert channels.options("room:1") is KEPT
        assert channels.options("log").history == 0


def test_what_was_given_cannot_be_changed_afterwards() -> None:
    given_patterns = {"room:{id}": KEPT}
    channels = Channels(given_patterns)
    given_patterns["log"] = KEPT
    given_patterns.pop("room:{id}")
    assert channels.options("room:1") is KEPT
    assert channels.options("log").history == 0
    assert isinstance(channels.patterns, MappingProxyType)
    assert dict(channels.patterns) == {"room:{id}": KEPT}
    assert repr(channels) == f"Channels({{'room:{{id}}': {KEPT!r}}})"
    assert repr(Channels()) == "Channels({})"


@pytest.mark.parametrize(
    "pattern",
    ["", "{", "}", "{}", "room:{id", "room:id}", "{{id}}", "{a b}", "{a-b}", "{a}{", "}{"],
)
def test_a_pattern_that_is_none(pattern: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        Channels({pattern: KEPT})
    assert str(caught.value) == f"{pattern!r} is no pattern of names: 'room:{{id}}' is one"


@pytest.mark.parametrize(
    ("pattern", "place"),
    [
        *((f"room:{{id:{kind}}}", f"{{id:{kind}}}") for kind in ("int", "str", "uuid", "paths")),
        ("{all:path}:end", "{all:path}"),
        ("{all:path}{x}", "{all:path}"),
    ],
)
def test_a_place_of_another_kind(pattern: str, place: str) -> None:
    """Those of the routes convert what they match; here there is nothing to convert for."""
    with pytest.raises(ArgumentError) as caught:
        Channels({pattern: KEPT})
    assert str(caught.value) == (
        f"in {pattern!r}: {place} is neither {{name}} nor, at the end, {{name:path}}"
    )


# Names come from peers, and many places where each could stand for the same take long to match.


@pytest.mark.parametrize("pattern", ["{a}{b}", "room:{a}{b}", "{a}{b:path}", "{a}:{b}{c}"])
def test_places_side_by_side(pattern: str) -> None:
    place = pattern[pattern.rindex("{") :]
    with pytest.raises(ArgumentError) as caught:
        Channels({pattern: KEPT})
    assert str(caught.value) == f"in {pattern!r}: nothing stands before {place}"


@pytest.mark.parametrize("pattern", ["{a}-{b}-{c}-{d}", "room:{a}.{b}.{c}.{d:path}"])
def test_too_many_places(pattern: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        Channels({"{a}:{b}:{c}:{d}:{e}": KEPT, pattern: KEPT})
    assert str(caught.value) == f"{pattern!r} has more than 3 places between two ':'"


@pytest.mark.parametrize("options", [None, {"history": 5}, 5, ChannelOptions])
def test_options_that_are_none(options: Any) -> None:
    with pytest.raises(TypeError, match=r"^'room' needs ChannelOptions, not "):
        Channels({"room": options})


def test_more_names_than_are_remembered() -> None:
    """Names come from peers: what is remembered is bounded, what was forgotten comes again."""
    channels = Channels({"room:{id}": KEPT})
    for number in range(17_000):
        assert channels.options(f"room:{number}") is KEPT
    assert channels._find.cache_info().currsize < 17_000
    assert channels.options("room:0") is KEPT
