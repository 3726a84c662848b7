"""Serves the files of a directory over HTTP. Starlette's; a WebSocket is refused."""

import os
from collections.abc import Sequence
from pathlib import Path

from starlette.staticfiles import StaticFiles as _StaticFiles

from yaat.exceptions import UsageError

__all__ = ["StaticFiles"]


class StaticFiles(_StaticFiles):
    """An ASGI application: mount it, `app.mount("/static", StaticFiles("static"))`.

    Args:
        directory: Where the files are.
        html: Serve `index.html` for a directory, and `404.html` where there is nothing.
        packages: Python packages whose `statics` directories are served too.
        check_dir: Look for the directory now rather than at the first request.
        follow_symlink: Follow links that lead out of the directory.

    Raises:
        UsageError: There is no such directory. It is a `RuntimeError` too.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str] | None = None,
        html: bool = False,  # noqa: FBT001, FBT002 - the signature that Yaat's users know
        *,
        packages: Sequence[str | tuple[str, str]] | None = None,
        check_dir: bool = True,
        follow_symlink: bool = False,
    ) -> None:
        if check_dir and directory is not None and not Path(directory).is_dir():
            raise UsageError(f"{os.fspath(directory)!r} is not a directory")
        super().__init__(
            directory=directory,
            packages=None if packages is None else list(packages),
            html=html,
            check_dir=check_dir,
            follow_symlink=follow_symlink,
        )
