"""Channels and their fan-out: servers and applications, with the load in C.

A peer is one file in `programs` and one line in `peers.PEERS`. What it has to do: who connects to
`/listen/NAMES` is in the channels of these names, which are of six digits, with hyphens between
them, and is told the text `ready` once it is. Each text that comes at `/publish` begins with the
name of a channel, and goes to all who are in that one, each in one frame, in the order in which
the texts came. It may compress if that was agreed on, as long as all get the same bytes.
"""
