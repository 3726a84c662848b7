"""Path parameters: which of them a handler names, converted by their annotations. Pure."""

import functools
import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any, Final

from yaat.exceptions import RouteError

_CONVERTERS: Final = (int, float)


class Parameters:
    """What a handler wants to know of the path, read once from its signature.

    A parameter annotated with `int` or `float` is converted; a value that does not convert stays
    the `str` that it was. A handler with `**kwargs` gets all of them.

    Args:
        function: The handler. Its first parameter is the connection.
        skip: How many of its parameters come before those of the path.
    """

    __slots__ = ("_converters", "_name", "_required", "_takes_all")

    def __init__(self, function: Callable[..., Any], skip: int = 1) -> None:
        named = list(inspect.signature(function).parameters.values())[skip:]
        hints = _hints(function)
        by_name = [p for p in named if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        self._converters = {p.name: hints.get(p.name) for p in by_name}
        self._required = [p.name for p in by_name if p.default is p.empty]
        self._takes_all = any(p.kind is p.VAR_KEYWORD for p in named)
        self._name = getattr(function, "__qualname__", repr(function))

    @property
    def is_empty(self) -> bool:
        """Whether the handler wants to know nothing of the path."""
        return not self._converters and not self._takes_all

    def bind(self, path_params: Mapping[str, Any]) -> dict[str, Any]:
        """Return the keyword arguments of the handler for one connection.

        Raises:
            RouteError: The handler needs a parameter that the path of its route does not have.
        """
        for name in self._required:
            if name not in path_params:
                raise RouteError(
                    f"{self._name}() wants {name!r}, but its path has {list(path_params)!r}"
                )
        return {
            name: _converted(value, self._converters.get(name))
            for name, value in path_params.items()
            if self._takes_all or name in self._converters
        }


def _converted(value: Any, annotation: Any) -> Any:
    if annotation in _CONVERTERS and isinstance(value, str):
        try:
            return annotation(value)
        except ValueError:
            return value
    return value


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the annotations. One that cannot be resolved does not keep others from converting.

    It happens to every module that imports its annotations under `TYPE_CHECKING`.
    """
    while isinstance(function, functools.partial):
        function = function.func
    function = inspect.unwrap(function)
    try:
        return typing.get_type_hints(function)
    except Exception:  # noqa: BLE001 - an annotation is any expression, evaluated or not
        names = {converter.__name__: converter for converter in _CONVERTERS}
        found = getattr(function, "__annotations__", {})
        return {name: names.get(str(hint), hint) for name, hint in found.items()}
