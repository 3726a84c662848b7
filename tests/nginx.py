"""A real nginx, configured as the documents say."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from debian import program
from servers import START_TIMEOUT, Port

MAIN = """
daemon off;
{user}
master_process {master};
pid {directory}/nginx.pid;
error_log stderr;
"""
HTTP = """
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    {configuration}
}}
"""
EVENTS = "events {}"


class Nginx:
    """An nginx, from the beginning of a block to its end.

    Args:
        configuration: What stands in its `http` block.
        directory: Where it looks for what is included; its output is kept there.
        instead: What is written in place of what stands in the configuration.
        main: What stands outside of `http`.
        master: Whether it has a process that can be told to reload.

    Attributes:
        host: Where it answers requests (`listen 80`).
        tls_host: Where it answers over TLS (`listen 443 ssl`).
    """

    def __init__(
        self,
        configuration: str,
        directory: Path,
        instead: Mapping[str, str] | None = None,
        *,
        main: str = EVENTS,
        master: bool = False,
    ) -> None:
        self._ports = [Port(), Port()]
        self.host, self.tls_host = (f"127.0.0.1:{port.number}" for port in self._ports)
        listens = {"listen 80;": f"listen {self.host};", "listen 443 ": f"listen {self.tls_host} "}
        for said, meant in {**listens, **(instead or {})}.items():
            configuration = configuration.replace(said, meant)
        about = {
            "directory": directory,
            "configuration": configuration,
            "master": "on" if master else "off",
            "user": "user root;" if master and os.geteuid() == 0 else "",
        }
        whole = f"{MAIN.format(**about)}{main}{HTTP.format(**about)}"
        (directory / "nginx.conf").write_text(whole)
        self.output = directory / "nginx.log"
        self._directory = directory

    def __enter__(self) -> Self:
        self.check()
        with self.output.open("wb") as output:
            self._process = subprocess.Popen(self.command(), stderr=output)
        deadline = time.monotonic() + START_TIMEOUT
        while not self._answers():
            assert self._process.poll() is None, self.output.read_text()
            assert time.monotonic() < deadline, "nginx does not answer"
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(10)
        self.release()

    def release(self) -> None:
        """Give its ports back."""
        for port in self._ports:
            port.release()

    def check(self) -> None:
        """Let nginx say that the configuration can be used, without a warning."""
        done = subprocess.run(self.command("-t"), capture_output=True, text=True, check=False)
        said = done.stderr.splitlines()
        assert done.returncode == 0, done.stderr
        assert [line for line in said if "successful" not in line and "is ok" not in line] == []

    def reload(self) -> None:
        """Do what `nginx -s reload` does."""
        self._process.send_signal(signal.SIGHUP)

    def command(self, *options: str) -> list[str]:
        """How it is started."""
        at = ("-p", str(self._directory), "-c", "nginx.conf", "-e", "stderr")
        return [program("nginx", "nginx"), *at, *options]

    def _answers(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self._ports[0].number)).close()
        except OSError:
            return False
        return True

    def url(self, path: str) -> str:
        return f"ws://{self.host}{path}"
