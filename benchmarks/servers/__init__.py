"""The server class beside other servers: echo, handshakes and idle connections, with a load in C.

A peer is a server and an application on it, in processes of its own. `programs` has one program for
each server that is not started by a command of its own.
"""
