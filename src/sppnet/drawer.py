"""Draws predictions into a folder: from a picture and its prediction to a PNG on disk."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sppnet.backbones.field import Field
from sppnet.data.crops import EvalRegions
from sppnet.data.images import digest
from sppnet.draw import Look, draw
from sppnet.evidence import explain
from sppnet.predict import Prediction, Predictor


@dataclass(frozen=True)
class Drawer:
    """Writes one PNG per picture; the folder is made with the first.

    Attributes:
        folder: where they go, in folders like those of the pictures.
        field: where the cells of the backbone's map look.
        views: the config's `views`, plain, of a single view.
    """

    folder: Path
    field: Field
    views: Mapping[str, Any]

    def draw(self, predictor: Predictor, prediction: Prediction, best: Sequence[tuple[int, float]], name: str) -> Path:
        """Draw what speaks for the likeliest class of a picture; returns the file, `folder`/`name`.png.

        A name that is too long with the suffix ends in a digest of the whole instead.

        Args:
            predictor: what predicted it.
            prediction: of the picture.
            best: numbers of the likeliest classes and their probabilities.
            name: of the picture, below the folder of all pictures.
        """
        classifier = predictor.classifier
        seen = prediction.seen[None].to(classifier.device)
        evidence = explain(classifier.network, classifier.prepare({"image": seen}), best[0][0])
        picture = predictor.pictures.read(prediction.index)
        box = EvalRegions(self.views["fit"], self.views["ratio"]).region(*picture.size).box
        named = [(predictor.classes[label], probability) for label, probability in best]
        look = Look(box, *prediction.seen.shape[1:])
        made = draw(picture, name.rpartition("/")[2], look, named, evidence, self.field)
        path = self.folder / f"{name}.png"  # a.jpg and a.png are two pictures
        path.parent.mkdir(parents=True, exist_ok=True)
        path = path.with_name(fitting(path.name, os.pathconf(path.parent, "PC_NAME_MAX")))
        temporary = path.with_name(f".{os.getpid()}.png.tmp")  # short, whatever the name
        try:
            made.save(temporary, "PNG", compress_level=4)  # quick, and hardly larger
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        return path


def fitting(name: str, most: int) -> str:
    """A file name of at most `most` bytes: `name`, or its beginning, a digest of it and its suffix."""
    if most < 0 or len(os.fsencode(name)) <= most:  # -1: there is no limit
        return name
    stem, suffix = os.path.splitext(name)  # noqa: PTH122  (a name, not a path)
    end = f"-{digest([name])[:12]}{suffix}"
    begin = os.fsencode(stem)[: most - len(os.fsencode(end))].decode("utf-8", "ignore")  # no half a character
    return begin + end
