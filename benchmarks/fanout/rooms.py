"""Many small channels."""

from benchmarks.fanout import turns
from benchmarks.fanout.peers import BASE, PEERS
from benchmarks.fanout.rows import Fanout
from benchmarks.servers import load, report
from benchmarks.servers.load import Counted, Target
from benchmarks.servers.part import loaded
from benchmarks.servers.peers import chosen
from benchmarks.servers.rows import Results, Row
from benchmarks.settings import Settings

SOCKETS_EACH = 2  # as many as receive in the fan-out, twice
CHANNELS_EACH = 5  # channels there are for a socket; each has two members on average
PUBLISHED = Fanout(128, 64)


def run(settings: Settings) -> None:
    """Measure and report."""
    loaded("Many channels", measure, settings)


def measure(settings: Settings) -> None:
    peers = chosen(settings.names, settings.apps, settings.websockets, PEERS)
    asked = row(SOCKETS_EACH * (settings.connections or turns.RECEIVERS))
    what = f"{PUBLISHED.size} B to channels at random, {PUBLISHED.window} in flight"
    print(turns.heading("Many channels", what, settings))
    results = [Results(asked, {peer: [] for peer in peers})]
    turns.take(peers, results, settings)
    report.tables(results, BASE)
    report.draw(results, BASE, settings.output / "bench-rooms.svg", "Many channels")


def row(sockets: int) -> Row:
    channels = CHANNELS_EACH * sockets

    def turn(target: Target, seconds: float) -> Counted:
        sizes = (channels, sockets)
        return load.rooms(target, PUBLISHED.text, sizes, PUBLISHED.window, seconds)

    title = f"{channels:,} channels of 1 to 3 members, on {sockets:,} sockets"
    return Row(title, "deliveries", None, turn)
