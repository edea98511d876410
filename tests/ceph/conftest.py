"""One cluster for all tests of this folder; each makes its own images."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.ceph.cluster import Cluster


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster whose OSD serves."""
    with Cluster(tmp_path_factory.mktemp("ceph")) as cluster:
        yield cluster
