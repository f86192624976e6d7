"""Networks: a backbone that maps images to a feature map, and a head that pools it and classifies.

- `backbones/`: the backbones. Configurations name them by the public names below (`backbone._target_`).
- `heads.py`: pooling (pyramid, fixed grid or global average) and the fully connected layers.
- `network.py`: `SPPNet`, which joins the two, and the functions that build them from a configuration.
- `normalise.py`: 8-bit images to normalised floats.
- `pretrained.py`: weights of a backbone from a file or by torchvision's name.
- `probe.py`: channels, stride and map sizes of a backbone; `receptive_field.py`: where its cells lie on the image.
- `fit_check.py`: whether backbone, head and input sizes fit together.
"""

from sppnet.models.backbones import ZF5, Blog, Convnet5, Overfeat, Tiny, torchvision_trunk

__all__ = ["ZF5", "Blog", "Convnet5", "Overfeat", "Tiny", "torchvision_trunk"]
