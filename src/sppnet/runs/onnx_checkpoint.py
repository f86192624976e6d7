"""Reads what an ONNX file of `sppnet export` says of its network; the configuration takes the place of a run's.

Does not import torch.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sppnet.config.instantiate import ALLOWED
from sppnet.config.load import check_layout
from sppnet.errors import UserError

if TYPE_CHECKING:
    import onnxruntime

RUNS_ONNX = ("onnx", "onnxruntime")  # packages of the extra `export`
DIGEST = "sha256"  # the metadata key of the digest of all else in the file, which has no checksums of its own
KINDS = {  # the type of each metadata value that is read
    "sppnet": dict,
    "classes": list,
    "activation": str,
    "mean": list,
    "std": list,
    "smallest": int,
}
STAND_IN = "torch.nn.Identity"  # takes the place of a class of the user's own, which a prediction does not need
SCHEDULE = "sppnet.data.Alternating"  # takes the place of a size schedule of the user's own


@dataclass(frozen=True)
class OnnxCheckpoint:
    """The metadata of an ONNX file: those of `sppnet.runs.model_metadata`, and those that `sppnet export` adds."""

    path: Path
    metadata: Mapping[str, Any]
    content: bytes = field(repr=False)

    @property
    def network(self) -> dict[str, Any]:
        """What a checkpoint holds under the key `sppnet`."""
        network: dict[str, Any] = self.metadata["sppnet"]
        return network

    @property
    def config(self) -> dict[str, Any]:
        """The configuration of the training, in which nothing is a class of the user's own."""
        stored: dict[str, Any] = _without_own_classes(self.network["config"])
        if _has_own_class(self.network["config"]["sizes"]):
            sides = {part: stored["sizes"][part] for part in ("train", "val", "test")}
            stored["sizes"] = {"_target_": SCHEDULE, **sides}
        return stored

    @property
    def has_own_classes(self) -> bool:
        """Whether a class of the user's own is needed to build the network."""
        return any(_has_own_class(self.network["config"][name]) for name in ("backbone", "pooling", "head"))


def is_onnx(path: Path) -> bool:
    return path.suffix.lower() == ".onnx"


def refuse_exported(path: Path, key: str, endings: Sequence[str] = (".onnx", ".pt2")) -> None:
    """Raise UserError if `path`, which `key` names, has one of the endings of files that only programs can run."""
    if path.suffix.lower() in endings and path.is_file():
        alone = "" if path.suffix.lower() == ".pt2" else "; only predict reads such a file"
        raise UserError(f"{key}={path} is an exported file, and not a checkpoint{alone}; give the run that it is from")


def read_onnx_checkpoint(path: Path, key: str = "checkpoint") -> OnnxCheckpoint:
    """Read the metadata of an ONNX file. `key` is the key that gives the path, for messages.

    Raises:
        UserError: the file cannot be read, is damaged, is not one of `sppnet export`, or stores a configuration in a
            layout that this version of sppnet does not read; or a package is missing.
    """
    require_packages(f"{key}={path}", RUNS_ONNX)
    import onnx  # of an extra

    try:
        content = path.read_bytes()
        model = onnx.load_from_string(content)
    except OSError as error:
        raise UserError(f"{key}={path}: {error.strerror}") from None
    except Exception as error:  # of protobuf, which has several implementations
        raise UserError(f"{key}={path} cannot be read; it is damaged or not an ONNX file") from error
    texts = {entry.key: entry.value for entry in model.metadata_props}
    if not {DIGEST, *KINDS} <= texts.keys():
        raise UserError(f"{key}={path} is not an ONNX file of sppnet export: it lacks the metadata")
    if sealed(content[: -len(_seal(content))]) != content:
        raise UserError(f"{key}={path} is damaged, or was changed after sppnet export wrote it")
    try:
        metadata = {name: json.loads(text) for name, text in texts.items() if name != DIGEST}
    except (ValueError, RecursionError):
        metadata = {}
    if not all(isinstance(metadata.get(name), kind) for name, kind in KINDS.items()):
        raise UserError(f"{key}={path} is damaged: its metadata cannot be read")
    check_layout(metadata["sppnet"].get("layout"), f"{key}={path}")
    return OnnxCheckpoint(path, metadata, content)


def sealed(content: bytes) -> bytes:
    """Append a metadata entry with the SHA-256 of the content of an ONNX file.

    A file that is appended to another one is merged with it when it is read.
    """
    return content + _seal(content)


def _seal(content: bytes) -> bytes:
    import onnx  # of an extra

    entry = onnx.StringStringEntryProto(key=DIGEST, value=json.dumps(hashlib.sha256(content).hexdigest()))
    seal: bytes = onnx.ModelProto(metadata_props=[entry]).SerializeToString()
    return seal


def open_session(content: bytes, threads: int, gpu: bool = False, spin: bool = True) -> onnxruntime.InferenceSession:
    """Load the content of an ONNX file into ONNX Runtime, which then logs nothing: what it raises says the same.

    Args:
        content: the content of the file.
        threads: number of CPU threads.
        gpu: whether to run it on a GPU of NVIDIA.
        spin: whether idle threads keep their cores busy, to start sooner.
    """
    import onnxruntime  # of an extra

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spin)))
    providers = ["CUDAExecutionProvider"] * gpu + ["CPUExecutionProvider"]
    return onnxruntime.InferenceSession(content, options, providers=providers)


def require_packages(what: str, names: Sequence[str]) -> None:
    """Raise UserError if a package of the extra `export`, which `what` needs, is not installed."""
    if missing := missing_packages(names):
        raise UserError(
            f"{what} needs {' and '.join(missing)}, not installed here: run uv sync --extra export (a later uv sync"
            " without the extra removes it), or put it on the command: uv run --extra export sppnet ..."
        )


def missing_packages(names: Sequence[str]) -> list[str]:
    return [name for name in names if importlib.util.find_spec(name) is None]


def _is_own(name: str, value: Any) -> bool:
    return name == "_target_" and isinstance(value, str) and not value.startswith(ALLOWED)


def _has_own_class(node: Any) -> bool:
    if isinstance(node, Mapping):
        return any(_is_own(name, value) or _has_own_class(value) for name, value in node.items())
    return isinstance(node, list) and any(map(_has_own_class, node))


def _without_own_classes(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {name: STAND_IN if _is_own(name, value) else _without_own_classes(value) for name, value in node.items()}
    return [_without_own_classes(item) for item in node] if isinstance(node, list) else node
