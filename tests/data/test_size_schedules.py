from collections import Counter
from fractions import Fraction
from math import ceil, floor
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sppnet.config.schema import Sizes
from sppnet.data import build_sizes
from sppnet.data.size_schedules import (
    Alternating,
    Progressive,
    Single,
    Uniform,
    Weighted,
    equal_memory_batch_size,
    rng,
)
from sppnet.errors import UserError

WEIGHTS = st.lists(st.sampled_from([0.1, 0.2, 0.25, 1 / 3, 0.5, 1, 2, 7]), min_size=1, max_size=4)


def weighted(weights: list[float]) -> Weighted:
    sizes = [224, 180, 96, 300][: len(weights)]
    return Weighted(sizes, [224], [224], weights)


def test_alternating_gives_each_size_a_full_epoch_in_turn() -> None:
    schedule = Alternating([224, 180, 200], [224], [224])
    assert [schedule.size_at(0, epoch) for epoch in range(7)] == [224, 180, 200, 224, 180, 200, 224]
    assert schedule.epoch_sizes(0, 1, 5, "") == [180] * 5


def test_uniform_draws_every_size_both_ends_included_and_equally_often() -> None:
    schedule = Uniform([180, 224], [224], [224])
    counts = Counter(schedule.size_at(7, epoch) for epoch in range(9000))
    assert set(counts) == set(range(180, 225)) == set(schedule.sizes)
    assert all(130 < count < 280 for count in counts.values())  # 200 expected, standard deviation 14


def test_uniform_depends_on_seed_and_epoch_alone() -> None:
    first, second = (Uniform([180, 224], [224], [224]) for _ in range(2))
    assert [first.size_at(3, e) for e in range(50)] == [second.size_at(3, e) for e in reversed(range(50))][::-1]
    assert [first.size_at(3, e) for e in range(50)] != [first.size_at(4, e) for e in range(50)]


@given(st.integers(8, 300), st.integers(0, 200), st.integers(1, 40), st.integers(1, 64))
def test_progressive_grows_evenly_and_ends_with_the_highest_size(low: int, growth: int, epochs: int, step: int) -> None:
    """Each size is the smallest on the grid of steps below the highest one that is on or above the line."""
    high = low + growth
    if 0 < growth < step:
        with pytest.raises(
            ValueError, match=f"step={step}: must be at most the difference between the sizes, {growth}"
        ):
            Progressive([low, high], [high], [high], epochs, step)
        return
    schedule = Progressive([low, high], [high], [high], epochs, step)
    sizes = [schedule.size_at(7, epoch) for epoch in range(epochs)]
    line = [low + Fraction(growth * epoch, epochs - 1) if epochs > 1 else Fraction(high) for epoch in range(epochs)]
    for size, wanted in zip(sizes, line, strict=True):
        assert wanted <= size < wanted + step
        assert (high - size) % step == 0
        assert low <= size <= high
    assert sizes == sorted(sizes)
    assert sizes[-1] == schedule.size_at(7, epochs + 5) == high
    assert schedule.sizes == tuple(sorted(set(sizes)))


@settings(max_examples=150, deadline=None)
@given(WEIGHTS, st.integers(1, 3000), st.integers(1, 64), st.integers(0, 5))
def test_weighted_epochs_hold_all_samples_and_share_batches_by_weight(
    weights: list[float], samples: int, nominal: int, epoch: int
) -> None:
    schedule = weighted(weights)
    batches = schedule.batches(samples, nominal)
    sizes = schedule.epoch_sizes(1, epoch, batches, "")
    assert len(sizes) == batches <= samples
    assert sum(schedule.batch_size(size, nominal) for size in sizes) >= samples
    counts, exact = Counter(sizes), [Fraction(str(weight)) for weight in weights]
    for size, weight in zip(schedule.train, exact, strict=True):
        share = batches * weight / sum(exact)
        assert floor(share) <= counts[size] <= ceil(share)


@settings(max_examples=60, deadline=None)
@given(WEIGHTS, st.integers(1, 2000), st.integers(1, 32))
def test_weighted_takes_the_fewest_batches_that_suffice_for_every_draw(
    weights: list[float], samples: int, nominal: int
) -> None:
    schedule = weighted(weights)
    capacities = [schedule.batch_size(size, nominal) for size in schedule.train]
    fewer = schedule.batches(samples, nominal) - 1
    draws = [Fraction(k, 997) for k in range(997)]
    totals = [
        sum(count * capacity for count, capacity in zip(schedule._counts(fewer, u), capacities, strict=True))
        for u in draws
    ]
    assert fewer == 0 or schedule._smallest_capacity(fewer, capacities) < samples
    assert schedule._smallest_capacity(fewer, capacities) <= min(totals)


def test_weighted_sizes_come_in_a_new_order_each_epoch() -> None:
    schedule = weighted([1, 1])
    assert schedule.epoch_sizes(0, 0, 40, "") != schedule.epoch_sizes(0, 1, 40, "")
    assert schedule.epoch_sizes(0, 0, 40, "a") != schedule.epoch_sizes(0, 0, 40, "b")


@pytest.mark.parametrize("size", range(16, 400, 7))
def test_an_equal_memory_batch_takes_no_more_memory_than_the_nominal_one(size: int) -> None:
    batch = equal_memory_batch_size(64, size, 224)
    assert batch == 1 or batch * size**2 <= 64 * 224**2 < (batch + 1) * size**2


def test_streams_depend_on_every_part_of_the_key() -> None:
    keys: list[tuple[int | str, ...]] = [(1, 23, "a"), (12, 3, "a"), (1, 23, "b"), (1, 23), (1, 2, 3, "a")]
    assert len({int(rng(*key).integers(2**62)) for key in keys}) == len(keys)
    assert rng(1, 2, "a").random() == rng(1, 2, "a").random()


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("Single", {"train": [224, 180]}, "one size"),
        ("Single", {"train": []}, "sizes.train=[]"),
        ("Single", {"train": [0]}, "0 is not a size"),
        ("Single", {"train": [2.5]}, "2.5 is not a size"),
        ("Single", {"train": [True]}, "True is not a size"),
        ("Single", {"train": 224}, "sizes.train=224"),
        ("Single", {"train": [224], "test": [224, 224]}, "sizes.test=[224, 224]: a size is listed twice"),
        ("Uniform", {"train": [224, 180]}, "lowest and the highest"),
        ("Uniform", {"train": [180, 200, 224]}, "lowest and the highest"),
        ("Weighted", {"train": [224, 180], "weights": [1]}, "one positive number per size"),
        ("Weighted", {"train": [224, 180], "weights": [1, 0]}, "one positive number per size"),
        ("Weighted", {"train": [224, 180], "weights": [1, float("nan")]}, "one positive number per size"),
        ("Weighted", {"train": [224, 224], "weights": [1, 1]}, "listed twice"),
        ("Weighted", {"train": [224]}, "weights"),
    ],
)
def test_an_invalid_schedule_is_refused_in_one_line(name: str, values: dict[str, Any], message: str) -> None:
    """The schema refuses some of these values as well, but not if a program builds the schedule."""
    valid = Sizes(_target_=f"sppnet.data.{name}", train=[224], val=[224], test=[224])
    with pytest.raises(UserError) as caught:
        build_sizes(valid.model_copy(update=values))
    assert message in str(caught.value)
    assert str(caught.value).startswith("sizes")
    assert "\n" not in str(caught.value)


def test_a_class_that_is_no_schedule_is_refused() -> None:
    with pytest.raises(UserError, match="SizeSchedule"):
        build_sizes(Sizes(_target_="sppnet.data.Digits", train=[224], val=[224], test=[224]))


def test_single_offers_its_one_size_to_the_network_check() -> None:
    assert Single([224], [224], [256]).sizes == (224,)
