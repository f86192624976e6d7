"""Call `sppnet` as a user does, and read what it leaves behind."""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


def limits(batches: int | None) -> tuple[str, ...]:
    """Overrides that limit training, validation and test to a number of batches; None means no limit."""
    value = "null" if batches is None else batches
    return tuple(f"trainer.limit_{part}_batches={value}" for part in ("train", "val", "test"))


# A run of seconds: a narrow network, small images, few steps. A test adds its own overrides.
SMALL = (
    *("backbone.width=4", "head.hidden=[8]", "pyramid.bins=[2,1]", "sizes.train=[24,20]", "data.batch_size=32"),
    *("compute.num_threads=1", "trainer.max_epochs=2", *limits(4), "checkpointing.every_n_steps=3"),
    *("trainer.log_every_n_steps=1", "progress=none"),
)

OF_A_STUDY = (*SMALL, "trainer.max_epochs=1", *limits(2), "study=mine")  # each takes a second
SWEEP = ("train", "-m", *OF_A_STUDY, "pooling=spp,gap", "seed=0,1,2")


@dataclass(frozen=True)
class Called:
    """A finished call of `sppnet`."""

    code: int
    out: str
    err: str

    @property
    def run(self) -> Path:
        """The run directory that it printed."""
        lines = [line for line in self.out.splitlines() if line.startswith("run directory: ")]
        return Path(lines[-1].removeprefix("run directory: "))

    def figure(self, name: str) -> float:
        """The number printed after `name`."""
        words = self.out.split()
        return float(words[words.index(name) + 1])


Caller = Callable[..., Called]


def command(*words: str) -> list[str]:
    """The command line of `sppnet` in its own process."""
    return [sys.executable, "-P", "-m", "sppnet.cli", *words]


def records(run: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """The weights in a checkpoint."""
    state_dict: dict[str, torch.Tensor] = torch.load(checkpoint, weights_only=True)["state_dict"]
    return state_dict


def same_weights(a: Path, b: Path) -> bool:
    """Whether two checkpoints hold the same weights, to the bit."""
    first, second = weights(a), weights(b)
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def flip(path: Path) -> None:
    """Flip one bit of the largest tensor in a file written by `torch.save`, as a failing disk may."""
    largest = max(zipfile.ZipFile(path).infolist(), key=lambda record: record.file_size * ("/data/" in record.filename))
    content = bytearray(path.read_bytes())
    name, extra = (int.from_bytes(content[largest.header_offset + at :][:2], "little") for at in (26, 28))
    content[largest.header_offset + 30 + name + extra + largest.file_size // 2] ^= 4
    path.write_bytes(content)
