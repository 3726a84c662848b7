"""Who gets in: the counts of connections against a model, through any comings and goings."""

import itertools
from collections import Counter

import pytest
from hypothesis import settings as bounds
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from yaat.server.admission import LATER, Admission, retry_after
from yaat.server.settings import ServerSettings

ADDRESSES = ["192.0.2.1", "192.0.2.2", "2001:db8::1", ""]
MOST = "max_connections"
MOST_OF_ONE = "max_connections_per_address"


def admission(most: int | None = None, most_of_one: int | None = None) -> Admission:
    return Admission(ServerSettings(max_connections=most, max_connections_per_address=most_of_one))


class Door(RuleBasedStateMachine):
    """The model is the list of who is inside."""

    inside: list[str]

    @initialize(
        most=st.none() | st.integers(1, 6),
        most_of_one=st.none() | st.integers(1, 3),
    )
    def open(self, most: int | None, most_of_one: int | None) -> None:
        self.most, self.most_of_one = most, most_of_one
        self.admission = admission(most, most_of_one)
        self.inside = []

    def wanted(self, address: str) -> str | None:
        """Why not, after the definition."""
        if self.most is not None and len(self.inside) == self.most:
            return MOST
        of_this_one = self.inside.count(address)
        if address and self.most_of_one is not None and of_this_one == self.most_of_one:
            return MOST_OF_ONE
        return None

    @rule(address=st.sampled_from(ADDRESSES))
    def enter(self, address: str) -> None:
        wanted = self.wanted(address)
        assert self.admission.enter(address) == wanted
        if wanted is None:
            self.inside.append(address)

    @precondition(lambda self: self.inside)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        address = data.draw(st.sampled_from(self.inside))
        self.admission.leave(address)
        self.inside.remove(address)

    @invariant()
    def counts_are_those_of_who_is_inside(self) -> None:
        if hasattr(self, "admission"):
            assert self.admission._count == len(self.inside)
            assert dict(self.admission._of) == dict(Counter(self.inside)), "no address is kept"

    def teardown(self) -> None:
        for address in getattr(self, "inside", []):
            self.admission.leave(address)
        if hasattr(self, "admission"):
            assert self.admission._count == 0
            assert not self.admission._of


TestDoor = Door.TestCase
TestDoor.settings = bounds(max_examples=80, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize("most", [1, 2, 7])
def test_the_limit_is_reached_and_not_passed(most: int) -> None:
    door = admission(most)
    addresses = itertools.cycle(ADDRESSES)
    assert [door.enter(next(addresses)) for _ in range(most)] == [None] * most
    assert door.enter("192.0.2.9") == MOST
    assert door.enter("") == MOST
    door.leave(ADDRESSES[0])
    assert door.enter("192.0.2.9") is None
    assert door.enter("192.0.2.9") == MOST


def test_an_address_has_its_own_limit() -> None:
    door = admission(most_of_one=2)
    for address in ADDRESSES[:3]:
        assert [door.enter(address) for _ in range(3)] == [None, None, MOST_OF_ONE]
    door.leave(ADDRESSES[0])
    assert [door.enter(address) for address in ADDRESSES[:3]] == [None, MOST_OF_ONE, MOST_OF_ONE]


def test_who_has_no_address_is_many() -> None:
    door = admission(most_of_one=1)
    assert [door.enter("") for _ in range(5)] == [None] * 5
    assert [door.enter("192.0.2.1") for _ in range(2)] == [None, MOST_OF_ONE]


def test_who_has_no_address_is_one_of_all() -> None:
    door = admission(3, 1)
    assert [door.enter("") for _ in range(4)] == [None, None, None, MOST]


def test_the_limit_of_all_is_told_first() -> None:
    door = admission(1, 1)
    door.enter("192.0.2.1")
    assert door.enter("192.0.2.1") == MOST


def test_who_is_refused_is_not_counted() -> None:
    door = admission(2, 1)
    door.enter("192.0.2.1")
    for _ in range(9):
        assert door.enter("192.0.2.1") == MOST_OF_ONE
    assert door.enter("192.0.2.2") is None


@pytest.mark.parametrize(
    ("most", "most_of_one", "counts"),
    [(None, None, False), (1, None, True), (None, 1, True), (1, 1, True)],
)
def test_without_a_limit_nobody_is_counted(
    most: int | None, most_of_one: int | None, *, counts: bool
) -> None:
    assert admission(most, most_of_one).counts is counts


def test_it_drains_when_told() -> None:
    door = admission()
    assert door.draining is False


def test_later_is_at_random_and_bounded() -> None:
    """Whoever obeys comes back at another time than the others."""
    headers = [retry_after() for _ in range(500)]
    assert {name for name, _ in headers} == {b"retry-after"}
    assert {int(value) for _, value in headers} == set(range(LATER[0], LATER[1] + 1))
    assert all(value == b"%d" % int(value) for _, value in headers), "RFC 9110: delay-seconds"
