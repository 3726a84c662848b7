"""The command `yaat`."""

import argparse
import asyncio
import logging
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import Field, fields
from importlib import import_module
from importlib.metadata import version
from operator import attrgetter
from pathlib import Path
from typing import Any

from yaat.app import Yaat
from yaat.brokers.contract import Published
from yaat.channels import Channels, Hub
from yaat.exceptions import (
    BrokerError,
    BrokerUnavailable,
    ChannelNameError,
    MessageError,
    UsageError,
)
from yaat.payload import decode

WIDTH = 100
_SILENCE = logging.NullHandler()

_MEANT_OTHERWISE = (UsageError, ChannelNameError, MessageError)
"""What is raised for what cannot be meant."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Do what a command line says.

    Args:
        arguments: Without the name of the program; None: those of this process.

    Raises:
        SystemExit: With 0; with 2 for what cannot be meant; else the log says why, or a line.
    """
    parser = argparse.ArgumentParser(
        prog="yaat", description="The WebSocket toolkit for Python.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"yaat {version('yaat')}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Command)
    commands.add_parser(
        "run",
        help="serve an application",
        description="Serve an ASGI application. Times are in seconds, sizes in bytes.",
        usage="yaat run [options] APP",
        fill=_describe_run,
        work=_run,
    )
    commands.add_parser(
        "publish",
        help="publish to a channel of an application",
        description="Publish to a channel of an application, from outside of it. It prints the "
        "position that the publication has, if it is kept.",
        usage="yaat publish [options] URL CHANNEL DATA",
        fill=_describe_publish,
        work=_publish,
    )
    known, unknown = parser.parse_known_args(arguments)
    given: dict[str, Any] = vars(known)
    command: _Command = given.pop("command")
    if unknown:
        command.error(f"unknown: {' '.join(unknown)}")
    try:
        command.work(**given)
    except _MEANT_OTHERWISE as error:
        command.error(str(error))
    except BrokerError as error:
        command.exit(1, f"{command.prog}: {_told(error)}\n")


class _Command(argparse.ArgumentParser):
    """A command. It gets its options when it is used: what they are made of may be an extra.

    Args:
        fill: Adds them.
        work: Does what they say.
        options: Those of a parser.
    """

    def __init__(
        self, *, fill: Callable[["_Command"], None], work: Callable[..., None], **options: Any
    ) -> None:
        super().__init__(formatter_class=_formatter, allow_abbrev=False, **options)
        self._fill = fill
        self.work = work
        self.set_defaults(command=self)

    def parse_known_args(self, *arguments: Any, **named: Any) -> Any:
        """Read what stands behind its name."""
        self._fill(self)
        return super().parse_known_args(*arguments, **named)


# yaat run


def _describe_run(parser: _Command) -> None:
    try:
        from yaat.server import settings
    except ImportError as missing:
        sys.exit(f"yaat: {missing}")
    parser.add_argument("app", metavar="APP", help="the application: module:name")
    for group, options in _grouped(fields(settings.ServerSettings)):
        section = parser.add_argument_group(group)
        for option in options:
            _add(section, option, settings.described()[option.name])


def _run(app: str, **given: Any) -> None:
    from yaat import server

    server.run(app, server.ServerSettings(**_frozen(given)))


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


# yaat publish


def _describe_publish(parser: _Command) -> None:
    add = parser.add_argument
    add("url", metavar="URL", help="the broker; env:NAME for what the variable NAME has")
    add("channel", metavar="CHANNEL", help="the name of the channel")
    add("data", metavar="DATA", help="a text; - for what comes by the standard input")
    add("--channels", metavar="module:NAME", help="the application's Channels, or its Yaat (none)")
    add("--app-dir", metavar="TEXT", default=".", help="directory to import them from (.)")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--json", action="store_true", help="whether DATA is a JSON value (off)")
    kind.add_argument("--bytes", action="store_true", help="whether DATA is bytes (off)")
    add(
        "--once",
        metavar="TEXT",
        help="what names it: with the same again it is not published (none)",
    )
    add("--key", metavar="TEXT", help="what a newer one with the same key supersedes (none)")


def _publish(url: str, channel: str, data: str, channels: str | None, **given: Any) -> None:
    known = None if channels is None else _imported(channels, given["app_dir"])
    content = _content(data, is_json=given["json"], is_bytes=given["bytes"])

    hub = Hub(_url(url), known)
    if not hub.broker.is_shared:
        raise UsageError("memory:// is of one process: nobody would hear what is published")
    target = hub.channel(channel)  # what cannot be meant is told before anything is connected

    async def publish() -> Published:
        try:
            return await target.publish(content, once=given["once"], key=given["key"])
        finally:
            await hub.close()

    # What the broker logs of an outage is said by the error, in the one line that there is.
    for name in ("yaat.broker", "yaat.channel"):
        logging.getLogger(name).addHandler(_SILENCE)
    published = asyncio.run(publish())
    if published.offset:
        print(published.position)  # noqa: T201 - what it is asked for


def _url(text: str) -> str:
    """Return the URL: what stands on a command line is seen by all who may list the processes."""
    if not text.startswith("env:"):
        return text
    name = text.removeprefix("env:")
    if not os.environ.get(name):
        raise UsageError(f"the environment has no {name!r}")
    return os.environ[name]


def _content(text: str, *, is_json: bool, is_bytes: bool) -> Any:
    data = sys.stdin.buffer.read() if text == "-" else os.fsencode(text)
    if is_bytes:
        return data
    try:
        return decode(data) if is_json else data.decode()
    except ValueError:
        raise UsageError(f"DATA is not {'JSON' if is_json else 'UTF-8; is it --bytes?'}") from None


def _imported(place: str, directory: str) -> Channels:
    """Return the channels that are at `module:name`, or are those of the application there."""
    if not re.fullmatch(r"\w+(\.\w+)*:\w+(\.\w+)*", place):
        raise UsageError(f"--channels is module:NAME, not {place!r}")
    module, _, name = place.partition(":")
    sys.path.insert(0, str(Path(directory).resolve()))
    try:
        imported = import_module(module)
    except ModuleNotFoundError as error:
        if not f"{module}.".startswith(f"{error.name}."):
            raise  # it lacks something itself
        raise UsageError(f"there is no module {error.name!r} in {sys.path[0]}") from None
    try:
        found = attrgetter(name)(imported)
    except AttributeError:
        raise UsageError(f"there is no {name!r} in {module!r}") from None
    channels = found.hub.channels if isinstance(found, Yaat) else found
    if not isinstance(channels, Channels):
        raise UsageError(f"{place} is neither Channels nor a Yaat, but a {type(found).__name__}")
    return channels


def _told(error: BrokerError) -> str:
    if isinstance(error, BrokerUnavailable) and error.maybe_published:
        return f"{error}. It may have been published: with --once it can be said again"
    return str(error)
