"""Fixtures that call `sppnet` as a user does: in this process (fast) or in its own (as in reality)."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra._internal.hydra import Hydra

from calling import OF_A_STUDY, SMALL, SWEEP, Called, Caller, command
from sppnet import cli
from sppnet.runs.provenance import COMMAND

# On a busy machine, the threads of tiny operations mostly wait for each other.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def checkpoints_are_plain_data(tmp_path: Path) -> Iterator[None]:
    """Check after every test that its checkpoints load without executing code."""
    yield
    for path in tmp_path.rglob("*.ckpt"):
        torch.load(path, weights_only=True)


@pytest.fixture
def sppnet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Caller]:
    """`sppnet WORDS...` in this process and a new working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SPPNET_ALLOW", raising=False)
    # Hydra composes a command line twice, first only to look for `hydra.mode`, which nothing sets unless it is typed.
    # Without this, that would take a sixth of the quick tier's time; the processes of `spawn` do it.
    look: Callable[..., Any] = Hydra.get_mode

    def find_mode(*args: Any, **kwargs: Any) -> Any:
        return look(*args, **kwargs) if any("hydra.mode" in word for word in sys.argv) else None

    monkeypatch.setattr(Hydra, "get_mode", find_mode)

    def call(*words: str) -> Called:
        monkeypatch.setattr(sys, "argv", ["sppnet", *words])
        threads, environment, path = torch.get_num_threads(), dict(os.environ), list(sys.path)
        root = logging.getLogger()
        level, handlers = root.level, list(root.handlers)
        try:
            code = cli.dispatch()
        finally:  # restore what the end of a process would
            root.setLevel(level)  # Hydra's --info logs everything, to the standard output of that call
            root.handlers[:] = handlers
            torch.set_num_threads(threads)
            torch.use_deterministic_algorithms(False)
            os.environ.clear()
            os.environ.update(environment)
            sys.path[:] = path
        out, err = capsys.readouterr()
        return Called(code, out, err)

    yield call
    for name, module in list(sys.modules.items()):  # the next test may have a module of the same name
        if (getattr(module, "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def spawn(tmp_path: Path) -> Caller:
    """`sppnet WORDS...` in its own process and a new working directory."""

    def call(*words: str, **env: str) -> Called:
        inherited = {key: value for key, value in os.environ.items() if key != COMMAND}  # set in this process
        done = subprocess.run(command(*words), cwd=tmp_path, env=inherited | env, capture_output=True, text=True)
        return Called(done.returncode, done.stdout, done.stderr)

    return call


@pytest.fixture
def study(sppnet: Caller, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Caller:
    """A sweep of two poolings and three seeds, trained once and copied for every test."""
    trained = tmp_path_factory.getbasetemp() / "study_of_two_poolings"
    if trained.exists():
        shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
        return sppnet
    for pooling in ("spp", "gap"):
        for seed in (0, 1, 2):
            assert sppnet("train", *OF_A_STUDY, f"pooling={pooling}", f"seed={seed}").code == 0
    swept = sppnet(*SWEEP)
    assert swept.code == 0, swept.out
    assert swept.out.count("(already done)") == 6
    shutil.copytree(tmp_path, trained)
    return sppnet


@pytest.fixture
def trained(sppnet: Caller, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Called:
    """The run of `SMALL` and what its training printed; trained once, every test has a copy."""
    kept = tmp_path_factory.getbasetemp() / "run_of_small"
    if not kept.exists():
        done = sppnet("train", *SMALL)
        assert done.code == 0, done.err
        shutil.copytree(tmp_path, kept)
        (kept / "printed.json").write_text(json.dumps([done.code, done.out, done.err]))
        return done
    shutil.copytree(kept / "runs", tmp_path / "runs")
    return Called(*json.loads((kept / "printed.json").read_text()))
