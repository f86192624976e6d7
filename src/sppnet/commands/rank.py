"""`sppnet rank RUN_DIR`: one further process of a run on several devices of this machine.

Started by Lightning on behalf of the first process; takes the configuration from the run directory, holds no lock and
writes no status. Ends when the first process ends, however that ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from pathlib import Path

import yaml

from sppnet.errors import UserError
from sppnet.runs import Run

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Join the run whose directory is the only argument."""
    if len(sys.argv) != 2 or "LOCAL_RANK" not in os.environ:
        raise UserError("`sppnet rank` is started by `sppnet train trainer.devices=N`, not by hand")
    if sys.platform == "linux":  # a killed first process must not leave us waiting in a collective
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    run = Run(Path(sys.argv[1]))
    cfg = yaml.safe_load((run.path / "config.yaml").read_text(encoding="utf-8"))
    overrides = (run.path / "overrides.txt").read_text(encoding="utf-8").splitlines()

    from sppnet.checkpoints import Preempted
    from sppnet.training import fit, prepare

    with contextlib.suppress(Preempted):  # the first process says so
        fit(prepare(cfg, overrides), run)
