"""Data sets, and batches of images of any size. All images of a batch have one shape. Importing this needs no torch.

The way of an image from its file to the network:

1. `datasets/`: a data set lists its files and labels (`ImageSet`; `build.py` builds it from the config). `splits.py`
   divides it into train, val and test parts; `duplicates.py` reports files that are in two of them.
2. `size_schedules.py` gives each batch its size. `aspect_buckets.py` groups images that can share a batch;
   `image_shapes.py` caches the heights and widths that it needs.
3. `batch_samplers.py` combines both: which images form each batch, at which shape, on every rank.
4. `crops.py` chooses the region of each image. For tests, `views.py` lists the scales and windows.
5. `decode.py`, with `jpeg.py`, `png.py` and `orientation.py`, decodes a file to RGB pixels.
6. `readers.py` resizes the region into the batch. `image_cache.py` caches images that are resized beforehand.
7. `loader.py` does steps 4 to 6 in worker processes and collates a `Batch`. `datamodule.py` makes the loaders for
   Lightning.

`relabelling.py` prepares another data set for testing a trained network: it maps the labels to the network's classes.

Configurations name the classes of this package by their public names (`sppnet.data.Folder`), never by their files.
"""

from sppnet.data.build import Splits, build_images, build_images_from_config, build_sizes, fingerprint, load_splits
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
    "build_images_from_config",
    "build_sizes",
    "fingerprint",
    "load_splits",
    "load_tested",
]
