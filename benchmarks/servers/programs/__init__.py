"""One echo server a file, as its own documentation would write it, on uvloop where it permits that.

Each takes a port, answers at `/text`, `/bytes` and `/json`, compresses nothing, and takes messages
of at least a mebibyte.
"""
