"""How many processes serve an application: what one has in its memory, the others do not see."""

_count = 1


def note(count: int) -> None:
    """Note that `count` processes serve the application, this one among them.

    Who starts them says so in each, before the application is imported there.
    """
    global _count  # noqa: PLW0603 - a process is one of so many, whoever asks
    _count = count


def count() -> int:
    """Return how many processes serve the application, as far as this one knows; at least 1."""
    return _count
