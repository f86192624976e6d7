"""The public names of the networks: what `backbone._target_` of a configuration names."""

from sppnet.models.backbones import ZF5, Blog, Convnet5, Overfeat, Tiny, torchvision_trunk

__all__ = ["ZF5", "Blog", "Convnet5", "Overfeat", "Tiny", "torchvision_trunk"]
