"""A callback that delays a run or makes it fail while a file is in the working directory."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

PLUG = ("+callbacks.mishaps._target_=mishaps.Mishaps", "allow=mishaps")


class Mishaps(Callback):
    """The file `slow` makes each step wait; `raise-SEED` or `raise-rank-N` makes a step after the tenth fail.

    With the file `slow-test`, the final test waits after its first batch, and the file `testing-SEED` appears.

    While `slow` exists, 160 steps take five minutes, so no run ends before a test has stopped it.
    """

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        if Path("slow").exists():
            time.sleep(0.25 if trainer.global_step < 10 else 2)
        names = (f"raise-{pl_module.cfg.seed}", f"raise-rank-{trainer.global_rank}")
        if trainer.global_step >= 10 and any(Path(name).exists() for name in names):
            raise RuntimeError("a mishap after step 10")

    def on_test_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        while Path("slow-test").exists():
            Path(f"testing-{pl_module.cfg.seed}").touch()
            time.sleep(0.1)
