"""Backbones: modules that map images (N, 3, H, W) to a feature map (N, C, h, w).

Your own backbone is any such `torch.nn.Module`, named by `backbone._target_`. `probe` finds its channels, stride and
smallest input by running it on the meta device, so there is nothing to register.
"""

from sppnet.models.backbones.blog import Blog
from sppnet.models.backbones.paper import ZF5, Convnet5, Overfeat
from sppnet.models.backbones.tiny import Tiny
from sppnet.models.backbones.torchvision import torchvision_trunk
from sppnet.models.probe import Trunk, map_size, probe, smallest_input

__all__ = [
    "ZF5",
    "Blog",
    "Convnet5",
    "Overfeat",
    "Tiny",
    "Trunk",
    "map_size",
    "probe",
    "smallest_input",
    "torchvision_trunk",
]
