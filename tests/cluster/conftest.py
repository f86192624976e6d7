"""Fixtures: a private SLURM cluster on this machine."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import private_accounting
import private_slurm
from calling import Called, Caller, command
from private_slurm import Cluster, lacking


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster of two nodes."""
    if missing := lacking(*private_slurm.NEEDED):
        pytest.skip(f"NO CLUSTER TESTS: {missing} not installed (Debian: slurm-wlm munge)")
    yield from _cluster(tmp_path_factory, 16800, accounting=False)


@pytest.fixture(scope="session")
def accounting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster with accounting, whose controller forgets a job soon after it ends."""
    if missing := lacking(*private_slurm.NEEDED, *private_accounting.NEEDED):
        packages = "slurm-wlm munge slurmdbd mariadb-server-core mariadb-client-core"
        pytest.skip(f"NO TESTS OF ACCOUNTING: {missing} not installed (Debian: {packages})")
    yield from _cluster(tmp_path_factory, 17800, accounting=True)


def _cluster(factory: pytest.TempPathFactory, port: int, accounting: bool) -> Iterator[Cluster]:
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    cluster = Cluster(factory.mktemp("slurm"), _free_port(port + 20 * worker), accounting)
    yield cluster
    cluster.stop()


def _free_port(port: int) -> int:
    """The first of `port`, `port + 100`, ... with twenty free ports: daemons of a killed test run may hold some."""

    def taken(number: int) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", number)) == 0

    while any(taken(port + k) for k in range(20)):
        port += 100
    return port


@pytest.fixture
def on(cluster: Cluster, tmp_path: Path) -> Caller:
    """Calls `sppnet` on a machine of the cluster."""
    return _caller(cluster, tmp_path)


@pytest.fixture
def booked(accounting: Cluster, tmp_path: Path) -> Caller:
    """Calls `sppnet` on the cluster with accounting, in a folder with a blank in its name."""
    (tmp_path / "a folder").mkdir()
    return _caller(accounting, tmp_path / "a folder")


def _caller(cluster: Cluster, folder: Path) -> Caller:
    def call(*arguments: str) -> Called:
        env = cluster.for_sppnet()
        done = subprocess.run(command(*arguments), cwd=folder, env=env, capture_output=True, text=True)
        return Called(done.returncode, done.stdout, done.stderr)

    return call
