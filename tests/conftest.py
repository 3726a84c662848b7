"""Fixtures that every test may use."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from peers import Peer, ServerPeer, TestClientPeer
from servers import RECORDS, SPECS, ServerPool, ServerSpec

TEST_CLIENT = "test-client"


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerPool]:
    """Server processes, started at their first use and kept until the end of the session."""
    pool = ServerPool(tmp_path_factory.mktemp("servers"))
    yield pool
    pool.stop()


# Of session scope, so that pytest runs the tests of one server after each other: with several
# workers each starts some of the servers rather than all.
@pytest.fixture(scope="session", params=SPECS)
def spec(request: pytest.FixtureRequest) -> ServerSpec:
    """Each server in turn."""
    return SPECS[request.param]


@pytest.fixture(scope="session", params=[*SPECS, TEST_CLIENT])
def peer_name(request: pytest.FixtureRequest) -> str:
    """Each server in turn, and the test client; of session scope like `spec`."""
    return str(request.param)


@pytest.fixture
async def peer(
    peer_name: str,
    servers: ServerPool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Peer]:
    """The application of the behaviours, on each server in turn and behind the test client."""
    if peer_name != TEST_CLIENT:
        spec = SPECS[peer_name]
        yield ServerPeer(spec, servers.get(spec, "apps.behaviours:app"))
        return
    from apps.behaviours import app

    records = tmp_path / "records"
    monkeypatch.setenv(RECORDS, str(records))
    async with app.test_client(raise_app_exceptions=False) as client:
        yield TestClientPeer(client, records)
