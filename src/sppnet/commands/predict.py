"""`sppnet predict checkpoint=RUN_DIR_OR_FILE input=FILE_OR_FOLDER`: the likeliest classes of pictures of any size."""

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
from sppnet.prediction.output_paths import Drawings, check_output, drawings
from sppnet.progress import meter
from sppnet.runs.from_checkpoint import HARDWARE, Trained
from sppnet.runs.plan import validate

if TYPE_CHECKING:
    from sppnet.prediction.plot_files import Drawer

OWN = {"input": TEXT, "output": or_null(TEXT), "top": whole(1), "draw": either(FLAG, TEXT)}
RUNS_OWN = {"trainer.limit_batches"}  # a quick look at training is none at predicting
LOADING = ("data.batch_size", "data.workers")
MAY_CHANGE = ("views", "sizes.test", *LOADING, "debug", "force", *(key for key in HARDWARE if key not in RUNS_OWN))


def main(words: Sequence[str]) -> None:
    """Put the run's overrides before the typed ones and compose `conf/predict.yaml`."""
    checkpoint_app.run("predict", words, predict, tuple(OWN), MAY_CHANGE)


def predict(trained: Trained) -> None:
    """Print the likeliest classes of every picture; write and draw them where that is asked for.

    Raises:
        UserError: a mistake in what was typed; nothing was written.
        RunFailed: none of the pictures could be read.
    """
    own = schema.take(trained.cfg, OWN)
    cfg = _settled(trained.cfg, trained.typed)
    validate(cfg)
    found = find_images(own["input"])
    drawn = drawings(trained, cfg, own["draw"], found)
    check_output(own["output"], found, trained, drawn, cfg["force"])
    from sppnet.training.preflight import check_job  # imports torch

    check_job(cfg)
    drawer = _drawer(cfg, drawn) if drawn else None
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that what is half written is taken away
    with JsonLines(own["output"]) as lines:
        _predict(cfg, trained, found, own["top"], lines, drawer)
    if lines.path is not None:
        notice(f"predictions: {lines.path}")
    if drawer is not None:
        notice(f"drawings: {drawer.drawings.place}")


def _predict(
    cfg: Mapping[str, Any], trained: Trained, found: InputFiles, top: int, lines: JsonLines, drawer: Drawer | None
) -> None:
    from sppnet.prediction.predictor import Predictor
    from sppnet.training.checkpointing import read_checkpoint  # imports Lightning
    from sppnet.training.trainer import settle

    if found.not_read:
        notice(found.not_read)
    settle(cfg)
    predictor = Predictor(cfg, read_checkpoint(trained.weights), trained.weights, found)
    if drawer is not None:
        drawer.check(predictor)
    table, failed = Table([predictor.pictures.name(i) for i in range(len(predictor.pictures))], predictor.classes), 0
    with meter("predict", cfg["trainer"]["progress"], len(found.names)) as tick:
        for prediction in predictor:
            if prediction.problem:
                failed += 1
                print(f"sppnet predict: {prediction.problem}; passed over", file=sys.stderr, flush=True)
            else:
                best = prediction.top(top)
                named = [(predictor.classes[label], probability) for label, probability in best]
                lines.write(prediction.name, prediction.shape, named)
                if not lines.instead_of_table:
                    table.write(prediction.name, prediction.shape, named)
                if drawer is not None:
                    drawer.draw(predictor, prediction, best, found.names[prediction.index])
            tick(1)
    notice_remarks(predictor.remarks)
    if failed == len(found.names):
        raise RunFailed(f"none of the {failed} pictures could be read" if failed > 1 else "it could not be read")
    if failed:
        print(f"sppnet predict: {failed} of {len(found.names)} pictures could not be read", file=sys.stderr)


def _settled(cfg: Mapping[str, Any], typed: Collection[str]) -> dict[str, Any]:
    """The configuration to predict with: one device, one size, whole pictures unless other views were typed."""
    sizes = cfg["sizes"]["test"]
    if "sizes.test" in typed and isinstance(sizes, list) and len(sizes) > 1:
        raise UserError(f"sizes.test={sizes} is not allowed: a picture is predicted at one size, such as [{sizes[0]}]")
    if isinstance(sizes, list):
        sizes = sizes[:1]
    views = cfg["views"]
    if not any(key.split(".")[0] == "views" for key in typed):
        head = cfg["head"]
        square = head["name"] == "flatten" or (head["name"] == "spp" and head.get("rule", "adaptive") != "adaptive")
        views = compose.again("predict", [f"views={'warp' if square else 'full'}"])["views"]
    return {
        **cfg,
        "views": views,
        "sizes": {**cfg["sizes"], "test": sizes},
        "backbone": {**cfg["backbone"], "weights": None},  # all weights are in the checkpoint
        "trainer": {**cfg["trainer"], "devices": 1, "num_nodes": 1},
    }


def _drawer(cfg: Mapping[str, Any], drawn: Drawings) -> Drawer:
    """What draws; it must be known where on the image the cells of the backbone's map look.

    Raises:
        UserError: it is not, or pictures are looked at in several views.
    """
    if cfg["views"]["fit"] == "windows":
        raise UserError(
            f"draw shows one look at a picture, views={cfg['views']['name']} takes several; use views=full, center or"
            " warp"
        )
    from sppnet.models.network import build_backbone
    from sppnet.models.probe import on_meta
    from sppnet.models.receptive_field import receptive_field
    from sppnet.prediction.plot_files import Drawer  # imports Lightning

    try:
        with on_meta():
            field = receptive_field(build_backbone(cfg["backbone"]))
    except UserError as error:
        raise UserError(f"draw={drawn.place}: {re.sub('; use .*', '', str(error))}") from None
    return Drawer(drawn, field, cfg["views"])
