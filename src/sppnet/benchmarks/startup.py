"""How long it takes to start, and what a sweep gains by running its jobs side by side."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from sppnet.benchmarks.measurement import Row, Setting
from sppnet.errors import RunFailed

ROUNDS = 3
JOBS, ALONE = 8, 3  # jobs of the sweep, and how many of them are started one by one and scaled up
SPPNET = (sys.executable, "-P", "-m", "sppnet.cli")
SWEPT = ("trainer.threads=1", "trainer.max_epochs=4", "trainer.progress=none", "force=true")  # about 10 s of training
HYDRA = """
import hydra
@hydra.main(version_base="1.3", config_path=None)
def main(cfg): pass
main()
"""
LIGHTNING = """
import lightning as L, torch, torch.nn.functional as F
from sklearn.datasets import load_digits
class Module(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Conv2d(1, 16, 3), torch.nn.ReLU(), torch.nn.AdaptiveMaxPool2d(1),
                                       torch.nn.Flatten(), torch.nn.Linear(16, 10))
    def training_step(self, batch): return F.cross_entropy(self.net(batch[0]), batch[1])
    def on_train_batch_end(self, *_): open("stepped", "w").close()
    def configure_optimizers(self): return torch.optim.AdamW(self.parameters())
images, target = load_digits(return_X_y=True)
data = torch.utils.data.TensorDataset(torch.tensor(images).float().view(-1, 1, 8, 8), torch.tensor(target))
trainer = L.Trainer(accelerator="cpu", max_steps=1, logger=False, enable_checkpointing=False, enable_progress_bar=False)
trainer.fit(Module(), torch.utils.data.DataLoader(data, 32))
"""


def starting(setting: Setting) -> Iterator[Row]:
    """Rows of the group `start`."""
    rounds = 1 if setting.quick else ROUNDS
    where = setting.scratch / "starts"
    where.mkdir(exist_ok=True)
    (where / "minimal.py").write_text(HYDRA)
    (where / "bare.py").write_text(LIGHTNING)
    shown = statistics.median(_seconds([*SPPNET, "--help"], where) for _ in range(rounds))
    yield Row("start", "sppnet --help", "", shown, float("nan"), shown, 0.3, most=True)
    minimal = [sys.executable, "minimal.py", "--cfg", "job"]
    pairs = [(_seconds([*SPPNET, "train", "--cfg", "job"], where), _seconds(minimal, where)) for _ in range(rounds)]
    yield _row("sppnet train --cfg job (time of ours over theirs)", "Hydra's minimal app", pairs, 1.5)
    first = [
        *SPPNET,
        "train",
        "trainer.limit_batches=2",
        "trainer.log_every_n_steps=1",
        "force=true",
        "trainer.progress=none",
    ]
    bare = [sys.executable, "bare.py"]
    pairs = [(_until(first, where, "runs/**/metrics.jsonl"), _until(bare, where, "stepped")) for _ in range(rounds)]
    yield _row(
        "the first training step of the default run (time of ours over theirs)", "a bare Lightning fit", pairs, 1.3
    )


def sweeping(setting: Setting) -> Iterator[Row]:
    """Rows of the group `sweep`."""
    where = setting.scratch / "sweep"
    where.mkdir(exist_ok=True)
    jobs, single = (2, 1) if setting.quick else (JOBS, ALONE)
    words = (*SWEPT, "trainer.max_epochs=1", "trainer.limit_batches=2") if setting.quick else SWEPT
    alone = [_seconds([*SPPNET, "train", *words, f"seed={seed}", "study=alone"], where) for seed in range(single)]
    seeds = ",".join(map(str, range(jobs)))
    swept = _seconds([*SPPNET, "train", "-m", "launch=processes", *words, f"seed={seeds}", "study=swept"], where)
    theirs = statistics.fmean(alone) * jobs
    yield Row(
        "sweep",
        f"a sweep of {jobs} runs of 10 s of training, launch=processes",
        f"{jobs} starts one after another",
        swept,
        theirs,
        theirs / swept,
        1.5,
        limit=f"{os.cpu_count()} cores; {single} of the single starts are timed and scaled",
    )


def _row(what: str, against: str, pairs: Sequence[tuple[float, float]], most: float) -> Row:
    ours, theirs = (statistics.median(times) for times in zip(*pairs, strict=True))
    return Row("start", what, against, ours, theirs, statistics.median(a / b for a, b in pairs), most, most=True)


def _seconds(command: Sequence[str], where: Path) -> float:
    began = time.perf_counter()
    subprocess.run(command, cwd=where, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    return time.perf_counter() - began


def _until(command: Sequence[str], where: Path, trace: str) -> float:
    """Seconds until the process leaves a file with something in it, or ends."""
    shutil.rmtree(where / "runs", ignore_errors=True)
    (where / "stepped").unlink(missing_ok=True)
    began = time.perf_counter()
    with subprocess.Popen(command, cwd=where, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not any(path.stat().st_size or path.name == "stepped" for path in where.glob(trace)):
            if process.poll():
                raise RunFailed(f"{' '.join(command)} failed with exit code {process.returncode}")
            time.sleep(0.005)
        return time.perf_counter() - began
