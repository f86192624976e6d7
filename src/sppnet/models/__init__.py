"""Networks: a backbone that maps images to a feature map, pooling, and a head of fully connected layers.

- `backbones/`: the backbones. A configuration names one in `backbone._target_`, such as `sppnet.models.Tiny`.
- `pooling.py`: the pooling of maps to vectors (pyramid, fixed grid, global), and of windows of maps.
- `heads.py`: the fully connected layers.
- `network.py`: `SPPNet`, which joins these parts, and the functions that build it from its configuration.
- `freezing.py`: the parts of a backbone that `backbone.freeze` names.
- `normalise.py`: conversion of 8-bit images to normalised floats.
- `pretrained.py`: a backbone's weights, from a file or by a name of torchvision or timm.
- `hub.py`: downloads timm's weights.
- `probe.py`: a backbone's channels, stride and map sizes.
- `receptive_field.py`: the positions of a feature map's cells on the image.
- `fit_check.py`: checks that backbone, pooling, head and input sizes fit together.
"""

from sppnet.models.backbones import ZF5, Blog, Convnet5, Overfeat, Tiny, timm_trunk, torchvision_trunk

__all__ = ["ZF5", "Blog", "Convnet5", "Overfeat", "Tiny", "timm_trunk", "torchvision_trunk"]
