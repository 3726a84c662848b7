"""Jinja2 templates. Needs the extra `yaat[templates]`; no other module of Yaat imports this one."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import HTMLResponse

try:
    import jinja2
    from starlette.templating import Jinja2Templates as _Jinja2Templates
except ImportError as missing:
    raise ImportError("templates need Jinja2: pip install 'yaat[templates]'") from missing

__all__ = ["Jinja2Template", "Jinja2Templates"]

Directory = str | os.PathLike[str]
ContextProcessor = Callable[[Request], dict[str, Any]]


class Jinja2Template(_Jinja2Templates):
    """Renders the templates of a directory.

    Every value is escaped, whatever the name of the template; the Yaat of 2020 escaped none. Mark
    what is HTML already with `|safe`, or give an environment of your own that decides otherwise.

    Args:
        directory: Where the templates are, or several such places; or
        env: a Jinja2 environment.
        context_processors: Each is given the request and returns values for every template.

    Raises:
        FileNotFoundError: There is no such directory.
    """

    def __init__(
        self,
        directory: Directory | Sequence[Directory] | None = None,
        *,
        context_processors: list[ContextProcessor] | None = None,
        env: jinja2.Environment | None = None,
    ) -> None:
        if directory is not None:
            loader = jinja2.FileSystemLoader(_existing(directory))
            env = jinja2.Environment(loader=loader, autoescape=True)
        if env is None:
            raise TypeError("a directory or an environment is needed")
        super().__init__(env=env, context_processors=context_processors)

    @overload  # type: ignore[override]  # the response's class is a private one of Starlette's
    def TemplateResponse(
        self,
        name: str,
        context: Mapping[str, Any] | None = None,
        status_code: int = 200,
        headers: Mapping[str, str] | None = None,
        media_type: str | None = None,
        background: BackgroundTask | None = None,
    ) -> HTMLResponse: ...

    @overload
    def TemplateResponse(
        self,
        request: Request,
        name: str,
        context: Mapping[str, Any] | None = None,
        status_code: int = 200,
        headers: Mapping[str, str] | None = None,
        media_type: str | None = None,
        background: BackgroundTask | None = None,
    ) -> HTMLResponse: ...

    def TemplateResponse(  # noqa: N802 # pyright: ignore[reportIncompatibleMethodOverride]
        self, *args: Any, **kwargs: Any
    ) -> HTMLResponse:
        """Render a template: `TemplateResponse(name, context)`, or with the request before them.

        With a request, as an argument or in the context, a template has `request` and `url_for()`.
        """
        if "request" in kwargs or (args and not isinstance(args[0], str)):
            return super().TemplateResponse(*args, **kwargs)
        return self._render(*args, **kwargs)

    def _render(
        self, name: str, context: Mapping[str, Any] | None = None, *args: Any, **kwargs: Any
    ) -> HTMLResponse:
        context = dict(context or {})
        if "request" in context:
            return super().TemplateResponse(context["request"], name, context, *args, **kwargs)
        return HTMLResponse(self.get_template(name).render(context), *args, **kwargs)


Jinja2Templates = Jinja2Template


def _existing(directory: Directory | Sequence[Directory]) -> list[Directory]:
    """Look for each directory now: Jinja2 would say at the first request that a file is missing."""
    directories = [directory] if isinstance(directory, str | os.PathLike) else list(directory)
    for each in directories:
        if not Path(each).is_dir():
            raise FileNotFoundError(f"there is no directory {os.fspath(each)!r}")
    return directories
