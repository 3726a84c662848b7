"""Starlette's own tests of its WebSocket pass, with nothing changed in them but two imports."""

import importlib.metadata
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

RENAMED = {"starlette.websockets": "yaat.websockets", "starlette.responses": "yaat.responses"}
VERSION = importlib.metadata.version("starlette")
REQUIREMENT = f"starlette=={VERSION}"
FILES = ("__init__.py", "conftest.py", "types.py", "test_websockets.py")


# They expect the client that Starlette's developers have installed, httpx2[zstd].
ZSTD = 'backports.zstd>=1; python_version < "3.14"'


@pytest.fixture
def parts(cache: pytest.Cache) -> Path:
    """The sources of the Starlette that is installed, and what its tests need; got once."""
    directory = cache.mkdir(f"starlette-{VERSION}")
    if not (directory / "complete").exists():
        pip("download", "--no-deps", "--no-binary=:all:", f"--dest={directory}", REQUIREMENT)
        pip("install", "--upgrade", f"--target={directory / 'packages'}", ZSTD)
        (directory / "complete").touch()
    return directory


def pip(command: str, *arguments: str) -> None:
    options = ["--quiet", "--disable-pip-version-check"]
    subprocess.run([sys.executable, "-m", "pip", command, *options, *arguments], check=True)


def copied(archive: Path, directory: Path) -> None:
    """Copy the tests from ``archive``, importing from Yaat what they test."""
    (directory / "tests").mkdir()
    with tarfile.open(archive) as members:
        for name in FILES:
            file = members.extractfile(f"starlette-{VERSION}/tests/{name}")
            assert file is not None
            text = file.read().decode()
            for theirs, ours in RENAMED.items():
                text = text.replace(f"from {theirs} import", f"from {ours} import")
            (directory / "tests" / name).write_text(text)


def outcomes(report: Path) -> Iterator[tuple[str, str]]:
    """Read each test's name and outcome from a report in JUnit's format."""
    for case in ET.parse(report).iter("testcase"):
        outcome = case.find("*")
        yield case.attrib["name"], "passed" if outcome is None else outcome.tag


@pytest.mark.timeout(300)
def test_all_but_one_pass(parts: Path, tmp_path: Path) -> None:
    """The one: here a second close does nothing."""
    copied(parts / f"starlette-{VERSION}.tar.gz", tmp_path)
    assert "from yaat.websockets import" in (tmp_path / "tests/test_websockets.py").read_text()
    (tmp_path / "pytest.ini").write_text("[pytest]\nxfail_strict = true\nfilterwarnings = error\n")
    command = [sys.executable, "-m", "pytest", "tests/test_websockets.py", "-k", "not trio"]
    command += ["-p", "no:asyncio", "-p", "no:xdist", "--junitxml=report.xml"]
    environment = os.environ | {"PYTHONPATH": str(parts / "packages")}
    run = subprocess.run(
        command, cwd=tmp_path, env=environment, check=False, capture_output=True, text=True
    )
    results = dict(outcomes(tmp_path / "report.xml"))
    not_passed = [name for name, outcome in results.items() if outcome != "passed"]
    assert not_passed == ["test_duplicate_close[asyncio]"], run.stdout
    assert results["test_duplicate_close[asyncio]"] == "failure"
    assert len(results) >= 30
