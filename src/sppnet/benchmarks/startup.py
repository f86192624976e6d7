"""Times the start of the program (group `start`), and compares a sweep with single runs (group `sweep`)."""

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
JOBS, SINGLE = 8, 3  # jobs in the sweep; number of single runs whose mean time is multiplied by JOBS
SPPNET = (sys.executable, "-P", "-m", "sppnet.cli")
# about 10 s of training
SHORT_RUN = (
    "compute.num_threads=1",
    "trainer.max_epochs=4",
    "progress=none",
    "force=true",
)
TWO_BATCHES = ("trainer.limit_train_batches=2", "trainer.limit_val_batches=2", "trainer.limit_test_batches=2")
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


def measure_startup(setting: Setting) -> Iterator[Row]:
    """Yield the rows of the group `start`."""
    rounds = 1 if setting.quick else ROUNDS
    folder = setting.scratch / "starts"
    folder.mkdir(exist_ok=True)
    (folder / "minimal.py").write_text(HYDRA)
    (folder / "bare.py").write_text(LIGHTNING)
    seconds = statistics.median(_time_process([*SPPNET, "--help"], folder) for _ in range(rounds))
    yield Row("start", "sppnet --help", "", seconds, float("nan"), seconds, 0.3, most=True)
    minimal = [sys.executable, "minimal.py", "--cfg", "job"]
    ours = [*SPPNET, "train", "--cfg", "job"]
    pairs = [(_time_process(ours, folder), _time_process(minimal, folder)) for _ in range(rounds)]
    yield _row("sppnet train --cfg job (time of ours over theirs)", "Hydra's minimal app", pairs, 1.5)
    overrides = (*TWO_BATCHES, "trainer.log_every_n_steps=1", "force=true", "progress=none")
    ours, bare = [*SPPNET, "train", *overrides], [sys.executable, "bare.py"]
    pairs = [
        (_time_until_file(ours, folder, "runs/**/metrics.jsonl"), _time_until_file(bare, folder, "stepped"))
        for _ in range(rounds)
    ]
    yield _row(
        "the first training step of the default run (time of ours over theirs)", "a bare Lightning fit", pairs, 1.3
    )


def measure_sweep(setting: Setting) -> Iterator[Row]:
    """Yield the rows of the group `sweep`."""
    folder = setting.scratch / "sweep"
    folder.mkdir(exist_ok=True)
    jobs, single = (2, 1) if setting.quick else (JOBS, SINGLE)
    overrides = (*SHORT_RUN, "trainer.max_epochs=1", *TWO_BATCHES) if setting.quick else SHORT_RUN
    single_times = [
        _time_process([*SPPNET, "train", *overrides, f"seed={seed}", "study=alone"], folder) for seed in range(single)
    ]
    seeds = ",".join(map(str, range(jobs)))
    sweep = [*SPPNET, "train", "-m", "launch=processes", *overrides, f"seed={seeds}", "study=swept"]
    ours = _time_process(sweep, folder)
    theirs = statistics.fmean(single_times) * jobs
    yield Row(
        "sweep",
        f"a sweep of {jobs} runs of 10 s of training, launch=processes",
        f"{jobs} starts one after another",
        ours,
        theirs,
        theirs / ours,
        1.5,
        limit=f"{os.cpu_count()} cores; {single} of the single starts are timed and scaled",
    )


def _row(what: str, against: str, pairs: Sequence[tuple[float, float]], target: float) -> Row:
    ours, theirs = (statistics.median(times) for times in zip(*pairs, strict=True))
    return Row("start", what, against, ours, theirs, statistics.median(a / b for a, b in pairs), target, most=True)


def _time_process(command: Sequence[str], folder: Path) -> float:
    began = time.perf_counter()
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    return time.perf_counter() - began


def _time_until_file(command: Sequence[str], folder: Path, pattern: str) -> float:
    """Start `command`, and return the seconds until a file that matches `pattern` has content.

    The file `stepped` stays empty, so it only has to exist.
    """
    shutil.rmtree(folder / "runs", ignore_errors=True)
    (folder / "stepped").unlink(missing_ok=True)
    began = time.perf_counter()
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not any(path.stat().st_size or path.name == "stepped" for path in folder.glob(pattern)):
            if process.poll():
                raise RunFailed(f"{' '.join(command)} failed with exit code {process.returncode}")
            time.sleep(0.005)
        return time.perf_counter() - began
