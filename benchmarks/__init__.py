"""What Yaat costs, measured beside a bare ASGI function and the other frameworks."""
