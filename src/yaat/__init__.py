"""Yaat, yet another ASGI toolkit."""
