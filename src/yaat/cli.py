"""The command `yaat`."""

import argparse
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import Field, fields
from importlib.metadata import version
from typing import Any

from yaat.exceptions import ArgumentError, UsageError

WIDTH = 100


def main(arguments: Sequence[str] | None = None) -> None:
    """Do what a command line says.

    Args:
        arguments: Without the name of the program; None: those of this process.

    Raises:
        SystemExit: With 0; with 2 for what cannot be meant; else the log says why.
    """
    try:
        from yaat import server
        from yaat.server import settings
    except ImportError as missing:
        sys.exit(f"yaat: {missing}")

    parser = argparse.ArgumentParser(
        prog="yaat", description="The WebSocket toolkit for Python.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"yaat {version('yaat')}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    serving = commands.add_parser(
        "run",
        help="serve an application",
        description="Serve an ASGI application. Times are in seconds, sizes in bytes.",
        usage="yaat run [options] APP",
        formatter_class=_formatter,
        allow_abbrev=False,
    )
    serving.add_argument("app", metavar="APP", help="the application: module:name")
    for group, options in _grouped(fields(settings.ServerSettings)):
        section = serving.add_argument_group(group)
        for option in options:
            _add(section, option, settings.described()[option.name])
    known, unknown = parser.parse_known_args(arguments)
    if unknown:
        serving.error(f"unknown: {' '.join(unknown)}")
    given: dict[str, Any] = vars(known)
    app: str = given.pop("app")
    try:
        server.run(app, settings.ServerSettings(**_frozen(given)))
    except (ArgumentError, UsageError) as error:
        serving.error(str(error))


def _frozen(given: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(it) if isinstance(it, list) else it for name, it in given.items()}


def _formatter(prog: str) -> argparse.HelpFormatter:
    return argparse.HelpFormatter(prog, max_help_position=32, width=WIDTH)


def _grouped(options: Sequence[Field[Any]]) -> Iterator[tuple[str, list[Field[Any]]]]:
    """Yield what belongs together, in the order of the fields."""
    groups: dict[str, list[Field[Any]]] = {}
    for option in options:
        groups.setdefault(option.metadata["group"], []).append(option)
    yield from groups.items()


def _add(section: argparse._ArgumentGroup, option: Field[Any], said: str) -> None:
    """Add the option that a setting is: its name, its type and its default."""
    kind, many, optional = _kind(option.type)
    default: Any = option.default
    name = option.name.removesuffix("s") if many else option.name
    flag = f"--{name.replace('_', '-')}"
    text = f"{said[:1].lower()}{said[1:]} ({_shown(option.default)})".replace("%", "%%")
    if kind is bool:
        section.add_argument(
            flag,
            dest=option.name,
            default=option.default,
            action=argparse.BooleanOptionalAction,
            help=text,
        )
        return
    section.add_argument(
        flag,
        dest=option.name,
        type=_or_none(kind) if optional else kind,
        default=list(default) if many else default,
        action="append" if many else "store",
        metavar={int: "N", float: "SECONDS", str: "TEXT"}[kind],
        help=text,
    )


def _or_none(kind: type) -> Callable[[str], Any]:
    def parsed(text: str) -> Any:
        return None if text == "none" else kind(text)

    parsed.__name__ = kind.__name__  # argparse names it: "invalid int value"
    return parsed


def _kind(annotation: Any) -> tuple[type, bool, bool]:
    """Return the type of a value, whether there may be several, and whether there may be none."""
    if typing.get_origin(annotation) is tuple:
        return str, True, False
    if isinstance(annotation, types.UnionType):
        return typing.get_args(annotation)[0], False, True
    return annotation, False, False


def _shown(default: Any) -> str:
    if default is None or default in ("", ()):
        return "none"
    if isinstance(default, bool):
        return "on" if default else "off"
    return f"{default:g}" if isinstance(default, float) else str(default)
