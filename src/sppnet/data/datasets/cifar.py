"""CIFAR-10, read by torchvision, which verifies the MD5 sums of the files before it unpickles them."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from sppnet.data.datasets.base import ImageSet, digest
from sppnet.data.datasets.file_digests import digest_files
from sppnet.data.datasets.image_files import download_hint
from sppnet.data.datasets.listing import check_root, stat_file
from sppnet.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

TRAIN, TEST = 50_000, 10_000


class Cifar10(ImageSet):
    """60,000 images of 32 x 32 pixels in ten classes, with the official train and test parts."""

    classes = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    _cache_and_progress: tuple[Path | None, str] = None, "none"

    def __init__(self, root: str | None) -> None:
        self.root = check_root(root, download_hint("CIFAR10", root or ""))
        self.folder = self.root / "cifar-10-batches-py"
        if not self.folder.is_dir():
            hint = download_hint("CIFAR10", str(root))
            raise UserError(f"data.root={root} has no folder {self.folder.name}/. {hint}")

    @cached_property
    def _arrays(self) -> tuple[npt.NDArray[np.uint8], list[int]]:
        """Pixels (60000, 32, 32, 3) and labels. Loading them imports torch, so it is deferred to the first use."""
        import numpy as np
        from torchvision.datasets import CIFAR10

        try:
            train, test = (CIFAR10(self.root, train=is_train, download=False) for is_train in (True, False))
        except RuntimeError:
            hint = download_hint("CIFAR10", str(self.root))
            raise UserError(f"{self.folder} is not a complete copy of CIFAR-10. {hint}") from None
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
        """The part and the image's position in it, such as test/17."""
        return f"train/{index}" if index < TRAIN else f"test/{index - TRAIN}"

    def split(self) -> dict[str, range]:
        return {"train": range(TRAIN), "test": range(TRAIN, TRAIN + TEST)}

    def fingerprint(self) -> str:
        """Digest of the names and contents of the unpacked files whose names contain `batch`."""
        return self._fingerprint

    def keep_in(self, cache: Path, progress: str) -> None:
        self._cache_and_progress = cache, progress

    @cached_property
    def _fingerprint(self) -> str:
        files = [stat_file(path, self.root) for path in sorted(self.folder.glob("*batch*"))]
        digests = digest_files(self.root, files, *self._cache_and_progress)
        return digest(f"{file.name}\0{row.tobytes().hex()}" for file, row in zip(files, digests, strict=True))
