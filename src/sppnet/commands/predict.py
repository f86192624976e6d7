"""`sppnet predict checkpoint=RUN_DIR_OR_FILE input=FILE_OR_FOLDER`: classify images of any size."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sppnet.commands import checkpoint_app
from sppnet.config import compose, schema
from sppnet.config.validators import FLAG, TEXT, either, or_null, whole
from sppnet.data.datasets.unlabelled import InputFiles, find_images
from sppnet.data.jpeg import notice_remarks
from sppnet.errors import RunFailed, UserError, notice
from sppnet.prediction.output import JsonLines, Table
from sppnet.prediction.output_paths import PlotPaths, build_plot_paths, check_output
from sppnet.progress import meter
from sppnet.runs.from_checkpoint import HARDWARE, TrainedNetwork
from sppnet.runs.plan import validate

if TYPE_CHECKING:
    from sppnet.prediction.plot_files import PlotWriter
    from sppnet.prediction.predictor import Predictor

OWN = {"input": TEXT, "output": or_null(TEXT), "top": whole(1), "draw": either(FLAG, TEXT)}
NOT_FOR_PREDICTION = {"trainer.limit_batches"}  # only for training and tests; prediction uses every image
LOADING = ("data.batch_size", "data.workers")
MAY_CHANGE = (
    *("views", "sizes.test", *LOADING, "debug", "force"),
    *(key for key in HARDWARE if key not in NOT_FOR_PREDICTION),
)


def main(words: Sequence[str]) -> None:
    checkpoint_app.run("predict", words, predict, tuple(OWN), MAY_CHANGE)


def predict(trained: TrainedNetwork) -> None:
    """Print the likeliest classes of every image, write them to `output` and save plots to `draw`.

    Raises:
        UserError: a value is not allowed; no file has been written.
        RunFailed: no image could be read.
    """
    own = schema.take_own_keys(trained.cfg, OWN)
    cfg = _prediction_config(trained.cfg, trained.typed_keys)
    validate(cfg)
    images = find_images(own["input"])
    plots = build_plot_paths(trained, cfg, own["draw"], images)
    check_output(own["output"], images, trained, plots, cfg["force"])
    from sppnet.training.preflight import check_job  # imports torch

    check_job(cfg)
    plot_writer = _build_plot_writer(cfg, plots) if plots else None
    # make SIGTERM raise KeyboardInterrupt, so that half-written files are removed
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with JsonLines(own["output"]) as lines:
        _predict(cfg, trained, images, own["top"], lines, plot_writer)
    if lines.path is not None:
        notice(f"predictions: {lines.path}")
    if plots is not None:
        notice(f"plots: {plots.place}")


def _predict(
    cfg: Mapping[str, Any],
    trained: TrainedNetwork,
    images: InputFiles,
    top: int,
    lines: JsonLines,
    plot_writer: PlotWriter | None,
) -> None:
    from sppnet.prediction.predictor import Predictor
    from sppnet.runs.from_checkpoint import read_checkpoint
    from sppnet.training.trainer import set_threads_and_filter_warnings  # imports Lightning

    if images.not_read:
        notice(images.not_read)
    set_threads_and_filter_warnings(cfg)
    predictor = Predictor(cfg, read_checkpoint(trained.weights), trained.weights, images)
    if plot_writer is not None:
        _check_pooling(cfg, predictor)
    table = Table([predictor.images.name(i) for i in range(len(predictor.images))], predictor.classes)
    failed = 0
    with meter("predict", cfg["trainer"]["progress"], len(images.names)) as tick:
        for prediction in predictor:
            if prediction.problem:
                failed += 1
                print(f"sppnet predict: {prediction.problem}; skipped", file=sys.stderr, flush=True)
            else:
                best = prediction.top(top)
                probabilities = [(predictor.classes[label], probability) for label, probability in best]
                lines.write(prediction.name, prediction.shape, probabilities)
                if not lines.instead_of_table:
                    table.write(prediction.name, prediction.shape, probabilities)
                if plot_writer is not None:
                    plot_writer.write(predictor, prediction, best, images.names[prediction.index])
            tick(1)
    notice_remarks(predictor.remarks)
    if failed == len(images.names):
        raise RunFailed(f"none of the {failed} images could be read" if failed > 1 else "the image could not be read")
    if failed:
        print(f"sppnet predict: {failed} of {len(images.names)} images could not be read", file=sys.stderr)


def _prediction_config(cfg: Mapping[str, Any], typed: Collection[str]) -> dict[str, Any]:
    """Return the configuration for prediction: one device, one size, and whole images unless `views` was typed."""
    sizes = cfg["sizes"]["test"]
    if "sizes.test" in typed and isinstance(sizes, list) and len(sizes) > 1:
        raise UserError(f"sizes.test={sizes} is not allowed: predict takes one size, such as [{sizes[0]}]")
    if isinstance(sizes, list):
        sizes = sizes[:1]
    views = cfg["views"]
    if not any(key.split(".")[0] == "views" for key in typed):
        head = cfg["head"]
        other_rule = head["name"] == "spp" and head.get("rule", "adaptive") != "adaptive"
        needs_square = head["name"] == "flatten" or other_rule
        views = compose.compose_config("predict", [f"views={'warp' if needs_square else 'full'}"])["views"]
    return {
        **cfg,
        "views": views,
        "sizes": {**cfg["sizes"], "test": sizes},
        "backbone": {**cfg["backbone"], "weights": None},  # all weights come from the checkpoint
        "trainer": {**cfg["trainer"], "devices": 1, "num_nodes": 1},
    }


def _build_plot_writer(cfg: Mapping[str, Any], plots: PlotPaths) -> PlotWriter:
    """Build the plot writer, which needs the backbone's receptive field.

    Raises:
        UserError: the receptive field is unknown, or the network sees several views of each image.
    """
    if cfg["views"]["fit"] == "windows":
        raise UserError(
            f"draw needs a single view of each image, but views={cfg['views']['name']} gives several; use views=full,"
            " center or warp"
        )
    from sppnet.models.network import build_backbone
    from sppnet.models.probe import on_meta
    from sppnet.models.receptive_field import receptive_field
    from sppnet.prediction.plot_files import PlotWriter  # imports Lightning

    try:
        with on_meta():
            field = receptive_field(build_backbone(cfg["backbone"]))
    except UserError as error:
        raise UserError(f"draw={plots.place}: {re.sub('; use .*', '', str(error))}") from None
    return PlotWriter(plots, field)


def _check_pooling(cfg: Mapping[str, Any], predictor: Predictor) -> None:
    """Raise UserError if the pooling layer's bins are unknown, or if pooling them one by one changes the output."""
    from sppnet.models.network import build_backbone
    from sppnet.models.probe import map_size, on_meta
    from sppnet.prediction.attribution import check_pooling

    size = cfg["sizes"]["test"][0]
    with on_meta():
        side = min(map_size(build_backbone(cfg["backbone"]), size, size))
    check_pooling(predictor.classifier.network.head[0], side)
