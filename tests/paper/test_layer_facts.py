"""The paper's facts about the layer: the bins of its training formula (section 2.3) against those of Appendix A."""

import pytest
import torch

from sppnet import SpatialPyramidPool2d
from sppnet.pyramid import bin_edges

# Map side a -> level n -> (window ceil(a/n), stride floor(a/n), number of bins). ZF-5 has 13 cells at 224 pixels and 10
# at 180, Overfeat 18 at 224.
TRAINING_FORMULA = {
    10: {6: (2, 1, 9), 4: (3, 2, 4), 3: (4, 3, 3), 2: (5, 5, 2), 1: (10, 10, 1)},
    11: {6: (2, 1, 10), 4: (3, 2, 5), 3: (4, 3, 3), 2: (6, 5, 2), 1: (11, 11, 1)},
    12: {6: (2, 2, 6), 4: (3, 3, 4), 3: (4, 4, 3), 2: (6, 6, 2), 1: (12, 12, 1)},
    13: {6: (3, 2, 6), 4: (4, 3, 4), 3: (5, 4, 3), 2: (7, 6, 2), 1: (13, 13, 1)},
    14: {6: (3, 2, 6), 4: (4, 3, 4), 3: (5, 4, 3), 2: (7, 7, 2), 1: (14, 14, 1)},
    15: {6: (3, 2, 7), 4: (4, 3, 4), 3: (5, 5, 3), 2: (8, 7, 2), 1: (15, 15, 1)},
    18: {6: (3, 3, 6), 4: (5, 4, 4), 3: (6, 6, 3), 2: (9, 9, 2), 1: (18, 18, 1)},
}
CASES = [(side, n, *facts) for side, levels in TRAINING_FORMULA.items() for n, facts in levels.items()]


@pytest.mark.parametrize(("side", "n", "window", "stride", "count"), CASES)
def test_the_sliding_rule_is_the_training_formula_and_is_refused_where_that_breaks(
    side: int, n: int, window: int, stride: int, count: int
) -> None:
    x = torch.randn(1, 1, side, side, generator=torch.Generator().manual_seed(side))
    expected = torch.nn.functional.max_pool2d(x, window, stride)
    assert expected.shape[-1] == count
    layer = SpatialPyramidPool2d([n], rule="sliding")
    if count == n:
        assert torch.equal(layer(x), expected.flatten(1))
    else:
        with pytest.raises(
            ValueError, match=f"{side} cells to {n} bins: windows of {window} at stride {stride} make {count}"
        ):
            layer(x)


@pytest.mark.parametrize(("side", "levels"), [(13, (6, 4, 3, 2, 1)), (10, (3, 2, 1)), (18, (6, 3, 2, 1))])
def test_training_formula_and_appendix_a_agree_on_the_paper_s_own_maps(side: int, levels: tuple[int, ...]) -> None:
    assert all(bin_edges(side, n, "sliding") == bin_edges(side, n) for n in levels)


def test_both_formulas_agree_exactly_where_the_side_leaves_a_remainder_of_0_or_1() -> None:
    for side in range(1, 100):
        for n in range(1, side + 1):
            try:
                agree = bin_edges(side, n, "sliding") == bin_edges(side, n)
            except ValueError:
                agree = False
            assert agree == (side % n in (0, 1)), (side, n)


def test_the_default_pools_both_training_sizes_to_the_paper_s_vector() -> None:
    for bins, channels, length in [
        ((6, 3, 2, 1), 256, 12_800),
        ((4, 3, 2, 1), 256, 7_680),
        ((6, 3, 2, 1), 512, 25_600),
    ]:
        layer = SpatialPyramidPool2d(bins)
        assert {layer(torch.zeros(1, channels, side, side)).shape[1] for side in (10, 11, 12, 13)} == {length}


def test_the_rules_break_where_the_docstring_says() -> None:
    for side, n in [(13, 6), (9, 6)]:
        with pytest.raises(ValueError, match="holds only padding"):
            bin_edges(side, n, "padded")
    assert [end - start for start, end in bin_edges(10, 6, "padded")] == [1, 2, 2, 2, 2, 1]
    assert bin_edges(14, 6, "sliding")[-1][1] == 13
