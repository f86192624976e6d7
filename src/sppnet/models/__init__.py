"""Networks: a backbone that maps images to a feature map, and a head that pools the map and classifies the image.

- `backbones/`: the backbones. A configuration names one in `backbone._target_`, such as `sppnet.models.Tiny`.
- `heads.py`: pooling (pyramid, fixed grid or global average) and the fully connected layers.
- `network.py`: `SPPNet`, which joins backbone and head, and the functions that build them from a configuration.
- `normalise.py`: conversion of 8-bit images to normalised floats.
- `pretrained.py`: a backbone's weights, from a file or from torchvision.
- `probe.py`: a backbone's channels, stride and map sizes.
- `receptive_field.py`: the positions of a feature map's cells on the image.
- `fit_check.py`: checks that backbone, head and input sizes fit together.
"""

from sppnet.models.backbones import ZF5, Blog, Convnet5, Overfeat, Tiny, torchvision_trunk

__all__ = ["ZF5", "Blog", "Convnet5", "Overfeat", "Tiny", "torchvision_trunk"]
