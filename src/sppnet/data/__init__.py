"""Images of any size in batches of one size each. What is imported here needs no torch."""

from sppnet.data.build import Sets, build_images, build_sizes, fingerprint, load_sets
from sppnet.data.decode import DataError
from sppnet.data.images import ImageSet
from sppnet.data.sizes import EpochSchedule, SizeSchedule

__all__ = [
    "DataError",
    "EpochSchedule",
    "ImageSet",
    "Sets",
    "SizeSchedule",
    "build_images",
    "build_sizes",
    "fingerprint",
    "load_sets",
]
