"""Seeds the global random generators, from which dropout, torchvision's transforms and users' classes draw."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b

import numpy as np
import torch


def seed_generators(*key: int | str) -> int:
    """Seed the generators of torch (on the CPU), Python and NumPy from `key` alone. Returns the seed, below 2**64."""
    seed = int.from_bytes(blake2b(repr(key).encode(), digest_size=8).digest(), "little")
    # torch.manual_seed would also record a stack trace for each kind of device that is not in use (a millisecond a
    # step, and kept in memory).
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    return seed


@contextmanager
def preserved_generators() -> Iterator[None]:
    """Restore the states of these generators at the end of a block. This takes 0.1 ms, mostly for NumPy's."""
    torch_state, python_state, numpy_state = torch.get_rng_state(), random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        torch.set_rng_state(torch_state)
        random.setstate(python_state)
        np.random.set_state(numpy_state)
