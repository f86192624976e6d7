"""The quick tier has some of the cases of a long list, and the slow tier the others."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def some_quick(cases: Iterable[Any], every: int = 3) -> list[Any]:
    """Mark all cases but each `every`th as slow, beginning with the first. A tuple is a case of several arguments."""
    return [
        pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow if i % every else ())
        for i, case in enumerate(cases)
    ]
