"""Backbones: modules that map images (N, 3, H, W) to a feature map (N, C, h, w).

Your own backbone can be any such `torch.nn.Module`; name it in `backbone._target_`. It need not be registered: its
channels, stride and smallest input are found by running it on the meta device.
"""

from sppnet.models.backbones.blog import Blog
from sppnet.models.backbones.paper import ZF5, Convnet5, Overfeat
from sppnet.models.backbones.timm import timm_trunk
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
    "timm_trunk",
    "torchvision_trunk",
]
