"""A private SLURM for the tests of this folder."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from calling import Called, Caller, command
from private_slurm import Cluster, lacking


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster of two nodes."""
    if missing := lacking():
        pytest.skip(f"NO CLUSTER TESTS: {missing} not installed (Debian: slurm-wlm munge)")
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    made = Cluster(tmp_path_factory.mktemp("slurm"), 16800 + 20 * worker)
    yield made
    made.stop()


@pytest.fixture
def on(cluster: Cluster, tmp_path: Path) -> Caller:
    """`sppnet WORDS...` on a machine of the cluster."""

    def call(*words: str) -> Called:
        env = cluster.for_sppnet()
        done = subprocess.run(command(*words), cwd=tmp_path, env=env, capture_output=True, text=True)
        return Called(done.returncode, done.stdout, done.stderr)

    return call
