"""A callback that mixes each training batch again, from the seed of its number, and records what the step must be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback


class Remix(Callback):
    """Writes a line per batch to `mix-<rank>.jsonl` in the run directory. The weights must not change."""

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        pl_module.on_train_batch_start(batch, batch_idx)
        images, shares_NK = pl_module.mix(pl_module.prepare(batch), batch)
        logits, valid, target = pl_module(images), batch["valid"], batch["target"]
        best_N = shares_NK.amax(1)
        is_right = shares_NK.gather(1, logits.argmax(1)[:, None])[:, 0] == best_N
        line = {
            "size": batch["size"],
            "shares": sorted({round(share, 6) for share in shares_NK[valid].flatten().tolist()}),
            "loss": F.cross_entropy(logits, shares_NK, reduction="none")[valid].mean().item(),
            "right": int(is_right[valid].sum()),
            "right of own": int((logits.argmax(1) == target)[valid].sum()),
            "images": int(valid.sum()),
        }
        folder = Path(trainer.checkpoint_callback.folder).parent
        with (folder / f"mix-{trainer.global_rank}.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")


PLUG = ("allow=remix", "+callbacks.remix._target_=remix.Remix", "head.dropout=0", "optim.lr=1e-20")
