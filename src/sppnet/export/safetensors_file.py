"""Writes the weights of a checkpoint as a safetensors file, with everything that rebuilds the network in its header."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from sppnet.errors import RunFailed, UserError
from sppnet.runs.model_metadata import to_text
from sppnet.storage.safetensors_files import DIGEST, content_digest


def build_safetensors(state_dict: Mapping[str, Any], metadata: Mapping[str, Any]) -> bytes:
    """Return the content of the file, after it has been read back and compared with the state dict to the bit.

    The same checkpoint gives the same bytes.

    Args:
        state_dict: that of the checkpoint; the file has the same keys, shapes and dtypes.
        metadata: see `sppnet.runs.model_metadata.describe`.

    Raises:
        UserError: an entry of the state dict is not a tensor, or the format has no such tensors.
        RunFailed: what is read back differs.
    """
    others = sorted(name for name, value in state_dict.items() if not isinstance(value, Tensor))
    if others:
        raise UserError(f"a safetensors file holds only tensors, and {others[0]} of the checkpoint is none")
    try:
        # clones: the format has no two names for one tensor
        content = save({name: value.detach().contiguous().clone() for name, value in state_dict.items()})
    except Exception as error:  # of the library, such as for a sparse tensor
        raise UserError(f"a tensor of the checkpoint does not fit into a safetensors file ({error})") from error
    content = _with_header(content, to_text(metadata))
    copies = load(content)
    differing = [name for name in state_dict if not _same_bits(copies.get(name), state_dict[name])]
    if differing or copies.keys() != state_dict.keys():
        raise RunFailed(f"the file differs from the checkpoint when it is read back ({', '.join(differing[:5])})")
    return content


def _with_header(content: bytes, entries: Mapping[str, str]) -> bytes:
    """Put text into the header of a file without any. The library would write the entries in random order."""
    length = int.from_bytes(content[:8], "little")
    tensors, header = content[8 + length :], json.loads(content[8 : 8 + length])
    entries = {"format": "pt", **entries}
    entries[DIGEST] = content_digest(entries, header, tensors)
    text = json.dumps({"__metadata__": entries, **header}).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of 8 bytes
    return len(text).to_bytes(8, "little") + text + tensors


def _same_bits(copy: Tensor | None, value: Tensor) -> bool:
    if copy is None or copy.dtype != value.dtype or copy.shape != value.shape:
        return False
    first, second = (tensor.detach().contiguous().reshape(-1).view(torch.uint8) for tensor in (copy, value))
    return torch.equal(first, second)
