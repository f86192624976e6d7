"""Views: the windows, at one or more scales, of a test image that the network scores (section 3.1.5)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from sppnet.errors import UserError


class Window(NamedTuple):
    """A square of an image, in pixels; right and bottom are exclusive."""

    left: int
    top: int
    right: int
    bottom: int


@dataclass(frozen=True)
class Views:
    """A multi-view test protocol (`conf/views`).

    Attributes:
        scales: shorter sides of the resized image in pixels, for views of `of` pixels.
        of: the view size that `scales` and `full` refer to; for another view size they are scaled with it.
        positions: 5 for the centre and the corners; 9 adds the middles of the sides.
        mirror: whether every view is also scored mirrored.
        full: the one of `scales` at which the whole image is scored as well; None for none.
        source: what windows are cut from: `map` (the feature map) or `image`.
    """

    scales: tuple[int, ...]
    of: int
    positions: int
    mirror: bool
    full: int | None
    source: str

    @classmethod
    def build(cls, views: Mapping[str, Any]) -> Views | None:
        """The protocol of the config's `views`; None if a test scores one view per image.

        Raises:
            UserError: a scale is smaller than a view, or `full` is none of the scales.
        """
        if views["fit"] != "windows":
            return None
        protocol = cls(*(views[key] for key in ("scales", "of", "positions", "mirror", "full", "source")))
        if min(protocol.scales) < protocol.of:
            raise UserError(
                f"views.scales={list(protocol.scales)} must all be at least views.of={protocol.of}, a view's side"
            )
        if protocol.full is not None and protocol.full not in protocol.scales:
            raise UserError(f"views.full={protocol.full} is not allowed; it takes null or one of views.scales")
        return protocol

    def check_head(self, head: Mapping[str, Any]) -> None:
        """Check that the head of the config's `head` can pool windows of the feature map, if `source` is `map`.

        Raises:
            UserError: it needs a feature map of fixed size, or its pooling rule is not `adaptive`.
        """
        if self.source == "map" and (head["name"] == "flatten" or head.get("rule", "adaptive") != "adaptive"):
            raise UserError(
                "views.source=map pools windows of any shape, as head=spp with head.rule=adaptive and head=gap can;"
                " views.source=image cuts the views out of the pixels"
            )

    def sides(self, size: int) -> list[int]:
        """The shorter sides in pixels of the image at each scale, for views of `size`.

        Raises:
            UserError: two scales round to the same side, so their views would count twice.
        """
        sides = [self._side(scale, size) for scale in self.scales]
        if len(set(sides)) < len(sides):
            raise UserError(
                f"views.scales={list(self.scales)} of views of {self.of} come to sides of {sides} pixels at"
                f" sizes.test={size}; they must differ, or views would count twice"
            )
        return sides

    def full_side(self, size: int) -> int | None:
        """The shorter side at which the whole image is scored; None if it is not."""
        return None if self.full is None else self._side(self.full, size)

    def windows(self, height: int, width: int, size: int) -> list[Window]:
        """The distinct views of an image of `height` x `width` pixels, in reading order, without mirrored ones.

        An image as high as a view has one row of 3 views, not 9: with mirrored ones, 6 of the paper's 96 views.
        """
        across, down = width - size, height - size
        middle = (across // 2, down // 2)
        positions = {(left, top) for left in (0, across) for top in (0, down)} | {middle}
        if self.positions == 9:
            positions |= {(middle[0], top) for top in (0, down)} | {(left, middle[1]) for left in (0, across)}
        return [Window(x, y, x + size, y + size) for y, x in sorted((top, left) for left, top in positions)]

    def _side(self, scale: int, size: int) -> int:
        return max(size, round(scale * size / self.of))
