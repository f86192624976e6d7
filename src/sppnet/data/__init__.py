"""Images of any size in batches of one size each. What is imported here needs no torch.

Configurations name the classes of this package by these public names (`sppnet.data.Folder`), never by their files.
"""

from sppnet.data.build import Splits, build_images, build_sizes, fingerprint, images_of, load_splits
from sppnet.data.datasets.base import ImageSet
from sppnet.data.datasets.cifar import Cifar10
from sppnet.data.datasets.digits import Digits
from sppnet.data.datasets.image_files import (
    Caltech101,
    Files,
    Flowers102,
    Folder,
    ImageNet,
    Imagenette,
    OxfordPets,
    Voc2007,
)
from sppnet.data.decode import DataError
from sppnet.data.relabelling import load_tested
from sppnet.data.size_schedules import Alternating, EpochSchedule, Single, SizeSchedule, Uniform, Weighted

__all__ = [
    "Alternating",
    "Caltech101",
    "Cifar10",
    "DataError",
    "Digits",
    "EpochSchedule",
    "Files",
    "Flowers102",
    "Folder",
    "ImageNet",
    "ImageSet",
    "Imagenette",
    "OxfordPets",
    "Single",
    "SizeSchedule",
    "Splits",
    "Uniform",
    "Voc2007",
    "Weighted",
    "build_images",
    "build_sizes",
    "fingerprint",
    "images_of",
    "load_splits",
    "load_tested",
]
