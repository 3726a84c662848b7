"""One echo application a framework, written as its own documentation would write it.

All of them answer at `/text`, `/bytes` and `/json`, with the framework's own calls for each kind
and nothing configured.
"""
