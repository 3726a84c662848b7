"""The page of the documentation that shows the figures of a run."""

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path


class Copy(io.StringIO):
    """Keeps what it passes on to the terminal."""

    def write(self, text: str) -> int:
        sys.__stdout__.write(text)  # type: ignore[union-attr]
        return super().write(text)


@contextmanager
def written(page: Path | None, what: str = "a run") -> Iterator[None]:
    """Put all that is printed between the page's two marks, once all of it was printed."""
    if page is None:
        yield
        return
    begin, end = f"<!-- {what} begins -->", f"<!-- {what} ends -->"
    before, _, rest = page.read_text(encoding="utf-8").partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise SystemExit(f"{page} has no {begin} and {end}")
    with redirect_stdout(Copy()) as copy:
        yield
    report = copy.getvalue().strip()
    page.write_text(f"{before}{begin}\n\n{report}\n\n{end}{after}", encoding="utf-8")
