"""Data sets, and batches of images of any size. All images in a batch have the same shape.

Importing `sppnet.data` does not import torch.

The path of an image from its file to the network:

1. `datasets/`: a data set lists its files and labels (`ImageSet`; `build.py` builds it from the config). `splits.py`
   divides it into train, val and test parts; `group_splits.py` keeps groups whole. `duplicates.py` reports identical
   files in different parts or classes.
2. `size_schedules.py` chooses the input size of each batch. `aspect_buckets.py` groups images that can share a batch,
   using the heights and widths that `image_shapes.py` caches.
3. `batch_samplers.py` chooses the images and the shape of each batch on every rank; `balanced_sampling.py` draws as
   many images of each class.
4. `crops.py` chooses the region of each image that becomes the network's input. For multi-view testing, `views.py`
   lists the scales and windows to score.
5. `decode.py` decodes a file to RGB pixels, with the help of `jpeg.py`, `png.py` and `orientation.py`. A JPEG can be
   decoded at a reduced size that is enough for the region (`decoded.py`).
6. `readers.py` resizes the region into the batch tensor. `image_cache.py` caches images that are resized in advance.
7. `augmentation.py` transforms the regions of training images, with generators that `seeding.py` seeds.
8. `loader.py` runs steps 4 to 7 in worker processes and collates the results into a `Batch`. `datamodule.py` builds
   the loaders for Lightning.

`relabelling.py` selects the images that a trained network is tested on. If they come from a data set that the network
was not trained on, it maps their labels to the network's classes.

Configs refer to the classes of this package by their public names (`sppnet.data.Folder`), not by their modules.
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
from sppnet.data.datasets.table import Table
from sppnet.data.decode import DataError
from sppnet.data.relabelling import load_tested
from sppnet.data.size_schedules import Alternating, EpochSchedule, Progressive, Single, SizeSchedule, Uniform, Weighted

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
    "Progressive",
    "Single",
    "SizeSchedule",
    "Splits",
    "Table",
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
