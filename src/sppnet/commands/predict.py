"""`sppnet predict checkpoint=RUN_DIR_OR_FILE input=FILE_OR_FOLDER`: classify images of any size."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sppnet.commands import checkpoint_app
from sppnet.config.command_schemas import PredictConfig
from sppnet.config.schema import Windows
from sppnet.data import build_sizes
from sppnet.data.datasets.unlabelled import InputFiles, find_images
from sppnet.data.jpeg import notice_remarks
from sppnet.errors import RunFailed, UserError, notice
from sppnet.prediction.output import JsonLines, Table
from sppnet.prediction.output_paths import PlotPaths, build_plot_paths, check_output
from sppnet.prediction.settings import prediction_config
from sppnet.progress import meter
from sppnet.runs.from_checkpoint import TrainedNetwork
from sppnet.runs.onnx_checkpoint import is_onnx, read_onnx_checkpoint

if TYPE_CHECKING:
    from sppnet.prediction.onnx_network import OnnxNetwork
    from sppnet.prediction.plot_files import PlotWriter
    from sppnet.prediction.predictor import CheckpointPredictor, Predictor


def main(words: Sequence[str]) -> None:
    checkpoint_app.run("predict", words, predict)


def predict(trained: TrainedNetwork[PredictConfig]) -> None:
    """Print the likeliest classes of every image, write them to `output` and save plots to `draw`.

    Raises:
        UserError: a value is not allowed; no file has been written.
        RunFailed: no image could be read.
    """
    network = _open_network(trained) if is_onnx(trained.weights) else None
    cfg = prediction_config(trained.cfg, trained.typed_keys, None if network is None else network.side is None)
    if network is not None:
        from sppnet.prediction.onnx_network import fit_to_file

        cfg = fit_to_file(cfg, network, trained.typed_keys)
    build_sizes(cfg.sizes)
    images = find_images(cfg.input)
    plots = build_plot_paths(trained, cfg, images)
    check_output(cfg, images, trained, plots)
    if network is None:
        from sppnet.training.preflight import check_job  # imports torch

        check_job(cfg)
    plot_writer = _build_plot_writer(cfg, plots) if plots else None
    # make SIGTERM raise KeyboardInterrupt, so that half-written files are removed
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with JsonLines(cfg.output) as lines:
        _predict(cfg, trained, network, images, lines, plot_writer)
    if lines.path is not None:
        notice(f"predictions: {lines.path}")
    if plots is not None:
        notice(f"plots: {plots.place}")


def _predict(
    cfg: PredictConfig,
    trained: TrainedNetwork[PredictConfig],
    network: OnnxNetwork | None,
    images: InputFiles,
    lines: JsonLines,
    plot_writer: PlotWriter | None,
) -> None:
    from sppnet.prediction.predictor import CheckpointPredictor  # imports torch
    from sppnet.training.trainer import set_threads_and_filter_warnings  # imports Lightning

    if images.not_read:
        notice(images.not_read)
    set_threads_and_filter_warnings(cfg)
    predictor = _build_predictor(cfg, trained, network, images)
    if isinstance(predictor, CheckpointPredictor) and plot_writer is not None:
        _check_pooling(cfg, predictor)
    table = Table([predictor.images.name(i) for i in range(len(predictor.images))], predictor.classes)
    failed = 0
    with meter("predict", cfg.progress, len(images.names)) as tick:
        for prediction in predictor:
            if prediction.problem:
                failed += 1
                print(f"sppnet predict: {prediction.problem}; skipped", file=sys.stderr, flush=True)
            else:
                best = prediction.top(cfg.top)
                probabilities = [(predictor.classes[label], probability) for label, probability in best]
                lines.write(prediction.name, prediction.shape, prediction.input_shape, probabilities)
                if not lines.instead_of_table:
                    table.write(prediction.name, prediction.shape, probabilities)
                if isinstance(predictor, CheckpointPredictor) and plot_writer is not None:
                    plot_writer.write(predictor, prediction, best, images.names[prediction.index])
            tick(1)
    notice_remarks(predictor.remarks)
    if failed == len(images.names):
        raise RunFailed(f"none of the {failed} images could be read" if failed > 1 else "the image could not be read")
    if failed:
        print(f"sppnet predict: {failed} of {len(images.names)} images could not be read", file=sys.stderr)


def _open_network(trained: TrainedNetwork[PredictConfig]) -> OnnxNetwork:
    from sppnet.prediction.onnx_network import open_network  # imports torch

    return open_network(read_onnx_checkpoint(trained.weights), trained.cfg, trained.typed_keys)


def _build_predictor(
    cfg: PredictConfig, trained: TrainedNetwork[PredictConfig], network: OnnxNetwork | None, images: InputFiles
) -> Predictor:
    if network is not None:
        from sppnet.prediction.onnx_network import OnnxPredictor

        return OnnxPredictor(cfg, network, images)
    from sppnet.prediction.predictor import CheckpointPredictor
    from sppnet.runs.checkpoint_files import read_checkpoint

    return CheckpointPredictor(cfg, read_checkpoint(trained.weights), trained.weights, images)


def _build_plot_writer(cfg: PredictConfig, plots: PlotPaths) -> PlotWriter:
    """Build the plot writer, which needs the backbone's receptive field.

    Raises:
        UserError: the receptive field is unknown, or the network sees several views of each image.
    """
    if isinstance(cfg.views, Windows):
        raise UserError(
            f"draw needs a single view of each image, but views={cfg.views.name} gives several; use views=full, center"
            " or warp"
        )
    from sppnet.models.network import build_backbone
    from sppnet.models.probe import on_meta
    from sppnet.models.receptive_field import receptive_field
    from sppnet.prediction.plot_files import PlotWriter  # imports Lightning

    try:
        with on_meta():
            field = receptive_field(build_backbone(cfg.backbone))
    except UserError as error:
        raise UserError(f"draw={plots.place}: {re.sub('; use .*', '', str(error))}") from None
    return PlotWriter(plots, field)


def _check_pooling(cfg: PredictConfig, predictor: CheckpointPredictor) -> None:
    """Raise UserError if the bins of the pooling layer do not explain the logits."""
    from sppnet.models.network import build_backbone
    from sppnet.models.probe import map_size, on_meta
    from sppnet.prediction.attribution import check_head, check_pooling

    size = cfg.sizes.test[0]
    with on_meta():
        side = min(map_size(build_backbone(cfg.backbone), size, size))
    check_head(predictor.classifier.network.head)
    check_pooling(predictor.classifier.network.pooling, side)
