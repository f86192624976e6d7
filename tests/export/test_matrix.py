"""Exported networks, run by ONNX Runtime in a process without torch, at thirty shapes and more."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from sppnet.config.compose import compose_config
from sppnet.errors import UserError
from sppnet.export.deployed import Deployed
from sppnet.export.graph import check_sides
from sppnet.export.onnx_file import build_onnx
from sppnet.export.shapes import Sides, draw_shapes, fixed_shapes
from sppnet.models.network import build_network
from tiers import some_quick

# expansion, channels, repeats and stride of inverted residuals: some of each kind
BLOCKS = "+backbone.inverted_residual_setting=[[1,16,1,1],[6,24,2,2],[6,32,1,2],[6,64,2,2]]"
# Narrow where the architecture lets one choose; with the sides of the images.
BACKBONES = {
    "tiny": (["backbone.width=8"], [48, 40]),
    "blog": ([], [40, 32]),
    "zf5": ([], [64, 48]),
    "convnet5": ([], [64, 48]),
    "overfeat5": ([], [64, 72]),
    "resnet18": ([], [64, 48]),
    "mobilenet_v2": (["+backbone.width_mult=0.25", BLOCKS], [64, 48]),
    "swin_t": ([], [64]),
    "resnet10t": ([], [64, 48]),
    "convnext_atto": ([], [64, 48]),
}
POOLINGS = {
    **{f"spp {pool}": ["pooling=spp", f"pooling.pool={pool}"] for pool in ("max", "avg", "gem")},
    **{"gap": ["pooling=gap"], "gem": ["pooling=gem"], "flatten": ["pooling=flatten", "pooling.output_size=2"]},
}
PYRAMIDS = ("[6,3,2,1]", "[4,1]", "[3,2]")
SCRIPT = """
import sys
sys.modules["torch"] = None  # an import of it would fail
import numpy as np, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
images = np.load(sys.argv[2])
np.savez(sys.argv[3], **{name: session.run(None, {"images": images[name]})[0] for name in images.files})
"""


def groups(name: str) -> list[str]:
    """The overrides that choose a backbone."""
    group = {"swin_t": "torchvision", "resnet10t": "timm", "convnext_atto": "timm"}.get(name, name)
    return [f"backbone={group}", *([f"backbone.name={name}"] if group != name else []), *BACKBONES[name][0]]


def cases() -> list[tuple[str, str, str, bool]]:
    """Every backbone with every pooling; the pyramids and `preprocess` take turns, so that all pairs occur."""
    pairs = itertools.product(BACKBONES, POOLINGS)
    return [
        (backbone, pooling, PYRAMIDS[(number + number // 6) % 3], bool((number + number // 3) % 2))
        for number, (backbone, pooling) in enumerate(pairs)
    ]


@pytest.mark.parametrize(("backbone", "pooling", "pyramid", "preprocess"), some_quick(cases(), every=60))
def test_onnx_equals_the_network_in_a_process_without_torch(
    backbone: str, pooling: str, pyramid: str, preprocess: bool, tmp_path: Path
) -> None:
    sizes = BACKBONES[backbone][1]
    bins = [f"pyramid.bins={pyramid}"] if pooling.startswith("spp") else []
    side = [f"sizes.train=[{sizes[0]}]", f"sizes.test=[{sizes[0]}]", "sizes=single"]
    cfg = compose_config([*groups(backbone), *POOLINGS[pooling], *bins, *side, "head=linear"])
    torch.manual_seed(0)
    network = build_network(cfg.backbone, cfg.pooling, cfg.head, 7, sizes[0])
    fixed = None
    if backbone == "swin_t" or pooling == "flatten":
        with pytest.raises(UserError, match=f"images of one size; size={sizes[0]} exports"):
            check_sides(cfg, network, sizes[0])
        fixed = sizes[0]
    else:
        check_sides(cfg, network, sizes[0])
    if backbone == "swin_t" and pooling != "spp max":
        return  # it is refused, and takes half a minute for a fixed size
    metadata = {"activation": "softmax", "mean": [0.5] * 3, "std": [0.25] * 3, "origin": {"version": "1"}}
    deployed = Deployed(network, metadata, preprocess)
    if fixed:
        shapes, traced = fixed_shapes(deployed, fixed), (fixed, fixed)
    else:
        sides = Sides(deployed, sizes, 1)
        shapes, traced = list(draw_shapes(sides)), sides.example()
        assert sides.refused is None
    examples = [deployed.example(*shape, seed=number) for number, shape in enumerate(shapes)]
    assert fixed or len({example.shape for example in examples}) >= 30
    content = build_onnx(deployed, deployed.example(2, *traced), fixed is not None, metadata, "")
    (tmp_path / "network.onnx").write_bytes(content)
    np.savez(tmp_path / "images.npz", *(example.numpy() for example in examples))
    files = [str(tmp_path / name) for name in ("network.onnx", "images.npz", "outputs.npz")]
    subprocess.run([sys.executable, "-I", "-c", SCRIPT, *files], check=True)
    outputs = np.load(tmp_path / "outputs.npz")
    for number, example in enumerate(examples):
        with torch.inference_mode():
            expected = deployed(example).numpy()
        difference = np.abs(outputs[f"arr_{number}"] - expected).max() / np.abs(expected).max()
        assert difference <= 1e-4, f"{tuple(example.shape)}: {difference}"
