"""The documents, read as their reader follows them: top to bottom, in an empty directory.

A block of code with a title (```python title="app.py") is the file of that name. A file
`test_*.py` is run by pytest; other Python files are imported, by such a test or else by themselves.
A Python block without a title goes on where the page's block before it ended, as if both stood in
one module; its functions `test_*` are run where they stand. What a page tells its reader to install
is there, or is installed.
"""

import importlib.metadata
import importlib.util
import inspect
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from types import ModuleType
from typing import Any

import pytest

from browser import only_one_process

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"

# The user's own page: its blocks are fragments, and test_seed.py runs them.
SEED = DOCS / "seed.md"

_BLOCK = re.compile(
    r"^(?P<indent> *)```(?P<info>[^\n`]*)\n(?P<code>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True)
class Block:
    """A block of code in a page.

    Attributes:
        title: The name of the file that it is, or nothing.
        line: Where its code begins in the page.
    """

    page: Path
    language: str
    title: str
    code: str
    line: int

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line} {self.title}".strip()

    def write(self, directory: Path) -> None:
        """Make the file that it is."""
        path = directory / self.title
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.code, encoding="utf-8")


def pages() -> list[Path]:
    """Every page that has blocks of its own."""
    found = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
    return [page for page in found if page != SEED]


def blocks(page: Path, *languages: str) -> list[Block]:
    """The blocks of a page, or those of some languages."""
    return [block for block in _blocks(page) if not languages or block.language in languages]


def write(page: Path, directory: Path) -> None:
    """Make the files that a page consists of, the last of each name."""
    for block in blocks(page):
        if block.title:
            block.write(directory)


def commands(page: Path) -> list[list[str]]:
    """The words of each line of the page's shell blocks."""
    lines = [line for block in blocks(page, "sh") for line in block.code.splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def requirements(page: Path) -> list[str]:
    """What the page tells its reader to install."""
    return [
        each for words in commands(page) if words[:2] == ["pip", "install"] for each in words[2:]
    ]


def provide(requirement: str) -> None:
    """Install a package that is not there."""
    name = re.split(r"[^\w.-]", requirement)[0]
    with only_one_process():
        try:
            importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            pip = [sys.executable, "-m", "pip", "install", "--quiet", requirement]
            subprocess.run(pip, check=True, timeout=300)
            importlib.invalidate_caches()


def _blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for match in _BLOCK.finditer(text):
        info = match["info"].split(maxsplit=1)
        title = re.search(r'title="([^"]+)"', match["info"])
        line = text.count("\n", 0, match.start("code")) + 1
        name = title[1] if title else ""
        yield Block(page, info[0] if info else "", name, dedent(match["code"]), line)


class Reading:
    """A page that is being followed in a directory.

    Attributes:
        names: What its untitled blocks have defined.
    """

    def __init__(self, page: Path, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.page = page
        self.directory = directory
        self._blocks = blocks(page)
        self._module = ModuleType(f"page_{page.stem.replace('-', '_')}")
        self._monkeypatch = monkeypatch
        monkeypatch.chdir(directory)
        monkeypatch.syspath_prepend(directory)
        monkeypatch.setitem(sys.modules, self._module.__name__, self._module)

    @property
    def names(self) -> dict[str, Any]:
        return vars(self._module)

    async def follow(self) -> None:
        """Do what the page says, block by block."""
        for requirement in requirements(self.page):
            provide(requirement)
        for block in self._blocks:
            if block.title:
                block.write(self.directory)
                self._run(block)
            elif block.language == "python":
                await self._continue(block)

    def file(self, title: str) -> ModuleType:
        """Import one of the page's files, after writing all of them."""
        write(self.page, self.directory)
        return self._imported(title)

    def _run(self, block: Block) -> None:
        name = block.title.removesuffix(".py")
        if block.title.startswith("test_"):
            self._run_pytest(block)
        elif block.language == "python" and not self._is_tested(name):
            self._imported(block.title)

    def _is_tested(self, name: str) -> bool:
        tests = (block.code for block in self._blocks if block.title.startswith("test_"))
        return any(f"from {name} import" in code for code in tests)

    async def _continue(self, block: Block) -> None:
        # Empty lines in front, so that a traceback names the line of the page.
        source = "\n" * (block.line - 1) + block.code
        before = dict(self.names)
        exec(compile(source, block.page, "exec"), self.names)
        for name, value in list(self.names.items()):
            if name.startswith("test_") and before.get(name) is not value:
                result = value()
                if inspect.isawaitable(result):
                    await result

    def _imported(self, title: str) -> ModuleType:
        name = Path(title).stem
        location = importlib.util.spec_from_file_location(name, self.directory / title)
        assert location is not None
        assert location.loader is not None
        module = importlib.util.module_from_spec(location)
        self._monkeypatch.setitem(sys.modules, name, module)
        location.loader.exec_module(module)
        return module

    def _run_pytest(self, block: Block) -> None:
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", block.title]
        environment = {key: value for key, value in os.environ.items() if "PYTEST" not in key}
        done = subprocess.run(
            command,
            cwd=self.directory,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"


def tables(page: Path) -> list[list[list[str]]]:
    """The tables of a page: rows of cells, without the heads."""
    found: list[list[list[str]]] = []
    rows = 0
    for line in page.read_text(encoding="utf-8").splitlines():
        if not line.startswith("|"):
            rows = 0
            continue
        rows += 1
        if rows == 1:
            found.append([])
        elif rows > 2:
            cells = re.split(r"(?<!\\)\|", line.strip().strip("|"))
            found[-1].append([cell.strip().replace("\\|", "|") for cell in cells])
    return found


def code(cell: str) -> str:
    """What stands between backticks in a cell."""
    return cell.strip("`")
