"""Times exported networks in ONNX Runtime against PyTorch, eager and compiled, on the CPU (group `export`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from sppnet import __version__
from sppnet.benchmarks.measurement import Row, Setting, Timing, compare, geometric_mean
from sppnet.config.compose import compose_config
from sppnet.config.schema import Config
from sppnet.errors import notice
from sppnet.export.deployed import Deployed
from sppnet.models.network import build_network
from sppnet.runs.onnx_checkpoint import RUNS_ONNX, missing_packages, open_session

BATCH, CLASSES = 4, 20
NETWORKS = {  # name: overrides, and the sides of the images
    "the default network": ((), (40, 48, 64)),
    "alexnet": (("backbone=alexnet", "sizes.train=[224,180]"), (180, 224, 288)),
}
QUICK = {"tiny": (("backbone.width=4", "head.hidden=[8]"), (32, 40, 48))}
TARGETS = {"eager PyTorch": 1.0, "compiled PyTorch": 0.8}
Forward = Callable[[Tensor], object]


def measure(setting: Setting) -> Iterator[Row]:
    """Yield the rows of the group `export`. Without the extra `export`, there are none."""
    if missing := missing_packages((*RUNS_ONNX, "onnxscript")):
        notice(f"bench: the group export needs {', '.join(missing)} (uv sync --extra export) and is skipped")
        return
    for name, (overrides, sides) in (QUICK if setting.quick else NETWORKS).items():
        cfg = compose_config(list(overrides))
        deployed, metadata = _deploy(cfg)
        run = _build_session(deployed, metadata, cfg, setting.threads)
        torch.compiler.reset()
        alternatives: tuple[Forward, ...] = (deployed, torch.compile(deployed, dynamic=True))
        for (against, target), alternative in zip(TARGETS.items(), alternatives, strict=True):
            times = [_compare(run, alternative, deployed, side, setting.quick) for side in sides]
            yield _row(f"onnxruntime, {name}, {BATCH} images, forward, geometric mean", against, sides, times, target)
    torch.compiler.reset()


def _deploy(cfg: Config) -> tuple[Deployed, dict[str, object]]:
    torch.manual_seed(0)
    network = build_network(cfg.backbone, cfg.pooling, cfg.head, CLASSES, cfg.sizes.train[0])
    metadata: dict[str, object] = {"mean": cfg.data.mean, "std": cfg.data.std, "activation": "softmax"}
    return Deployed(network, metadata, preprocess=True), metadata | {"origin": {"version": __version__}}


def _build_session(deployed: Deployed, metadata: dict[str, object], cfg: Config, threads: int) -> Forward:
    """Export the network for images of any size, and return a function that runs it in ONNX Runtime."""
    from sppnet.export.onnx_file import build_onnx  # of an extra

    side = cfg.sizes.train[0]
    content = build_onnx(deployed, deployed.example(2, side, side + side // 3), False, metadata, "")
    # its threads would otherwise keep the cores busy while PyTorch has its turn
    session = open_session(content, threads, spin=False)
    return lambda images: session.run(None, {"images": images.numpy()})


def _compare(run: Forward, alternative: Forward, deployed: Deployed, side: int, quick: bool) -> Timing:
    images = deployed.example(BATCH, side, side)
    with torch.inference_mode():
        return compare(lambda: run(images), lambda: alternative(images), 0.1 if quick else 3.0)


def _row(what: str, against: str, sides: tuple[int, ...], times: list[Timing], target: float) -> Row:
    ratios = [time.ratio for time in times]
    return Row(
        "export",
        what,
        against,
        geometric_mean([time.ours for time in times]),
        geometric_mean([time.theirs for time in times]),
        geometric_mean(ratios),
        target,
        limit=", ".join(f"{ratio:.2f}x at {side}" for side, ratio in zip(sides, ratios, strict=True)),
        detail={str(side): round(ratio, 3) for side, ratio in zip(sides, ratios, strict=True)},
    )
