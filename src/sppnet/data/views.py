"""Views: the windows of a test image, at one or more scales, that the network scores (section 3.1.5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from sppnet.config.schema import AnyPooling, AnyViews, Pooling, Windows
from sppnet.errors import UserError


class Window(NamedTuple):
    """A square window of an image, in pixels; right and bottom are exclusive."""

    left: int
    top: int
    right: int
    bottom: int


@dataclass(frozen=True)
class Views:
    """A multi-view test protocol (`conf/views`).

    Attributes:
        scales: shorter sides of the resized image in pixels, for views of `base_size` pixels.
        base_size: the view size, in pixels, to which `scales` and `full` refer. For other sizes, both are scaled in
            proportion.
        positions: 5 for the centre and the corners; 9 adds the middles of the sides.
        mirror: whether to score the mirror image of every view as well.
        full: one of `scales`, at which to score the whole image as well; None to score only windows.
        source: `map` to cut the windows out of the feature map, or `image` to cut them out of the image.
    """

    scales: tuple[int, ...]
    base_size: int
    positions: int
    mirror: bool
    full: int | None
    source: str

    @classmethod
    def build(cls, views: AnyViews) -> Views | None:
        """The protocol that the config's `views` describes; None if it scores only one view per image.

        Raises:
            UserError: a scale is smaller than a view, or `full` is not one of the scales.
        """
        if not isinstance(views, Windows):
            return None
        protocol = cls(tuple(views.scales), views.base_size, views.positions, views.mirror, views.full, views.source)
        if min(protocol.scales) < protocol.base_size:
            raise UserError(
                f"views.scales={list(protocol.scales)} must all be at least views.base_size={protocol.base_size}, the"
                " side of a view"
            )
        if protocol.full is not None and protocol.full not in protocol.scales:
            raise UserError(f"views.full={protocol.full} is not allowed; it must be null or one of views.scales")
        return protocol

    def check_pooling(self, pooling: AnyPooling) -> None:
        """If `source` is `map`, check that `pooling` can pool windows of the feature map.

        A class of the user's own is tried on maps instead (`sppnet.models.fit_check.check_network`).

        Raises:
            UserError: it needs a feature map of fixed size, or its rule is not `adaptive`.
        """
        if self.source == "map" and isinstance(pooling, Pooling) and not pooling.takes_any_shape:
            raise UserError(
                "views.source=map needs a layer that can pool windows of any shape, such as pooling=gap, or pooling=spp"
                " with pooling.rule=adaptive; views.source=image cuts the views out of the image instead"
            )

    def sides(self, size: int) -> list[int]:
        """The shorter side of the image, in pixels, at each scale for views of `size` pixels.

        Raises:
            UserError: two scales round to the same side, so their views would count twice.
        """
        sides = [self._side(scale, size) for scale in self.scales]
        if len(set(sides)) < len(sides):
            raise UserError(
                f"at sizes.test={size}, views.scales={list(self.scales)} (relative to views.base_size={self.base_size})"
                f" round to image sides of {', '.join(map(str, sides))} pixels; two scales of the same side would count"
                " the same views twice"
            )
        return sides

    def full_side(self, size: int) -> int | None:
        """The shorter side, in pixels, at which the whole image is scored; None if it is not scored."""
        return None if self.full is None else self._side(self.full, size)

    def windows(self, height: int, width: int, size: int) -> list[Window]:
        """The distinct windows of an image of `height` x `width` pixels, in reading order, without mirror images.

        If only the shorter side of the image equals a view's side, there are 3 windows (one row or column), not 9.
        Together with their mirror images, these are 6 of the paper's 96 views.
        """
        across, down = width - size, height - size
        middle = (across // 2, down // 2)
        positions = {(left, top) for left in (0, across) for top in (0, down)} | {middle}
        if self.positions == 9:
            positions |= {(middle[0], top) for top in (0, down)} | {(left, middle[1]) for left in (0, across)}
        return [Window(x, y, x + size, y + size) for y, x in sorted((top, left) for left, top in positions)]

    def _side(self, scale: int, size: int) -> int:
        return max(size, round(scale * size / self.base_size))
