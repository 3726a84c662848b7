"""Fixtures that every test may use."""

from collections.abc import Iterator

import pytest

from servers import SPECS, ServerPool, ServerSpec


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
