"""Listen, and become `yaat run` with the socket inherited: what a supervisor such as systemd does.

python -m apps.run_with_socket PORT APP OPTIONS...
"""

import os
import socket
import sys

if __name__ == "__main__":
    port, *arguments = sys.argv[1:]
    if port.isdecimal():
        listener = socket.create_server(("127.0.0.1", int(port)))
    else:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(port)
        listener.listen()
    listener.set_inheritable(True)
    given = ("--fd", str(listener.fileno()))
    os.execv(sys.executable, [sys.executable, "-m", "yaat", "run", *arguments, *given])
