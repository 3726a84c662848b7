"""The fan-out, a file each, as the documentation of what it is written for would have it.

With `app` it is an ASGI application; else it is a program that takes a port.
"""
