"""Where predictions and drawings go, and what they may replace: nothing that is not theirs. Imports no torch."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from sppnet.data.datasets.base import digest
from sppnet.data.datasets.file_names import SUFFIXES
from sppnet.data.datasets.unlabelled import InputFiles
from sppnet.errors import UserError
from sppnet.runs.from_checkpoint import TrainedNetwork

KEY = "sppnet"  # of the text in a drawing that says of which picture and network it is


@dataclass(frozen=True)
class Drawings:
    """Where drawings go.

    Attributes:
        place: a folder, or the file of the only one.
        single: whether it is a file.
        root: the folder that names of pictures are relative to.
        network: what tells the network from all others.
        longest: most bytes in a file's name there; -1: any number.
    """

    place: Path
    single: bool
    root: Path
    network: str
    longest: int

    def path(self, name: str) -> Path:
        """The file of the drawing of a picture; a name that is too long with the suffix ends in a digest instead."""
        if self.single:
            return self.place
        path = self.place / f"{name}.png"  # a.jpg and a.png are two pictures
        return path.with_name(_fitting(path.name, self.longest))

    def origin(self, name: str) -> str:
        """Of which picture and network a drawing is, as a digest that gives no path away."""
        return hashlib.sha256(
            f"{self.network}\0{(self.root / name).resolve()}".encode(errors="surrogateescape")
        ).hexdigest()

    def replaces(self, name: str) -> Path | None:
        """The file that a drawing would replace, if that is no drawing of the same picture by the same network."""
        path = self.path(name)
        if not os.path.lexists(path):
            return None
        try:
            with Image.open(path) as image:
                same = image.info.get(KEY) == self.origin(name)
        except (OSError, ValueError, SyntaxError):
            same = False
        return None if same else path


def drawings(trained: TrainedNetwork, cfg: Mapping[str, Any], draw: bool | str, found: InputFiles) -> Drawings | None:
    """Where drawings go, made nothing of yet; None for no drawings.

    Raises:
        UserError: they cannot go there, or would replace what is none of theirs.
    """
    if draw is False:
        return None
    path = _default(trained, cfg) if draw is True else Path(draw).expanduser()
    single = path.suffix.lower() == ".png" and len(found.names) == 1 and not path.is_dir()
    if single:
        _check_file(path, found)
    else:
        _check_folder(path, found)
    there = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.is_dir())
    if not os.access(there, os.W_OK):
        raise UserError(f"draw={path}: {there} cannot be written to; draw=FOLDER names another place")
    network = trained.run.path.resolve().name if trained.run and trained.name == "best" else trained.name
    made = Drawings(path, single, found.root, network, os.pathconf(there, "PC_NAME_MAX"))
    others = [] if cfg["force"] else [old for name in found.names if (old := made.replaces(name))]
    if others:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        raise UserError(
            f"draw={path}: {others[0]}{more} is there, and no drawing of the same picture by this network; force=true"
            " replaces, draw=FOLDER names another place"
        )
    return made


def check_output(
    output: str | None, found: InputFiles, trained: TrainedNetwork, drawn: Drawings | None, force: bool
) -> None:
    """Raise UserError unless `output` can be written, and would replace nothing that is there."""
    if output in (None, "-"):
        return
    path = Path(str(output)).expanduser()
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):  # the latter is told below
        pass
    except OSError as error:  # a link to itself, forbidden, or a name too long
        raise UserError(f"output={output}: {error.strerror}") from None
    if path.is_dir():
        raise UserError(f"output={output} is a folder; it takes a file, such as output={output}/predictions.jsonl")
    pictures = (found.root / name for name in found.names)
    if path.exists() and path.resolve() in {trained.weights.resolve(), *(picture.resolve() for picture in pictures)}:
        raise UserError(f"output={output} is itself one of the pictures, or the checkpoint; name another file")
    if path.exists() and not path.is_file():
        raise UserError(f"output={output} is no regular file; it takes a file, or - for standard output")
    if trained.run is not None and path.resolve().is_relative_to(trained.run.path.resolve()):
        raise UserError(f"output={output} lies in the run directory, whose files are the run's own; name another file")
    if drawn is not None and path.resolve() in {drawn.path(name).resolve() for name in found.names}:
        raise UserError(f"output={output} is the file of a drawing, too (draw={drawn.place}); name another file")
    folder = path.resolve().parent if path.is_symlink() else path.parent
    if not folder.is_dir():
        raise UserError(f"output={output}: there is no folder {folder}")
    if not os.access(folder, os.W_OK):
        raise UserError(f"output={output}: the folder {folder} cannot be written to")
    if path.exists() and not force:
        raise UserError(f"output={output} is there already; force=true replaces it")


def _default(trained: TrainedNetwork, cfg: Mapping[str, Any]) -> Path:
    """Beside the run, where git ignores what runs leave: RUNS/STUDY/predictions/RUN."""
    if trained.run is None:
        return Path(cfg["paths"]["runs"]).expanduser() / "predictions" / trained.checkpoint.stem
    run = trained.run.path
    run = run if run.name not in ("", "..") else run.resolve()
    return run.parent / "predictions" / run.name


def _fitting(name: str, most: int) -> str:
    """A file name of at most `most` bytes: `name`, or its beginning, a digest of it and its suffix."""
    if most < 0 or len(os.fsencode(name)) <= most:
        return name
    stem, suffix = os.path.splitext(name)  # noqa: PTH122  (a name, not a path)
    end = f"-{digest([name])[:12]}{suffix}"
    begin = os.fsencode(stem)[: most - len(os.fsencode(end))].decode("utf-8", "ignore")  # no half a character
    return begin + end


def _check_file(path: Path, found: InputFiles) -> None:
    resolved, root = path.resolve(), found.root.resolve()
    if any(resolved == (root / name).resolve() for name in found.names):
        raise UserError(f"draw={path} is the picture itself; name another file")
    if found.folder and resolved.is_relative_to(root):
        raise UserError(
            f"draw={path} lies in input={found.root}: the drawing would be taken for a picture the next time; name a"
            " file elsewhere"
        )


def _check_folder(path: Path, found: InputFiles) -> None:
    count = f"{len(found.names)} pictures are" if len(found.names) > 1 else "a picture is"
    if path.exists() and not path.is_dir():
        raise UserError(f"draw={path} is a file, and {count} drawn; it takes true, false or a folder")
    if path.suffix.lower() in SUFFIXES and not path.is_dir():
        kind = "it takes a folder" if len(found.names) > 1 else f"a drawing is a PNG, draw={path.with_suffix('.png')}"
        raise UserError(f"draw={path} is called like a file, and {count} drawn; {kind}")
    if found.folder and path.resolve().is_relative_to(found.root.resolve()):
        raise UserError(
            f"draw={path} lies in input={found.root}: drawings would be taken for pictures the next time; name a"
            " folder elsewhere, draw=FOLDER"
        )
    if not found.folder and path.resolve() == found.root.resolve():
        raise UserError(f"draw={path} holds the picture, and perhaps others that a drawing would replace; name another")
