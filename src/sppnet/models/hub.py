"""Downloads trained weights of timm's networks, which are read as data and never executed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sppnet.errors import UserError
from sppnet.storage.tensors import check_download, read_tensor_file

if TYPE_CHECKING:
    from timm.models import PretrainedCfg

TIMEOUT = 10.0  # seconds until the first answer; the library itself retries for half a minute
NAMES = ("model.safetensors", "pytorch_model.bin")  # of a network's file, the preferred one first


def read_weights(name: str, cfg: PretrainedCfg) -> Mapping[str, torch.Tensor]:
    """Read the state dict of a network of timm, such as `resnet18.a1_in1k`; download it if it is not in the cache.

    Raises:
        UserError: the download fails, or the file is damaged or holds anything but tensors.
    """
    tag = name.partition(".")[2]
    key = f"backbone.weights={tag}"
    repository = str(cfg.hf_hub_id)
    names = (cfg.hf_hub_filename,) if cfg.hf_hub_filename else NAMES
    path = _cached(repository, names) or _download(repository, names, key)
    check_download(path, key)
    state: Any = read_tensor_file(path, key)
    if not isinstance(state, Mapping) or not all(torch.is_tensor(value) for value in state.values()):
        raise UserError(f"{key}: {path} does not hold a state dict")
    return state


def _cached(repository: str, names: tuple[str, ...]) -> Path | None:
    from huggingface_hub import try_to_load_from_cache  # with timm, an optional package

    paths = (try_to_load_from_cache(repository, name) for name in names)
    return next((Path(path) for path in paths if isinstance(path, str)), None)


def _download(repository: str, names: tuple[str, ...], key: str) -> Path:
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError

    problem: Exception = FileNotFoundError(f"{repository} has no file {' or '.join(names)}")
    for name in names:
        try:
            get_hf_file_metadata(hf_hub_url(repository, name), timeout=TIMEOUT)
            return Path(hf_hub_download(repository, name, etag_timeout=TIMEOUT))
        except EntryNotFoundError:
            continue
        except Exception as error:  # of the network, the disk or the library
            problem = error
            break
    reason = str(problem).partition("\n")[0] or type(problem).__name__
    raise UserError(f"{key}: {repository} cannot be downloaded ({reason}); use backbone.weights=FILE") from problem
