import numpy as np
import pytest
from PIL import Image

from sppnet.config.schema import AnyCrop, PaperCrop, RandomResizedCrop
from sppnet.data.crops import EvalRegions, Region, TrainRegions, render

PAPER = PaperCrop(name="paper", positions="random")
FIXED = PaperCrop(name="paper", positions="fixed")
RESIZED = RandomResizedCrop(name="random_resized", scale=[0.35, 1.0], ratio=[0.75, 4 / 3])
SHAPES = [(300, 200), (200, 300), (256, 256), (1, 1), (1, 50), (517, 31)]


def regions(crop: AnyCrop = PAPER, fit: str = "crop", flip: bool = True, color: float = 0.1) -> TrainRegions:
    return TrainRegions(0, fit, crop, 0.875, flip, color)


@pytest.mark.parametrize("crop", [PAPER, RESIZED])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_region_lies_in_the_image_and_is_not_empty(crop: AnyCrop, shape: tuple[int, int]) -> None:
    width, height = shape
    image = Image.new("RGB", shape)
    train_regions = regions(crop)
    for index in range(300):
        left, top, right, bottom = train_regions(index, 0)(width, height).box
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        assert render(image, train_regions(index, 0)(width, height), 8, 8).shape == (3, 8, 8)


def test_the_smaller_input_is_the_same_region_resized_not_a_smaller_crop() -> None:
    gradient = np.linspace(0, 255, 300)[None, :, None] * np.ones((200, 1, 3))
    image = Image.fromarray(gradient.astype(np.uint8))
    for index in range(20):
        region = regions()(index, 3)(300, 200)  # does not depend on the input size
        large, small = (render(image, region, size, size).astype(float) for size in (224, 180))
        assert abs(large.mean() - small.mean()) < 0.5
        for side in (0, -1):  # both cover the region from edge to edge
            assert abs(large[..., side].mean() - small[..., side].mean()) < 1.5


def test_a_region_depends_on_seed_epoch_and_image_only() -> None:
    train_regions = regions()
    assert train_regions(4, 2)(300, 200) == regions()(4, 2)(300, 200)
    assert len({train_regions(index, epoch)(300, 200).box for index in range(10) for epoch in range(10)}) == 100


def test_switching_mirroring_or_colour_off_leaves_the_boxes_alone() -> None:
    for crop in (PAPER, RESIZED):
        for index in range(20):
            plain = regions(crop, flip=False, color=0.0)(index, 0)(300, 200)
            assert plain.box == regions(crop)(index, 0)(300, 200).box
            assert plain == Region(plain.box)


def test_fixed_positions_are_the_centre_and_the_corners_of_the_whole_image() -> None:
    boxes = {regions(FIXED)(index, 0)(300, 200).box for index in range(200)}
    assert boxes == {
        (62.5, 12.5, 237.5, 187.5),
        (0, 0, 175, 175),
        (125, 0, 300, 175),
        (0, 25, 175, 200),
        (125, 25, 300, 200),
    }


def test_random_positions_reach_all_of_the_image() -> None:
    lefts = [regions()(index, 0)(300, 200).box[0] for index in range(2000)]
    assert min(lefts) < 2
    assert max(lefts) > 123
    assert abs(np.mean(lefts) - 62.5) < 3


def test_random_resized_crops_keep_to_their_limits() -> None:
    for index in range(300):
        left, top, right, bottom = regions(RESIZED)(index, 0)(300, 200).box
        assert 0.35 - 1e-9 <= (right - left) * (bottom - top) / 60000 <= 1 + 1e-9
        assert 0.75 - 1e-9 <= (right - left) / (bottom - top) <= 4 / 3 + 1e-9


def test_whole_images_are_whole() -> None:
    assert regions(fit="full")(1, 0)(300, 200).box == (0, 0, 300, 200)
    assert EvalRegions("full", 0.875).region(300, 200).box == (0, 0, 300, 200)
    assert EvalRegions("warp", 0.875).region(300, 200).box == (0, 0, 300, 200)
    assert EvalRegions("center", 0.875).region(300, 200) == Region((62.5, 12.5, 237.5, 187.5))


def test_a_mirrored_region_is_the_mirror_image() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    box = (3.5, 1.0, 33.5, 31.0)
    assert (render(image, Region(box, True), 16, 16) == render(image, Region(box), 16, 16)[:, :, ::-1]).all()


def test_half_of_the_regions_are_mirrored() -> None:
    assert 450 < sum(regions()(index, 0)(300, 200).flip for index in range(1000)) < 550


def test_colour_offsets_have_the_spread_that_alexnet_gives_them() -> None:
    offsets = np.array([regions()(index, 0)(300, 200).offset for index in range(4000)])
    vectors = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
    spread = vectors @ np.diag((0.1 * np.array([0.2175, 0.0188, 0.0045])) ** 2) @ vectors.T
    assert np.allclose(np.cov(offsets.T), spread, rtol=0.1)
    assert np.abs(offsets.mean(0)).max() < 1e-3


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (8, 8)])
@pytest.mark.parametrize("flip", [False, True])
def test_pixels_are_a_writable_copy_at_every_size(shape: tuple[int, int], flip: bool) -> None:
    for image in (Image.new("RGB", (9, 5), "red"), Image.new("RGB", (1, 1))):
        pixels = render(image, Region((0, 0, image.width, image.height), flip), *shape)
        assert pixels.flags.writeable
        assert pixels.transpose(1, 2, 0).flags.c_contiguous
        assert pixels.shape == (3, *shape)


def test_an_image_at_its_own_size_is_unchanged() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    whole = render(Image.fromarray(pixels), Region((0, 0, 30, 20)), 20, 30)
    assert (whole == pixels.transpose(2, 0, 1)).all()
