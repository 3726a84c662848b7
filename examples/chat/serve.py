"""Serve the chat on Yaat's server: `python serve.py [--host HOST] [--port PORT]`.

With BROKER=redis://localhost in the environment its rooms are there.
"""

import argparse
import socket

from app import app

from yaat.server import ServerSettings
from yaat.server.serving import Config, Server

PORT = 8000


def listen(host: str, port: int | None) -> socket.socket:
    """Return a listening socket: on the port asked for, else on 8000, else on any free one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, PORT if port is None else port), family=family)
    except OSError:
        if port is not None:
            raise
        return socket.create_server((host, 0), family=family)


def address(listener: socket.socket) -> str:
    """Return where a browser finds it."""
    host, port, *_ = listener.getsockname()
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def main() -> None:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(description="A chat in the browser.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, help=f"port ({PORT}, or a free one if it is taken)")
    parser.add_argument("--fd", type=int, help="a socket that listens already, instead")
    options = parser.parse_args()
    if options.fd is not None:
        listener = socket.socket(fileno=options.fd)
    else:
        try:
            listener = listen(options.host, options.port)
        except (OSError, OverflowError) as error:
            parser.exit(1, f"Cannot listen on {options.host}, port {options.port}: {error}\n")
        print(f"Chat: {address(listener)}/  (open it in two tabs; Ctrl-C ends it)", flush=True)
    Server(Config(app, ServerSettings(log_level="warning"))).run(sockets=[listener])


if __name__ == "__main__":
    main()
