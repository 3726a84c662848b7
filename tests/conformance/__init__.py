"""All cases of the Autobahn test suite against the protocol class, and the page that shows them.

`python -m conformance`, from `tests`, runs them and writes the page. The cases are Autobahn's own
files, driven by kosoku.
"""
