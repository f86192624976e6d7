from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from sppnet.data import build_sizes, load_sets
from sppnet.data.datamodule import DataModule

Load = Callable[..., dict[str, Any]]


class Recorder(L.LightningModule):
    """Learns nothing to speak of and writes down what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 10)
        self.seen: list[tuple[int, list[int]]] = []

    def training_step(self, batch: Any) -> torch.Tensor:
        self.seen.append((batch["size"], batch["index"].tolist()))
        x: torch.Tensor = self.layer(batch["image"].float().mean((2, 3)))
        return x.mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-6)


def fit(
    cfg: dict[str, Any], folder: Path, limit: int | None, resume: Path | None = None
) -> list[tuple[int, list[int]]]:
    """Three epochs, with a checkpoint after every step."""
    sizes = {"_target_": "sppnet.data.Alternating", "train": [24, 20], "val": [24], "test": [24]}
    views = {"fit": "center", "ratio": 0.875, "aspect_step": 0.125}
    data = DataModule(load_sets(cfg), build_sizes(sizes), cfg, views, 0, folder)
    trainer = L.Trainer(
        accelerator="cpu",
        use_distributed_sampler=False,
        logger=False,
        callbacks=[ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)],
        enable_progress_bar=False,
        enable_model_summary=False,
        max_epochs=3,
        limit_train_batches=limit,
        limit_val_batches=0,
    )
    module = Recorder()
    trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    return module.seen


@pytest.mark.parametrize(("limit", "fit_mode"), [(None, "crop"), (4, "full")])
def test_lightning_resumes_at_the_very_batch(config: Load, tmp_path: Path, limit: int | None, fit_mode: str) -> None:
    cfg = config("digits", batch_size=256, fit=fit_mode)
    whole = fit(cfg, tmp_path, limit)
    sizes = [size for size, _ in whole]
    per_epoch = len(sizes) // 3
    assert sizes == [24] * per_epoch + [20] * per_epoch + [24] * per_epoch
    assert limit is None or per_epoch == limit
    for step in (1, per_epoch, per_epoch + 2):
        assert fit(cfg, tmp_path / f"from {step}", limit, resume=tmp_path / f"step={step}.ckpt") == whole[step:]
