"""Draws predictions into a folder: from a picture and its prediction to a PNG on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL.PngImagePlugin import PngInfo

from sppnet.data.crops import EvalRegions
from sppnet.models.network import build_backbone
from sppnet.models.probe import map_size, on_meta
from sppnet.models.receptive_field import ReceptiveField
from sppnet.prediction.attribution import check_pooling, explain
from sppnet.prediction.attribution_plot import Look, draw
from sppnet.prediction.output_paths import KEY, Drawings
from sppnet.prediction.predictor import Prediction, Predictor
from sppnet.storage.files import atomic_write


@dataclass(frozen=True)
class Drawer:
    """Writes one PNG per picture; the folder is made with the first.

    Attributes:
        drawings: where they go, in folders like those of the pictures.
        field: where the cells of the backbone's map look.
        views: the config's `views`, plain, of a single view.
    """

    drawings: Drawings
    field: ReceptiveField
    views: Mapping[str, Any]

    def check(self, predictor: Predictor) -> None:
        """Raise UserError unless the bins of the network's pooling are known."""
        network, size = predictor.classifier.network, predictor.cfg["sizes"]["test"][0]
        with on_meta():
            side = min(map_size(build_backbone(predictor.cfg["backbone"]), size, size))
        check_pooling(network.head[0], side)

    def draw(self, predictor: Predictor, prediction: Prediction, best: Sequence[tuple[int, float]], name: str) -> Path:
        """Draw what speaks for the likeliest class of a picture; returns the file.

        Args:
            predictor: what predicted it.
            prediction: of the picture.
            best: numbers of the likeliest classes and their probabilities.
            name: of the picture, below the folder of all pictures.
        """
        classifier = predictor.classifier
        seen = prediction.seen[None].to(classifier.device)
        evidence = explain(classifier.network, classifier.normalise(seen), best[0][0])
        picture = predictor.pictures.read(prediction.index)
        box = EvalRegions(self.views["fit"], self.views["ratio"]).region(*picture.size).box
        named = [(predictor.classes[label], probability) for label, probability in best]
        look = Look(box, *prediction.seen.shape[1:])
        made = draw(picture, name.rpartition("/")[2], look, named, evidence, self.field)
        path, text = self.drawings.path(name), PngInfo()
        text.add_text(KEY, self.drawings.origin(name))
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path, "wb") as file:
            made.save(file, "PNG", compress_level=4, pnginfo=text)  # quick, and hardly larger
        return path
