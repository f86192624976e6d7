"""CIFAR-10, through torchvision, which checks the archive's files before it unpickles them."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from sppnet.data.datasets.base import ImageSet, digest
from sppnet.data.datasets.file_digests import digests_of
from sppnet.data.datasets.image_files import get_it
from sppnet.data.datasets.listing import checked_root, look_at
from sppnet.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

TRAIN, TEST = 50_000, 10_000


class Cifar10(ImageSet):
    """60,000 pictures of 32 x 32 in ten classes, with the set's own train and test parts."""

    classes = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    _kept_in: tuple[Path | None, str] = None, "none"

    def __init__(self, root: str | None) -> None:
        self.root = checked_root(root, get_it("CIFAR10", root or ""))
        self.folder = self.root / "cifar-10-batches-py"
        if not self.folder.is_dir():
            raise UserError(f"data.root={root} has no folder {self.folder.name}/. {get_it('CIFAR10', str(root))}")

    @cached_property
    def _arrays(self) -> tuple[npt.NDArray[np.uint8], list[int]]:
        """Pixels (60000, 32, 32, 3) and labels; read at the first use, which comes after torch is imported."""
        import numpy as np
        from torchvision.datasets import CIFAR10

        try:
            train, test = (CIFAR10(self.root, train=part, download=False) for part in (True, False))
        except RuntimeError:
            raise UserError(
                f"{self.folder} is not the whole of CIFAR-10. {get_it('CIFAR10', str(self.root))}"
            ) from None
        return np.concatenate([train.data, test.data]), [*train.targets, *test.targets]

    def __len__(self) -> int:
        return TRAIN + TEST

    def label(self, index: int) -> int:
        return self._arrays[1][index]

    def read(self, index: int) -> Image.Image:
        return Image.fromarray(self._arrays[0][index])

    def shape(self, index: int) -> tuple[int, int]:
        del index
        return 32, 32

    def name(self, index: int) -> str:
        """Part and position, such as test/17."""
        return f"train/{index}" if index < TRAIN else f"test/{index - TRAIN}"

    def split(self) -> dict[str, range]:
        return {"train": range(TRAIN), "test": range(TRAIN, TRAIN + TEST)}

    def fingerprint(self) -> str:
        """Digest of the names and contents of the archive's files."""
        return self._fingerprint

    def keep_in(self, cache: Path, progress: str) -> None:
        self._kept_in = cache, progress

    @cached_property
    def _fingerprint(self) -> str:
        archive = [look_at(path, self.root) for path in sorted(self.folder.glob("*batch*"))]
        contents = digests_of(self.root, archive, *self._kept_in)
        return digest(
            f"{file.name}\0{content.tobytes().hex()}" for file, content in zip(archive, contents, strict=True)
        )
