"""Views: which windows of which scales of an image a test scores (paper, section 3.1.5)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from sppnet.errors import UserError


class Window(NamedTuple):
    """A square of an image, in pixels; right and bottom exclusive."""

    left: int
    top: int
    right: int
    bottom: int


@dataclass(frozen=True)
class Views:
    """A protocol, as `conf/views` describes it.

    Attributes:
        scales: shorter sides of the resized image, in pixels, for views of `of` pixels.
        of: the view size that `scales` and `full` are given for; at other sizes they grow or shrink along.
        positions: 5 for the centre and the corners, 9 for the middles of the sides too.
        mirror: whether every view is scored mirrored as well.
        full: of the scales, the one at which the whole image is scored as well; None: at none.
        source: `map` or `image`.
    """

    scales: tuple[int, ...]
    of: int
    positions: int
    mirror: bool
    full: int | None
    source: str

    @classmethod
    def build(cls, views: Mapping[str, Any]) -> Views | None:
        """What the configuration `views` describes; None if it shows one view only.

        Raises:
            UserError: a scale is too small for a view, or the whole image has a scale of its own.
        """
        if views["fit"] != "windows":
            return None
        made = cls(*(views[key] for key in ("scales", "of", "positions", "mirror", "full", "source")))
        if min(made.scales) < made.of:
            raise UserError(f"views.scales={list(made.scales)} must all be at least views.of={made.of}, a view's side")
        if made.full is not None and made.full not in made.scales:
            raise UserError(f"views.full={made.full} is not allowed; it takes null or one of views.scales")
        return made

    def check_head(self, head: Mapping[str, Any]) -> None:
        """Check that the configuration `head` can pool windows of a map, if that is what is scored.

        Raises:
            UserError: it takes maps of one size, or pools by another rule than `adaptive`.
        """
        if self.source == "map" and (head["name"] == "flatten" or head.get("rule", "adaptive") != "adaptive"):
            raise UserError(
                "views.source=map pools windows of any shape, as head=spp with head.rule=adaptive and head=gap can;"
                " views.source=image cuts the views out of the pixels"
            )

    def sides(self, size: int) -> list[int]:
        """The shorter sides, in pixels, of the image at each scale, for views of `size`.

        Raises:
            UserError: two scales come to the same side, whose views would count twice.
        """
        sides = [self._side(scale, size) for scale in self.scales]
        if len(set(sides)) < len(sides):
            raise UserError(
                f"views.scales={list(self.scales)} of views of {self.of} come to sides of {sides} pixels at"
                f" sizes.test={size}; they must differ, or views would count twice"
            )
        return sides

    def full_side(self, size: int) -> int | None:
        """The shorter side at which the whole image is scored."""
        return None if self.full is None else self._side(self.full, size)

    def windows(self, height: int, width: int, size: int) -> list[Window]:
        """The distinct views of an image of `height` x `width` pixels, in reading order, mirrored ones not counted.

        Where the image is as high as a view there is one row of them: 3, not 9 (the paper's 6 of 96, both sides).
        """
        across, down = width - size, height - size
        middle = (across // 2, down // 2)
        places = {(left, top) for left in (0, across) for top in (0, down)} | {middle}
        if self.positions == 9:
            places |= {(middle[0], top) for top in (0, down)} | {(left, middle[1]) for left in (0, across)}
        return [Window(x, y, x + size, y + size) for y, x in sorted((top, left) for left, top in places)]

    def _side(self, scale: int, size: int) -> int:
        return max(size, round(scale * size / self.of))
