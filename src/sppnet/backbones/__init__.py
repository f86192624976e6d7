"""Convolutional trunks: modules that map images (N, 3, H, W) to a feature map (N, C, h, w).

A backbone of your own is any `torch.nn.Module` of that kind, named by `backbone._target_`; its channels, stride and
smallest input are found by running it on shapes (`probe`), so there is nothing to register.
"""

from sppnet.backbones.blog import Blog
from sppnet.backbones.paper import ZF5, Convnet5, Overfeat
from sppnet.backbones.probe import Trunk, map_size, probe, smallest_input
from sppnet.backbones.tiny import Tiny
from sppnet.backbones.torchvision import torchvision_trunk

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
