"""Path parameters: which of them a handler is given, and as what."""

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yaat.exceptions import RouteError
from yaat.parameters import Parameters

if TYPE_CHECKING:
    from nowhere import Unknown  # type: ignore[import-not-found]  # that is the point

PATH = {"room": "7", "user": "ada"}

Handler = Callable[..., Any]


def nothing(websocket: Any) -> None: ...
def bare(websocket: Any, room) -> None: ...  # type: ignore[no-untyped-def]
def as_int(websocket: Any, room: int) -> None: ...
def as_float(websocket: Any, room: float) -> None: ...
def as_str(websocket: Any, room: str) -> None: ...
def as_other(websocket: Any, room: bytes) -> None: ...
def both(websocket: Any, room: int, user: str) -> None: ...
def keyword(websocket: Any, *, user: str) -> None: ...
def default(websocket: Any, room: int = 1, other: str = "x") -> None: ...
def rest(websocket: Any, room: int, **others: Any) -> None: ...
def everything(websocket: Any, **others: int) -> None: ...
def annotated(websocket: Any, room: Annotated[int, "which one"]) -> None: ...
def in_words(websocket: "Any", room: "int") -> None: ...
def unknown(websocket: "Unknown", room: "int", user: "Unknown") -> None: ...
def unknown_plain(websocket: "Unknown", room: float) -> None: ...
def prose(websocket: Any, room: "the room, a number", user: int) -> None: ...  # type: ignore[valid-type]  # noqa: F722
def unhashable(websocket: "Unknown", room: Annotated[int, []]) -> None: ...


def wrapped(function: Handler) -> Handler:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


class Methods:
    def of_instance(self, websocket: Any, room: int) -> None: ...
    @staticmethod
    def of_nobody(websocket: Any, room: int) -> None: ...
    @classmethod
    def of_class(cls, websocket: Any, room: int) -> None: ...


CASES: list[tuple[Handler, dict[str, Any]]] = [
    (nothing, {}),
    (bare, {"room": "7"}),
    (as_int, {"room": 7}),
    (as_float, {"room": 7.0}),
    (as_str, {"room": "7"}),
    (as_other, {"room": "7"}),
    (both, {"room": 7, "user": "ada"}),
    (keyword, {"user": "ada"}),
    (default, {"room": 7}),
    (rest, {"room": 7, "user": "ada"}),
    (everything, {"room": "7", "user": "ada"}),
    (annotated, {"room": 7}),
    (in_words, {"room": 7}),
    (unknown, {"room": 7, "user": "ada"}),
    (unknown_plain, {"room": 7.0}),
    (prose, {"room": "7", "user": "ada"}),
    (unhashable, {"room": "7"}),
    (wrapped(as_int), {"room": 7}),
    (functools.partial(both, user="bob"), {"room": 7, "user": "ada"}),
    (functools.partial(functools.partial(as_int)), {"room": 7}),
    (functools.partial(wrapped(as_int)), {"room": 7}),
    (Methods().of_instance, {"room": 7}),
    (Methods.of_nobody, {"room": 7}),
    (Methods.of_class, {"room": 7}),
]


def name_of(value: object) -> str:
    return getattr(value, "__qualname__", type(value).__name__)


@pytest.mark.parametrize(("handler", "arguments"), CASES, ids=name_of)
def test_what_a_handler_is_given(handler: Handler, arguments: dict[str, Any]) -> None:
    parameters = Parameters(handler)
    bound = parameters.bind(PATH)
    assert bound == arguments
    assert {name: type(value) for name, value in bound.items()} == {
        name: type(value) for name, value in arguments.items()
    }
    handler(object(), **bound)


@pytest.mark.parametrize(("handler", "arguments"), CASES, ids=name_of)
def test_whether_it_wants_anything(handler: Handler, arguments: dict[str, Any]) -> None:
    assert Parameters(handler).is_empty is (arguments == {})


def test_a_method_that_is_not_bound_yet() -> None:
    assert Parameters(Methods.of_instance, skip=2).bind(PATH) == {"room": 7}


@pytest.mark.parametrize("value", ["", "x", "7x", "7.5", "0x7", "--7", "9" * 5000])
def test_a_value_that_does_not_convert_stays_what_it_was(value: str) -> None:
    assert Parameters(as_int).bind({"room": value}) == {"room": value}


@pytest.mark.parametrize("value", ["", "x", "7x", "1.2.3", "e5"])
def test_nor_does_it_to_a_float(value: str) -> None:
    assert Parameters(as_float).bind({"room": value}) == {"room": value}


@given(value=st.text())
def test_no_path_of_a_peer_raises(value: str) -> None:
    assert isinstance(Parameters(as_int).bind({"room": value})["room"], (int, str))
    assert isinstance(Parameters(as_float).bind({"room": value})["room"], (float, str))


@given(number=st.integers())
def test_numbers_convert(number: int) -> None:
    assert Parameters(as_int).bind({"room": str(number)}) == {"room": number}
    assert Parameters(as_float).bind({"room": "-2.5"}) == {"room": -2.5}
    assert math.isinf(Parameters(as_float).bind({"room": "1e999"})["room"])


def test_what_the_route_has_converted_stays() -> None:
    """`{room:int}` and `{when:uuid}` are Starlette's convertors."""
    value = object()
    assert Parameters(as_int).bind({"room": value}) == {"room": value}
    assert Parameters(as_float).bind({"room": 7}) == {"room": 7}


@pytest.mark.parametrize("path", [{}, {"user": "ada"}])
def test_a_parameter_that_the_path_does_not_have(path: dict[str, str]) -> None:
    with pytest.raises(RouteError) as caught:
        Parameters(as_int).bind(path)
    assert "as_int() wants 'room'" in str(caught.value)
    assert repr(list(path)) in str(caught.value)
    assert "ada" not in str(caught.value), "what a peer sent is not for the log"


def test_the_error_of_a_handler_without_a_name() -> None:
    with pytest.raises(RouteError, match=r"functools.partial\(.*\(\) wants 'room'"):
        Parameters(functools.partial(as_int)).bind({})
