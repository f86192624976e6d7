from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from sppnet.config.schema import Augment, Center, Data, Sizes
from sppnet.data import build_sizes, load_splits
from sppnet.data.datamodule import DataModule
from sppnet.errors import UserError

Load = Callable[..., Data]


class Recorder(L.LightningModule):
    """Trains with a negligible learning rate and records the (size, indices) of its batches."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 10)
        self.batches: list[tuple[int, list[int]]] = []

    def training_step(self, batch: Any) -> torch.Tensor:
        self.batches.append((batch["size"], batch["index"].tolist()))
        x: torch.Tensor = self.layer(batch["image"].float().mean((2, 3)))
        return x.mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-6)


def data_module(cfg: Data, folder: Path) -> DataModule:
    """With two training sizes, which alternate by epoch."""
    sizes = Sizes(_target_="sppnet.data.Alternating", train=[24, 20], val=[24], test=[24])
    augment, views = Augment(flip=False, color=0.0), Center(name="center", fit="center", crop_pct=0.875)
    return DataModule(load_splits(cfg), build_sizes(sizes), cfg, augment, views, 0, folder)


def fit(cfg: Data, folder: Path, limit: int | None, resume: Path | None = None) -> list[tuple[int, list[int]]]:
    """Three epochs, with a checkpoint after every step."""
    data = data_module(cfg, folder)
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
    return module.batches


@pytest.mark.parametrize(("limit", "fit_mode"), [(None, "crop"), (4, "full")])
def test_lightning_resumes_at_the_next_batch(config: Load, tmp_path: Path, limit: int | None, fit_mode: str) -> None:
    cfg = config("digits", batch_size=256, fit=fit_mode)
    whole = fit(cfg, tmp_path, limit)
    sizes = [size for size, _ in whole]
    per_epoch = len(sizes) // 3
    assert sizes == [24] * per_epoch + [20] * per_epoch + [24] * per_epoch
    assert limit is None or per_epoch == limit
    for step in (1, per_epoch, per_epoch + 2):
        assert fit(cfg, tmp_path / f"from {step}", limit, resume=tmp_path / f"step={step}.ckpt") == whole[step:]


@pytest.mark.parametrize("fit_mode", ["crop", "full"])
def test_batches_that_need_two_images_get_them_or_are_refused(config: Load, tmp_path: Path, fit_mode: str) -> None:
    cfg = config("digits", batch_size=3, fit=fit_mode, split={"val": 0.82})
    data = data_module(cfg, tmp_path)
    assert len(data.sets.train) == 55
    data.pairs = {20}
    assert all(len(items) > 1 for items in data.train_batches(world=27))
    with pytest.raises(UserError, match=r"55 training image\(s\) .* 28 process.*trainer\.devices"):
        data.train_batches(world=28)


@pytest.mark.parametrize(("world", "batch_size", "stretched"), [(1, 8, 0), (1, 9, 2), (2, 8, 4)])
def test_rare_shapes_are_stretched_in_training_only_and_counted(
    config: Load, paint: Callable[..., None], tmp_path: Path, capsys: Any, world: int, batch_size: int, stretched: int
) -> None:
    """Too rare: less than a quarter of a batch per rank. No shape is near the panorama, which joins only if it must."""
    shapes = [(40, 40)] * 20 + [(45, 40)] * 2 + [(40, 45)] * 3 + [(120, 40)]
    for number, (width, height) in enumerate(shapes):
        for part, name in (("train", "a"), ("train", "b"), ("val", "a"), ("test", "a")):
            if part != "train" or (number % 2 == 0) == (name == "a"):
                paint(tmp_path / "set" / part / name / f"{number}.png", width, height, number)
    cfg = config("folder", root=str(tmp_path / "set"), fit="full", batch_size=batch_size)
    data = data_module(cfg, tmp_path / "cache")
    data.notice_stretched(world)
    output = capsys.readouterr().err
    assert (f"sppnet: data.fit=full: {stretched} of 26 training images" in output) == bool(stretched)
    assert output.count("\n") == bool(stretched)
    buckets = {bucket.aspect: len(bucket.members) for bucket in data.train_batches(world=world).buckets}
    assert buckets.pop(3.0, world) == 1 or world == 2
    assert sum(buckets.values()) >= 25
    val_shapes = [item.shapes[0] for items in data.val_dataloader()[0].batch_sampler for item in items]  # type: ignore
    assert {(24, 24), (24, 27), (27, 24), (24, 72)} == set(val_shapes)
