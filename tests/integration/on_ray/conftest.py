"""The cluster of this folder's tests. One process runs them all: `ByFile` in tests/conftest.py."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from rays import own_ray


@pytest.fixture(scope="package", autouse=True)
def cluster(faults: Path) -> Iterator[str]:
    """A Ray of this machine, whose workers meet the faults on order; its address."""
    # Room for several: without a dashboard Ray keeps the places of a run whose controller was killed.
    own_ray(16)
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()
