"""Networks with a spatial pyramid pooling head: one vector from an image of any size (He et al., 2014)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sppnet.export.from_pretrained import from_pretrained as from_pretrained
    from sppnet.pyramid import SpatialPyramidPool2d as SpatialPyramidPool2d
    from sppnet.pyramid import pool_windows as pool_windows
    from sppnet.pyramid import spatial_pyramid_pool2d as spatial_pyramid_pool2d

__version__ = "0.1.0"
__all__ = ["SpatialPyramidPool2d", "__version__", "from_pretrained", "pool_windows", "spatial_pyramid_pool2d"]


def __getattr__(name: str) -> Any:
    """Import what needs torch on first use, so that the command line starts without importing torch."""
    if name in {"SpatialPyramidPool2d", "pool_windows", "spatial_pyramid_pool2d"}:
        return getattr(import_module("sppnet.pyramid"), name)
    if name == "from_pretrained":
        return import_module("sppnet.export.from_pretrained").from_pretrained
    raise AttributeError(f"module 'sppnet' has no attribute {name!r}")
