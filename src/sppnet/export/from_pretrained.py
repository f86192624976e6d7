"""`sppnet.from_pretrained`: loads a trained network in Python, from a run, a file, a folder or the Hugging Face Hub."""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from sppnet.config.instantiate import ADVICE, allowing
from sppnet.config.load import load
from sppnet.config.schema import Config
from sppnet.data.crops import EvalRegions
from sppnet.data.datasets.base import ImageSet
from sppnet.data.datasets.unlabelled import InputFiles, UnlabelledImages
from sppnet.data.decode import to_rgb
from sppnet.data.loader import BatchDataset
from sppnet.data.orientation import TURNS, read_loaded_orientation
from sppnet.data.readers import build_reader
from sppnet.errors import UserError, notice
from sppnet.models.network import SPPNet
from sppnet.models.normalise import Normalise
from sppnet.prediction.predictor import WindowBatches
from sppnet.prediction.settings import prediction_config
from sppnet.runs.checkpoint_files import CONFIG, LIBRARY, WEIGHTS, locate, read_checkpoint
from sppnet.runs.from_checkpoint import changed_code
from sppnet.storage.files import read_record
from sppnet.storage.paths import expand_path
from sppnet.storage.tensors import check_download
from sppnet.training.inference import load_network
from sppnet.training.losses import uses_sigmoid

ON_HUB = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
TIMEOUT = 10.0  # seconds until the first answer of the Hub
KEY = "source"  # of messages
PARTS = ("backbone", "pooling", "head")  # whose code is run; that of a loss of the user's own need not exist
_LOCK = threading.RLock()  # Hydra, which composes the views, is for one thread at a time
Picture = Image.Image | str | os.PathLike[str]


@dataclass(frozen=True)
class Preprocess:
    """Turns an image into what the network takes, with the same pixels as `sppnet predict`.

    The whole image is resized so that its shorter side is the first test size of the run and its aspect ratio is
    rounded; if the network takes only squares, it is warped to a square.

    Attributes:
        cfg: the configuration of the run, for prediction.
        dtype: that of the network.
    """

    cfg: Config = field(repr=False)
    dtype: torch.dtype

    def __call__(self, image: Picture) -> Tensor:
        """Return the normalised pixels (3, H, W) of an image of Pillow, or of the image file at a path.

        Raises:
            UserError: the image cannot be read.
        """
        normalise = Normalise(self.cfg.data.mean, self.cfg.data.std, channels_last=False).to(self.dtype)
        x_3HW: Tensor = normalise(self.pixels(image)[None])[0]
        return x_3HW

    def pixels(self, image: Picture) -> Tensor:
        """Return the pixels before normalisation, uint8 (3, H, W). For the argument, see `__call__`."""
        cfg = self.cfg
        if not isinstance(image, Image.Image | str | os.PathLike):
            raise UserError(
                f"image: an object of {type(image).__name__} is not allowed; it takes an image of Pillow"
                " (PIL.Image.fromarray makes one of an array) or the path of an image file"
            )
        images = _Given(image) if isinstance(image, Image.Image) else _files(expand_path("image", image))
        if isinstance(images, UnlabelledImages):
            images.shape(0)  # of an unreadable file, the reader would be asked for the wrong shape
        reader = build_reader(images, cfg.data, cfg.views.fit)
        samples = BatchDataset(images, EvalRegions(cfg.views.fit, cfg.views.crop_pct), reader)
        batch = samples.__getitems__(next(iter(WindowBatches(images, cfg))))
        if problem := batch.samples[0].problem:
            raise UserError(problem)
        return batch.images[0][0]


@dataclass(frozen=True)
class Pretrained:
    """A trained network with what is needed to use it.

    Attributes:
        network: maps normalised images (N, 3, H, W) to logits (N, K); in evaluation mode, on the CPU. Its dtype is
            float64 if the run had `trainer.precision=64-true`, otherwise float32, which holds the weights of every
            precision exactly.
        classes: names of the K classes, in the order of the logits.
        preprocess: maps an image of Pillow, or the path of an image file, to normalised pixels (3, H, W).
        sigmoid: whether probabilities are the sigmoid of each logit; otherwise, they are the softmax over the classes.
    """

    network: SPPNet
    classes: list[str]
    preprocess: Preprocess
    sigmoid: bool

    @torch.inference_mode()
    def probabilities(self, image: Picture) -> dict[str, float]:
        """Return the probability of each class for one image, in the order of `classes`."""
        parameter = next(self.network.parameters())
        logits_1K = self.network(self.preprocess(image)[None].to(parameter)).double()
        values_K = (logits_1K.sigmoid() if self.sigmoid else logits_1K.softmax(1))[0].tolist()
        return dict(zip(self.classes, values_K, strict=True))


def from_pretrained(
    source: str | os.PathLike[str], allow: str | Sequence[str] = (), *, revision: str | None = None
) -> Pretrained:
    """Load a trained network. Files are read as data; no code in them is executed.

    Args:
        source: a run directory, a checkpoint, a `.safetensors` file of `sppnet export`, a folder of `format=hub`, or
            `USER/NAME` of a model on the Hugging Face Hub, which is downloaded once. A local path wins.
        allow: the packages, such as `"mypackage"`, of classes of your own that the network may name. They are allowed
            during this call only.
        revision: the branch, tag or commit of a model on the Hub; None for its main branch.

    Raises:
        UserError: the source does not exist, is damaged or was not written by sppnet, it cannot be downloaded, or it
            names a class that is not allowed.
    """
    with _allowed(allow):
        checkpoint = read_checkpoint(weights := _find(source, revision), KEY)
        metadata = checkpoint["sppnet"]
        cfg = prediction_config(load(Config, {**metadata["config"], "force": False}))
        changed_code(cfg, metadata["code"], f"{KEY}={source}", PARTS)
        network = load_network(checkpoint, cfg, weights, KEY)
        sigmoid = uses_sigmoid(cfg.loss, cfg.data.name, metadata["multilabel"])
    dtype = torch.float64 if cfg.trainer.precision == "64-true" else torch.float32
    return Pretrained(network.to(dtype).eval(), list(metadata["classes"]), Preprocess(cfg, dtype), sigmoid)


def _find(source: str | os.PathLike[str], revision: str | None) -> Path:
    """Return the weights file of `source`, which is downloaded if it is the name of a model on the Hub."""
    path = expand_path(KEY, source)
    if isinstance(source, str) and not path.exists() and ON_HUB.fullmatch(source):
        path = _download(source, revision)
    elif revision is not None:
        raise UserError(f"revision={revision} is for models on the Hub, and {KEY}={source} is not the name of one")
    return locate(path, KEY)[1]


def _download(name: str, revision: str | None) -> Path:
    """Download the weights and the configuration of a model, and no other file; return their folder in the cache.

    Without a network, what is in the cache is used.
    """
    try:
        from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
        from huggingface_hub.errors import HfHubHTTPError
    except ModuleNotFoundError:
        raise UserError(
            f"{KEY}={name}: no such file or directory; to look for this name on the Hub, the package huggingface_hub is"
            " missing: run uv sync --extra export"
        ) from None
    problem: Exception | None = None
    try:  # by itself, the library would try again for half a minute
        get_hf_file_metadata(hf_hub_url(name, CONFIG, revision=revision), timeout=TIMEOUT)
    except Exception as error:  # of the network or the library, which has many
        problem = error
    offline = problem is not None and not isinstance(problem, HfHubHTTPError)
    try:
        if problem is not None and not offline:  # the Hub has answered
            raise problem
        config = Path(hf_hub_download(name, CONFIG, revision=revision, local_files_only=offline))
        if read_record(config).get(LIBRARY) != "sppnet":
            raise UserError(f"{KEY}={name} is not a model of sppnet")
        commit = config.parent.name  # the branch may move between the two files
        path = Path(hf_hub_download(name, WEIGHTS, revision=commit, local_files_only=offline))
    except UserError:
        raise
    except Exception as error:
        reason = str(problem or error).partition("\n")[0] or type(problem or error).__name__
        raise UserError(
            f"{KEY}={name}: there is no such file or directory, and no such model of sppnet can be downloaded from the"
            f" Hub ({reason})"
        ) from error
    check_download(path, KEY)
    if offline:
        notice(f"{KEY}={name}: the Hub cannot be reached, and the copy in the cache may be older than the model there")
    return path.parent


@contextlib.contextmanager
def _allowed(packages: str | Sequence[str]) -> Iterator[None]:
    """Allow the classes of some packages inside the block, and say in refusals how to allow others.

    Raises:
        UserError: a name is not that of a package.
    """
    names = [packages] if isinstance(packages, str) else list(packages)
    for name in names:
        if not isinstance(name, str) or not all(part.isidentifier() for part in name.split(".")):
            raise UserError(f"allow={name!r} is not allowed: it takes the name of a package, or a list of names")
    with _LOCK, allowing(names):
        try:
            yield
        except UserError as error:
            raise UserError(str(error).replace(ADVICE, 'pass allow="PACKAGE"')) from error


def _files(path: Path) -> UnlabelledImages:
    return UnlabelledImages(InputFiles(path.parent, [path.name], False), [""], False, "")


class _Given(ImageSet):
    """One image of Pillow, upright and in RGB.

    Raises:
        UserError: its pixels cannot be read.
    """

    classes = ("",)

    def __init__(self, image: Image.Image) -> None:
        if 0 in image.size:
            raise UserError(f"image={image!r} has no pixels")
        try:
            image.load()
            rgb = to_rgb(image)
        except Exception as error:  # Pillow may read the pixels only now, and its decoders can raise any exception
            raise UserError(f"image={image!r} cannot be read ({error})") from error
        turn = TURNS.get(read_loaded_orientation(image))
        self.image = rgb if turn is None else rgb.transpose(turn)

    def __len__(self) -> int:
        return 1

    def label(self, index: int) -> int:
        return 0

    def read(self, index: int) -> Image.Image:
        return self.image
