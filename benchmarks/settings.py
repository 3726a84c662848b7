"""What the command line asks for."""

from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers import Peer


@dataclass(frozen=True)
class Settings:
    """One object for all parts; None leaves the choice to the part."""

    peers: tuple[Peer, ...]
    names: tuple[str, ...]
    apps: tuple[Peer, ...]
    rounds: int | None
    seconds: float
    rows: tuple[str, ...]
    shapes: tuple[tuple[int, int], ...]
    connections: int | None
    websockets: str
    instructions: bool
    output: Path
