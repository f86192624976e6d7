"""The table of docs/timm.md: what becomes of networks of timm as trunks. Run as a script, this file writes it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sppnet.config.option_files import root
from sppnet.errors import UserError
from sppnet.models import timm_trunk
from sppnet.models.probe import on_meta, probe, smallest_input
from sppnet.models.receptive_field import receptive_field

QUICK = ("test_resnet", "test_mambaout", "test_vit")
NAMES = [  # small networks of each family
    "test_resnet", "resnet10t", "resnext26ts", "seresnet18", "resnest14d", "res2net50_14w_8s", "densenet121",
    "vgg11", "inception_v3", "test_efficientnet", "tinynet_e", "mobilenetv2_035", "mobilenetv3_small_050",
    "mobilenetv4_conv_small_035", "mnasnet_small", "ghostnet_050", "rexnet_100", "tf_efficientnet_lite0",
    "regnetx_002", "regnety_002",
    "nfnet_f0", "convnext_atto", "convnextv2_atto", "test_mambaout", "poolformer_s12", "caformer_s18",
    "edgenext_xx_small", "mobilevit_xxs", "fastvit_t8", "repvgg_a0", "hrnet_w18_small", "dla46_c", "vovnet39a",
    "ese_vovnet19b_slim", "tresnet_m", "darknet17", "cspresnet50", "dpn48b", "focalnet_tiny_srf", "davit_tiny",
    "pvt_v2_b0", "twins_svt_small", "xcit_nano_12_p16_224", "swin_tiny_patch4_window7_224",
    "swinv2_tiny_window8_256", "maxvit_tiny_tf_224", "coatnet_nano_rw_224", "test_vit", "vit_tiny_patch16_224",
    "deit_tiny_patch16_224", "vit_small_patch14_dinov2", "eva02_tiny_patch14_224", "beit_base_patch16_224",
    "cait_xxs24_224", "levit_128s", "efficientformer_l1", "hiera_tiny_224", "nest_tiny", "crossvit_tiny_240",
    "mixer_s32_224", "mobilenetv5_base", "sequencer2d_s",
]  # fmt: skip
HEAD = """# Networks of timm

What becomes of a small network of each family with `backbone=timm backbone.name=NAME`. `smallest` is the side in pixels
of the smallest square image that gives a map. `views` says whether `views=ten` and the like can pool their views from
one map; otherwise, they need `views.source=image`. A name with `+backbone.KEY=VALUE` needs this argument to take images
of any size.

`uv run python tests/helpers/timm_table.py` writes this file. `uv run pytest -m slow tests/models/test_timm.py` compares
each row with what the installed version of timm does, and trains each network for two steps.

| name | channels | stride | smallest | views | verdict |
|---|---|---|---|---|---|
"""


def build(name: str) -> tuple[Any, dict[str, Any]]:
    """Build the trunk on the meta device, with the argument that the first refusal names, and return both."""
    with on_meta():
        try:
            return timm_trunk(name), {}
        except UserError as error:
            if not (named := re.findall(r"\+backbone\.(\w+)=(true|false)", str(error))):
                raise
        options = {key: value == "true" for key, value in named}
        return timm_trunk(name, **options), options


def row(name: str) -> str:
    """The line of the table about the network `name`."""
    try:
        trunk, options = build(name)
        facts = probe(trunk)
    except UserError as error:
        reason = str(error).removeprefix("backbone.name=").removeprefix(f"{name} ").removeprefix(f"{name}: ")
        return f"| {name} | | | | | refused: {re.sub('! Mismatching.*', ')', reason)} |"
    try:
        mixed_by = receptive_field(trunk).mixed_by
        views = f"no: {mixed_by}" if mixed_by else "yes"
    except UserError as error:
        views = f"no: {re.sub('^backbone: |, which rearranges.*|; use .*', '', str(error))}"
    needs = "".join(f" `+backbone.{key}={str(value).lower()}`" for key, value in options.items())
    size = smallest_input(trunk)
    return f"| {name}{needs} | {facts.out_channels} | {facts.stride} | {size} | {views} | trains |"


def path() -> Path:
    return root() / "docs" / "timm.md"


if __name__ == "__main__":
    path().write_text(HEAD + "\n".join(map(row, NAMES)) + "\n")
