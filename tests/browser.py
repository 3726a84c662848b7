"""A real Chromium for the tests. Where it is missing it is installed: a test never skips for it."""

import asyncio
import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from playwright.async_api import Browser, Playwright, async_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARGUMENTS = (
    "--headless",
    "--no-sandbox",  # root in a container has no user namespaces
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
INSTALL_TIMEOUT = 600.0


@contextlib.asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """Run a headless Chromium, driven by playwright, until the block ends."""
    async with async_playwright() as playwright:
        path = await asyncio.to_thread(executable, playwright)
        async with await playwright.chromium.launch(
            executable_path=path, args=list(ARGUMENTS)
        ) as browser:
            yield browser


def executable(playwright: Playwright) -> str:
    """Return the path of a Chromium that runs, after installing one where there is none."""
    with only_one_process():
        own = playwright.chromium.executable_path
        found = installed(own)
        failures = []
        for command in () if found else installations():
            if failure := run(command):
                failures.append(failure)
            elif found := installed(own):
                break
    if found is None:
        raise RuntimeError(
            "The browser tests need Chromium, and it could not be installed. Put `chromium` or "
            "`google-chrome` into the PATH (Debian: apt-get install chromium), or run "
            "`playwright install --with-deps chromium`. What was tried:\n" + "\n".join(failures)
        )
    return found


def installed(*more: str) -> str | None:
    """Return the first of the known names and of `more` that is there and runs."""
    for name in (*NAMES, *more):
        # Ubuntu's `chromium-browser` may be a script that only says to install a snap.
        if (path := shutil.which(name)) and not run([path, "--version"]):
            return path
    return None


def installations() -> Iterator[list[str]]:
    """Yield the commands that may bring a Chromium, the system's own package first."""
    if shutil.which("apt-get"):
        sudo = [] if os.geteuid() == 0 else ["sudo", "-n"]
        apt = [*sudo, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-q", "-y"]
        yield [*apt, "update"]
        yield [*apt, "install", "--no-install-recommends", "chromium", "fonts-dejavu-core"]
    yield [sys.executable, "-m", "playwright", "install", "chromium"]


def run(command: list[str]) -> str:
    """Run a command; return why it failed, or nothing."""
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=INSTALL_TIMEOUT)
    except subprocess.CalledProcessError as error:
        return f"{' '.join(command)}: {error.stderr.decode(errors='replace').strip()[-500:]}"
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{' '.join(command)}: {error}"
    return ""


@contextlib.contextmanager
def only_one_process() -> Iterator[None]:
    """Let parallel test processes look, and install, one after another."""
    with Path(tempfile.gettempdir(), f"chromium-for-tests.{os.getuid()}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
