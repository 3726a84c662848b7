"""Channels over a broker on the network: publisher and subscriber in one process.

A peer is a context manager in `programs` and one line in `peers.PEERS`. It is given the URL of a
server of Redis's kind and what to call with every payload that comes, and yields its `Ends`: what
publishes a payload of bytes, and what reads the history, if it keeps one.
"""
