"""Choose the paths of plots, and check that plots and predictions can be written without replacing other files.

This module does not import torch.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from sppnet.config.command_schemas import PredictConfig
from sppnet.data.datasets.base import digest
from sppnet.data.datasets.file_names import SUFFIXES
from sppnet.data.datasets.unlabelled import InputFiles
from sppnet.errors import UserError
from sppnet.runs.from_checkpoint import TrainedNetwork

KEY = "sppnet"  # name of the PNG text chunk that holds the digest of a plot's image and network


@dataclass(frozen=True)
class PlotPaths:
    """Paths of the plots.

    Attributes:
        place: the folder of the plots, or the file of a single plot.
        single: whether `place` is a file.
        root: the folder that image names are relative to.
        network: an identifier of the network.
        longest: the maximum length, in bytes, of a file name in the plots' folder; -1 for no limit.
    """

    place: Path
    single: bool
    root: Path
    network: str
    longest: int

    def path(self, name: str) -> Path:
        """Return the path of an image's plot. A name that would be too long is shortened and ends in a digest."""
        if self.single:
            return self.place
        path = self.place / f"{name}.png"  # keeps the image's suffix, so a.jpg and a.png get different plots
        return path.with_name(_limit_bytes(path.name, self.longest))

    def origin(self, name: str) -> str:
        """Return a digest of the image's path and the network, which reveals neither."""
        return hashlib.sha256(
            f"{self.network}\0{(self.root / name).resolve()}".encode(errors="surrogateescape")
        ).hexdigest()

    def find_conflict(self, name: str) -> Path | None:
        """Return the file that an image's plot would replace.

        Returns None if there is no such file, or if it is a plot of the same image and network.
        """
        path = self.path(name)
        if not os.path.lexists(path):
            return None
        try:
            with Image.open(path) as image:
                same = image.info.get(KEY) == self.origin(name)
        except (OSError, ValueError, SyntaxError):
            same = False
        return None if same else path


def build_plot_paths(
    trained: TrainedNetwork[PredictConfig], cfg: PredictConfig, images: InputFiles
) -> PlotPaths | None:
    """Choose the paths of the plots without creating any files or folders; None if `cfg.draw` is False.

    Raises:
        UserError: the plots cannot be written to `cfg.draw`, or would replace other files.
    """
    if cfg.draw is False:
        return None
    path = _default_folder(trained, cfg) if cfg.draw is True else Path(cfg.draw).expanduser()
    single = path.suffix.lower() == ".png" and len(images.names) == 1 and not path.is_dir()
    if single:
        _check_file(path, images)
    else:
        _check_folder(path, images)
    parent = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.is_dir())
    if not os.access(parent, os.W_OK):
        raise UserError(f"draw={path}: {parent} is not writable; draw=FOLDER writes the plots to a different folder")
    network = trained.run.path.resolve().name if trained.run and trained.name == "best" else trained.name
    plots = PlotPaths(path, single, images.root, network, os.pathconf(parent, "PC_NAME_MAX"))
    conflicts = [] if cfg.force else [file for name in images.names if (file := plots.find_conflict(name))]
    if conflicts:
        more = f" and {len(conflicts) - 1} more" if len(conflicts) > 1 else ""
        raise UserError(
            f"draw={path} would replace files that are not this network's plots of the same images:"
            f" {conflicts[0]}{more}; force=true replaces them, draw=FOLDER writes to a different folder"
        )
    return plots


def check_output(
    cfg: PredictConfig, images: InputFiles, trained: TrainedNetwork[PredictConfig], plots: PlotPaths | None
) -> None:
    """Raise UserError if `cfg.output` cannot be written, or if it exists and `cfg.force` is not set."""
    output = cfg.output
    if output is None or output == "-":
        return
    path = Path(output).expanduser()
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):  # a missing folder is reported below
        pass
    except OSError as error:  # a link to itself, no permission, or a name that is too long
        raise UserError(f"output={output}: {error.strerror}") from None
    if path.is_dir():
        raise UserError(f"output={output} is a folder; it must be a file, such as output={output}/predictions.jsonl")
    files = (images.root / name for name in images.names)
    if path.exists() and path.resolve() in {trained.weights.resolve(), *(file.resolve() for file in files)}:
        raise UserError(f"output={output} is one of the images or the checkpoint; choose a different file")
    if path.exists() and not path.is_file():
        raise UserError(f"output={output} is not a regular file; choose a regular file, or - for standard output")
    if trained.run is not None and path.resolve().is_relative_to(trained.run.path.resolve()):
        raise UserError(f"output={output} is inside the run directory; choose a file elsewhere")
    if plots is not None and path.resolve() in {plots.path(name).resolve() for name in images.names}:
        raise UserError(f"output={output} is also the path of a plot (draw={plots.place}); choose a different file")
    folder = path.resolve().parent if path.is_symlink() else path.parent
    if not folder.is_dir():
        raise UserError(f"output={output}: the folder {folder} does not exist")
    if not os.access(folder, os.W_OK):
        raise UserError(f"output={output}: the folder {folder} is not writable")
    if path.exists() and not cfg.force:
        raise UserError(f"output={output} exists; force=true replaces it")


def _default_folder(trained: TrainedNetwork[PredictConfig], cfg: PredictConfig) -> Path:
    """Return RUNS/STUDY/predictions/RUN, which git ignores; for a file outside a run, RUNS/predictions/CHECKPOINT."""
    if trained.run is None:
        return Path(cfg.paths.runs).expanduser() / "predictions" / trained.checkpoint.stem
    run = trained.run.path
    run = run if run.name not in ("", "..") else run.resolve()
    return run.parent / "predictions" / run.name


def _limit_bytes(name: str, most: int) -> str:
    """Return `name`, shortened to `most` bytes if it is longer: a digest then replaces the end of its stem."""
    if most < 0 or len(os.fsencode(name)) <= most:
        return name
    stem, suffix = os.path.splitext(name)  # noqa: PTH122  (a name, not a path)
    end = f"-{digest([name])[:12]}{suffix}"
    # "ignore" drops the bytes of a character that shortening the stem has left incomplete
    return os.fsencode(stem)[: most - len(os.fsencode(end))].decode("utf-8", "ignore") + end


def _check_file(path: Path, images: InputFiles) -> None:
    resolved, root = path.resolve(), images.root.resolve()
    if any(resolved == (root / name).resolve() for name in images.names):
        raise UserError(f"draw={path} is the image itself; choose a different file")
    if images.folder and resolved.is_relative_to(root):
        raise UserError(
            f"draw={path} is inside input={images.root}, where the next predict run would read the plot as an image;"
            " choose a file elsewhere"
        )


def _check_folder(path: Path, images: InputFiles) -> None:
    several = len(images.names) > 1
    count = f"{len(images.names)} images are to be plotted" if several else "plots are PNG files"
    if path.exists() and not path.is_dir():
        allowed = "true, false or a folder" if several else "true, false, a folder or a .png file"
        raise UserError(f"draw={path} is an existing file, so plots cannot be written there; draw must be {allowed}")
    if path.suffix.lower() in SUFFIXES and not path.is_dir():
        kind = "draw must be a folder" if several else f"use draw={path.with_suffix('.png')}"
        raise UserError(f"draw={path} has the suffix of an image file, but {count}; {kind}")
    if images.folder and path.resolve().is_relative_to(images.root.resolve()):
        raise UserError(
            f"draw={path} is inside input={images.root}, where the next predict run would read the plots as images;"
            " choose a folder elsewhere with draw=FOLDER"
        )
    if not images.folder and path.resolve() == images.root.resolve():
        raise UserError(
            f"draw={path} is the image's folder, where plots may replace other images; choose a different folder"
        )
