"""The keys that earlier layouts of the configuration had, and what they are called now."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sppnet.config.keys import key_named, value_of
from sppnet.config.schema import Config, Section
from sppnet.errors import UserError

RENAMED = {  # keys of layout 1, and what they are called now
    "trainer.threads": "compute.num_threads",
    "trainer.compile": "compute.compile",
    "trainer.channels_last": "compute.channels_last",
    "trainer.checkpoint_every_n_steps": "checkpointing.every_n_steps",
    "trainer.ema": "optim.ema",
    "trainer.progress": "progress",
    "trainer.gradient_clip": "trainer.gradient_clip_val",
    "trainer.accumulate": "trainer.accumulate_grad_batches",
    "trainer.limit_batches": "trainer.limit_train_batches, trainer.limit_val_batches and trainer.limit_test_batches",
    "head.bins": "pooling.bins",
    "head.pool": "pooling.pool",
    "head.rule": "pooling.rule",
    "head.kernel": "pooling.kernel",
    "head.pool_to": "pooling.output_size",
    "data.flip": "augment.flip",
    "data.color": "augment.color",
    "data.workers": "data.num_workers",
    "data.crop.kind": "data/crop=paper or data/crop=random_resized",
    "data.crop.ratio": "data.crop_pct (data.crop.ratio is a key of data/crop=random_resized now)",
    "data.crop.aspect": "data.crop.ratio (with data/crop=random_resized)",
    "optim.schedule.kind": "optim/schedule=cosine, plateau or constant",
    "loss.kind": "loss=auto, cross_entropy or bce",
    "views.of": "views.base_size",
    "views.ratio": "views.crop_pct",
}
RENAMED_OPTIONS = {f"head={name}": f"pooling={name}" for name in ("spp", "gap", "flatten")}


def new_name(schema: type[Section], name: str) -> str:
    """The new name of an old key; "" if there was no such key or `schema` lacks the new one."""
    new = RENAMED.get(name, "")
    return "" if key_named(Config, new) and not key_named(schema, new) else new


def refuse_old_names(schema: type[Section], data: Mapping[str, Any]) -> None:
    """Refuse an old name in a section that takes any key, because its class does. `schema` refuses the others.

    Raises:
        UserError: `data` have a key with an old name.
    """
    for old in RENAMED:
        section = old.rpartition(".")[0]
        own_class = not str(value_of(data, f"{section}._target_") or "sppnet.").startswith("sppnet.")
        known = key_named(schema, old) is not None or own_class  # the arguments of one's own class may have any name
        if not known and value_of(data, old) is not None and (new := new_name(schema, old)):
            raise UserError(f"unknown key {old}; it is now called {new}")
