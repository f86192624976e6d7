"""Plot an image and its prediction, and write the plot as a PNG file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL.PngImagePlugin import PngInfo

from sppnet.models.receptive_field import ReceptiveField
from sppnet.prediction.attribution import attribute_logit
from sppnet.prediction.attribution_plot import plot_attribution
from sppnet.prediction.output_paths import KEY, PlotPaths
from sppnet.prediction.predictor import CheckpointPredictor, Prediction
from sppnet.storage.files import atomic_write


@dataclass(frozen=True)
class PlotWriter:
    """Writes one PNG per image to `paths`. `field` describes the receptive fields of the feature map's cells."""

    paths: PlotPaths
    field: ReceptiveField

    def write(
        self, predictor: CheckpointPredictor, prediction: Prediction, best: Sequence[tuple[int, float]], name: str
    ) -> None:
        """Plot an image with the attribution of its likeliest class, and write the plot to its file.

        Args:
            predictor: the predictor that made `prediction`.
            prediction: the prediction for the image.
            best: numbers and probabilities of the classes to list, the likeliest first.
            name: the image's path.
        """
        classifier = predictor.classifier
        view = classifier.normalise(prediction.view[None].to(classifier.device))
        attribution = attribute_logit(classifier.network, view, best[0][0])
        image, classes = predictor.images.read(prediction.index), [(predictor.classes[label], p) for label, p in best]
        box = predictor.regions.region(*image.size).box
        size = view.shape[3], view.shape[2]
        plot = plot_attribution(image, name.rpartition("/")[2], box, size, classes, attribution, self.field)
        path, metadata = self.paths.path(name), PngInfo()
        metadata.add_text(KEY, self.paths.origin(name))
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path, "wb") as file:
            # Compression level 4 is faster than the default, and the files are hardly larger.
            plot.save(file, "PNG", compress_level=4, pnginfo=metadata)
