"""Data sets of image files: class folders, and standard data sets in the layout of their unpacked archives.

Nothing is downloaded; if a data set is missing, the error message says how to get it. Classes, labels and parts come
only from file names and small annotation files, and torch is not imported. Pixels are read when a batch needs them.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import ClassVar, TypeGuard
from xml.etree import ElementTree

from PIL import Image

from sppnet.data.datasets.base import ImageSet, Label, describe_groups, digest
from sppnet.data.datasets.class_folders import list_class_folders, list_parts, list_tree
from sppnet.data.datasets.digest_cache import Digests
from sppnet.data.datasets.file_digests import digest_files
from sppnet.data.datasets.listing import Listing, check_root, stat_file
from sppnet.data.decode import decode, read_shape
from sppnet.errors import UserError

VOC_CLASSES = [
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
]  # fmt: skip


def download_hint(name: str, root: str, arguments: str = "") -> str:
    """How to download one of torchvision's data sets; used in error messages."""
    call = f"torchvision.datasets.{name}({root or 'FOLDER'!r}, {arguments}download=True)"
    return f'To get the data, run python -c "import torchvision; {call}", then give data.root={root or "FOLDER"}'


class Files(ImageSet):
    """An `ImageSet` of the files in a `Listing`: the base class for data sets of image files."""

    _cache_and_progress: tuple[Path | None, str] = None, "none"

    def __init__(self, listing: Listing) -> None:
        self.classes = listing.classes
        self.listing = listing

    def __len__(self) -> int:
        return len(self.listing.files)

    def label(self, index: int) -> Label:  # noqa: D102
        return self.listing.labels[index]

    def name(self, index: int) -> str:
        """The file's path relative to the root."""
        return self.listing.files[index].name

    def path(self, index: int) -> Path:
        """The path of the image file, including the root."""
        return self.listing.root / self.name(index)

    def read(self, index: int) -> Image.Image:  # noqa: D102
        return decode(self.path(index))

    def shape(self, index: int) -> tuple[int, int]:
        """(height, width) in pixels, from the file's header."""
        return read_shape(self.path(index))

    def split(self) -> dict[str, list[int]] | None:  # noqa: D102
        return self.listing.parts

    def groups(self) -> list[int] | None:  # noqa: D102
        return self.listing.groups

    def untrainable(self) -> str:  # noqa: D102
        return self.listing.untrainable

    def notices(self) -> list[str]:  # noqa: D102
        return self.listing.notices

    def keep_in(self, cache: Path, progress: str) -> None:  # noqa: D102
        self._cache_and_progress = cache, progress

    @cached_property
    def digests(self) -> Digests:
        """uint8 (N, 16): the content digest of each file (see `file_digests`); zeros for a file that cannot be read."""
        return digest_files(self.listing.root, self.listing.files, *self._cache_and_progress)

    def fingerprint(self) -> str:
        """Digest of the classes, parts, labels, groups, file names and contents, as they were at the first call."""
        labels = map(str, self.listing.labels)
        return digest([*self.classes, str(self.listing.parts), *labels, self._content, *describe_groups(self)])

    def state(self) -> str:
        """Digest of the file names, contents and mtimes.

        The mtimes are needed because the content digest of a large file may cover only four blocks.
        """
        return digest([self._content, *(str(file.mtime) for file in self.listing.files)])

    @cached_property
    def _content(self) -> str:
        files = self.listing.files
        lengths = " ".join(str(file.bytes) for file in files)
        return digest(["\0".join(file.name for file in files), lengths, self.digests.tobytes().hex()])


def decodes_files(images: ImageSet) -> TypeGuard[Files]:
    """Whether `images.read` is that of `Files`, which returns the pixels of a file as they are."""
    return isinstance(images, Files) and type(images).read is Files.read


class Folder(Files):
    """Class folders: ROOT/CLASS/IMAGE, or ROOT/train/CLASS/IMAGE with test/ or val/ (or both) beside train/.

    Parts are recognised by their usual names, in upper or lower case: train or training; val, valid or validation; test
    or testing. A class must not have one of these names. Without test/, the images of val/ are the test part, and a
    share of train/ is used for validation. A data set that is only used for testing needs no train/.

    CLASS may contain nested folders, but two classes must not contain folders with the same name, except for
    images/ and similar names. Hidden files, and those that cameras, NAS devices and desktops leave behind (see
    `file_names`), are ignored. A notice counts all other files that are not images. The fingerprint covers the names of
    folders and files, so after renaming one of them, the data set counts as a different one.
    """

    def __init__(self, root: str | None) -> None:
        hint = "It must hold one folder per class, or train/ with test/ or val/, each with one folder per class."
        super().__init__(list_class_folders(check_root(root, hint)))


class ImageNet(Files):
    """ILSVRC 2012 as folders: ROOT/train/WNID/IMAGE and ROOT/val/WNID/IMAGE.

    The 50,000 images of val/ are the test part, as in the paper's tables. Validation images come from train/
    (`data.split.val`), so that the best checkpoint is not selected on the images that its results are reported on.
    """

    def __init__(self, root: str | None) -> None:
        base = check_root(root, "It must hold train/WNID/*.JPEG and val/WNID/*.JPEG of ILSVRC 2012.")
        super().__init__(list_parts(base, base, {"train": "train", "test": "val"}))


class Imagenette(Files):
    """Ten easy classes of ImageNet, as torchvision unpacks them: ROOT/`folder`/train and ROOT/`folder`/val.

    val/ is the test part, as for `ImageNet`. `folder` is imagenette2, imagenette2-320 or imagenette2-160.
    """

    def __init__(self, root: str | None, folder: str = "imagenette2") -> None:
        base = check_root(root, download_hint("Imagenette", root or ""))
        if not (base / folder).is_dir():
            raise UserError(f"data.root={root} has no folder {folder}/. {download_hint('Imagenette', str(root))}")
        super().__init__(list_parts(base / folder, base / folder, {"train": "train", "test": "val"}))


class Caltech101(Files):
    """Caltech-101 with 9,144 images; ROOT is 101_ObjectCategories or its parent folder.

    With the background class there are 102 classes, as in the paper's table 7; `background=False` drops that class.
    """

    def __init__(self, root: str | None, background: bool = True) -> None:
        folder = check_root(root, "It must hold Caltech-101's folder 101_ObjectCategories.")
        inside = folder / "101_ObjectCategories"
        base = inside if inside.is_dir() else folder
        super().__init__(list_tree(base, base, drop=() if background else ("BACKGROUND_Google",)))


class OxfordPets(Files):
    """Oxford-IIIT Pet as torchvision unpacks it: 37 breeds, with the official trainval and test parts."""

    def __init__(self, root: str | None) -> None:
        hint = download_hint("OxfordIIITPet", root or "")
        base = _require(check_root(root, hint) / "oxford-iiit-pet", ("annotations/test.txt",), hint)
        breeds: dict[int, str] = {}
        listing = Listing(base, [])
        for part, source in {"train": "trainval", "test": "test"}.items():
            for line in (base / "annotations" / f"{source}.txt").read_text().splitlines():
                name, label, *_ = line.split()
                breeds[int(label) - 1] = name.rsplit("_", 1)[0].replace("_", " ").title()
                listing.add(stat_file(base / "images" / f"{name}.jpg", base), int(label) - 1, part)
        listing.classes = [breeds[label] for label in sorted(breeds)]
        super().__init__(listing)


class Voc2007(Files):
    """PASCAL VOC 2007 classification: 20 classes, any number of them per image, official trainval and test parts.

    An image has a class if its annotation lists an object of that class that is not marked difficult. Classes whose
    objects are all marked difficult are returned by `difficult`. When a network is trained or tested, these classes
    count as negative.
    """

    multilabel = True

    def __init__(self, root: str | None) -> None:
        hint = download_hint("VOCDetection", root or "", "year='2007', image_set='trainval', ")
        hint += ". Run the command with image_set='test' too"
        folder = check_root(root, hint) / "VOCdevkit" / "VOC2007"
        base = _require(folder, ("ImageSets/Main/trainval.txt", "ImageSets/Main/test.txt"), hint)
        listing = Listing(base, VOC_CLASSES)
        self._difficult: list[tuple[int, ...]] = []
        for part, source in {"train": "trainval", "test": "test"}.items():
            for name in (base / "ImageSets" / "Main" / f"{source}.txt").read_text().split():
                label, difficult = self._read_annotation(base / "Annotations" / f"{name}.xml")
                listing.add(stat_file(base / "JPEGImages" / f"{name}.jpg", base), label, part)
                self._difficult.append(difficult)
        super().__init__(listing)

    def difficult(self, index: int) -> tuple[int, ...]:
        """The classes whose objects in the image are all marked difficult."""
        return self._difficult[index]

    @staticmethod
    def _read_annotation(path: Path) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The classes of an image, and the classes whose objects in it are all marked difficult."""
        try:
            objects = ElementTree.parse(path).findall("object")
        except (OSError, ElementTree.ParseError) as error:
            raise UserError(f"data: {path} cannot be read as an annotation ({error})") from None
        present = {o.findtext("name", "").strip() for o in objects}
        clear = {o.findtext("name", "").strip() for o in objects if o.findtext("difficult", "0").strip() != "1"}
        if unknown := sorted(present.difference(VOC_CLASSES)):
            raise UserError(f"data: {path} lists an object called {unknown[0]!r}, which is not a class of VOC 2007")
        labels, difficult = (
            tuple(label for label, name in enumerate(VOC_CLASSES) if name in names)
            for names in (clear, present - clear)
        )
        return labels, difficult


class Flowers102(Files):
    """Oxford 102 Flower as torchvision unpacks it, with the three official parts. Classes have numbers, not names."""

    PARTS: ClassVar = {"train": "trnid", "val": "valid", "test": "tstid"}

    def __init__(self, root: str | None) -> None:
        from scipy.io import loadmat  # type: ignore[import-untyped]

        hint = download_hint("Flowers102", root or "")
        base = _require(check_root(root, hint) / "flowers-102", ("imagelabels.mat", "setid.mat"), hint)
        labels = loadmat(base / "imagelabels.mat")["labels"].ravel().tolist()
        ids = loadmat(base / "setid.mat")
        listing = Listing(base, [f"{number:03d}" for number in range(1, max(labels) + 1)])
        for part, key in self.PARTS.items():
            for number in ids[key].ravel().tolist():
                file = stat_file(base / "jpg" / f"image_{number:05d}.jpg", base)
                listing.add(file, labels[number - 1] - 1, part)
        super().__init__(listing)


def _require(base: Path, names: tuple[str, ...], hint: str) -> Path:
    """Return `base` if it holds the files `names`; otherwise raise UserError."""
    for name in names:
        if not (base / name).exists():
            raise UserError(f"data.root: {base / name} does not exist. {hint}")
    return base
