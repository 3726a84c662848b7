"""`python -m yaat` is the command `yaat`."""

from yaat.cli import main

main()
