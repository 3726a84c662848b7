"""One message to a thousand sockets: servers and applications, with the load in C.

A peer is one file in `programs` and one line in `peers.PEERS`. What it has to do: who connects to
`/listen` is in, and is told the text `ready` once it is; each text that comes at `/publish` goes to
all who are in, each in one frame, in the order in which they came. It may compress if that was
agreed on, as long as all get the same bytes.
"""
