import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sppnet.data.aspect_buckets import MAX_ASPECT, Bucket, shape_buckets, square_bucket
from sppnet.data.balanced_sampling import group_by_class
from sppnet.data.batch_samplers import EvalBatchSampler, Item, TrainBatchSampler, balanced_cuts
from sppnet.data.size_schedules import Alternating, EpochSchedule, Single, SizeSchedule, Uniform, Weighted, rng
from sppnet.data.splits import IntArray
from sppnet.errors import UserError

SCHEDULES: list[SizeSchedule] = [
    Single([48], [48], [48]),
    Alternating([48, 40], [48], [48]),
    Uniform([40, 48], [48], [48]),
    Weighted([48, 40, 90], [48], [48], [0.5, 0.25, 0.25]),
]
schedules = st.sampled_from(SCHEDULES)


def make_buckets(samples: int, world: int, full: bool) -> list[Bucket]:
    members = np.arange(samples, dtype=np.int64) * 3 + 1  # the indices of a part are not 0 to n - 1
    if not full:
        return square_bucket(members)
    shapes = np.random.default_rng(samples).integers(20, 60, (3 * samples + 2, 2))
    return shape_buckets(members, shapes, 0.25, world)


def all_ranks(
    buckets: Sequence[Bucket], schedule: SizeSchedule, batch: int, world: int, taken: int
) -> list[list[list[Item]]]:
    return [list(TrainBatchSampler(buckets, schedule, batch, 5, rank, world, lambda: taken)) for rank in range(world)]


class Own(EpochSchedule):
    """Gives what `sizes_of` makes of an epoch and the sizes in `train`."""

    def __init__(self, sizes_of: Callable[[int, list[int]], Any]) -> None:
        super().__init__([24, 32], [24], [24])
        self.sizes_of, self.left = sizes_of, list(self.train)

    def size_at(self, seed: int, epoch: int) -> int:
        size: int = self.sizes_of(epoch, self.left)
        return size


class Few(Own):
    def batches(self, samples: int, nominal: int) -> int:
        return 2


class Nothing(Own):
    def batches(self, samples: int, nominal: int) -> int:
        return 0


class Half(Own):
    def batches(self, samples: int, nominal: int) -> Any:
        return samples / 2


class Short(Own):
    def epoch_sizes(self, seed: int, epoch: int, batches: int, stream: str) -> list[int]:
        return list(self.train)


def check(kind: Callable[..., SizeSchedule], *arguments: Any) -> None:
    TrainBatchSampler(square_bucket(np.arange(60)), kind(*arguments), 8, 5).check_schedule(kind(*arguments), 4)


@pytest.mark.parametrize(
    ("kind", "sizes_of", "message"),
    [
        (Own, lambda epoch, sizes: sizes[epoch], "Own raises IndexError in epoch 2"),
        (Own, lambda epoch, sizes: sizes[0] * 1.0, "Own raises TypeError in epoch 0: 'float'"),
        (Own, lambda epoch, sizes: None, "Own raises TypeError in epoch 0"),
        (Own, lambda epoch, sizes: 36, "Own in epoch 0: the size 36 is not among its `sizes`, 24, 32"),
        (
            Own,
            lambda epoch, sizes: sizes.pop() if len(sizes) > 1 else sizes[0],
            "does not always give epoch 3 the same",
        ),
        (Own, lambda epoch, sizes: random.choice(sizes), "does not always give epoch . the same"),
        (Short, None, "Short in epoch 0: epoch_sizes returns 2 sizes for 8 batches"),
        (Few, lambda epoch, sizes: 24, "Few in epoch 0: 2 batches hold 16 of 60 images; see its `batches`"),
        (Half, lambda epoch, sizes: 24, "Half raises TypeError in batches"),
        (Nothing, lambda epoch, sizes: 24, "Nothing.batches must return at least 1"),
    ],
)
def test_a_schedule_of_ones_own_that_cannot_be_resumed_is_refused(kind: type[Own], sizes_of: Any, message: str) -> None:
    random.seed(3)
    with pytest.raises(UserError, match=message):
        check(kind, sizes_of)


def test_a_schedule_may_draw_from_its_key_and_with_numpy() -> None:
    check(Own, lambda epoch, sizes: rng(epoch).choice(sizes))
    [item, *_] = next(iter(TrainBatchSampler(square_bucket(np.arange(9)), Own(lambda _, s: np.int64(s[0])), 4, 5)))
    assert type(item.size) is int
    for schedule in SCHEDULES:
        check(lambda schedule=schedule: schedule)


@settings(max_examples=120, deadline=None)
@given(st.integers(4, 150), st.integers(1, 40), st.integers(1, 4), st.booleans(), schedules, st.integers(0, 5))
def test_an_epoch_shows_each_sample_once_and_ranks_agree_on_every_shape(
    samples: int, batch: int, world: int, full: bool, schedule: SizeSchedule, epoch: int
) -> None:
    buckets = make_buckets(samples, world, full)
    length = len(TrainBatchSampler(buckets, schedule, batch, 5, 0, world))
    ranks = all_ranks(buckets, schedule, batch, world, epoch * length)
    for step in zip(*ranks, strict=True):  # strict: as many batches on every rank
        assert len({len(items) for items in step}) == 1
        assert len({item.shapes for items in step for item in items}) == 1
        assert step[0]
    counts = Counter(item.index for rank in ranks for items in rank for item in items)
    assert set(counts.values()) == {1}
    assert len(counts) == sum(len(bucket.members) // world * world for bucket in buckets)
    assert counts.keys() <= {index for bucket in buckets for index in bucket.members.tolist()}
    assert len(ranks[0]) == length  # whatever the epoch
    assert all(item.valid and item.epoch == epoch for rank in ranks for items in rank for item in items)


@settings(max_examples=120, deadline=None)
@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=8),
    st.integers(1, 40),
    st.integers(1, 3),
    schedules,
    st.integers(0, 5),
    st.booleans(),
)
def test_a_balanced_epoch_levels_classes_and_images_and_is_otherwise_like_a_uniform_one(
    sizes: list[int], batch: int, world: int, schedule: SizeSchedule, epoch: int, paired: bool
) -> None:
    labels = np.random.default_rng(sum(sizes)).permutation(np.repeat(np.arange(len(sizes)) * 2, sizes))
    members = np.arange(len(labels)) * 3 + 1
    label_of = dict(zip(members.tolist(), labels.tolist(), strict=True))
    pairs = schedule.sizes if paired else ()
    assume(len(members) >= world * (2 if paired else 1))

    def ranks(taken: int, classes: list[IntArray] | None) -> list[list[list[Item]]]:
        samplers = [
            TrainBatchSampler(square_bucket(members), schedule, batch, 5, rank, world, lambda: taken, pairs, classes)
            for rank in range(world)
        ]
        assert {len(sampler) for sampler in samplers} == {length}
        return [list(sampler) for sampler in samplers]

    length = len(TrainBatchSampler(square_bucket(members), schedule, batch, 5, 0, world, pairs=pairs))
    classes = group_by_class(members, labels)
    balanced, uniform = ranks(epoch * length, classes), ranks(epoch * length, None)
    assert [[(len(items), items[0].shapes) for items in rank] for rank in balanced] == [
        [(len(items), items[0].shapes) for items in rank] for rank in uniform
    ]
    drawn = [(item.index, item.draw) for rank in balanced for items in rank for item in items]
    images = Counter(index for index, _ in drawn)
    assert sorted(drawn) == sorted((index, draw) for index, count in images.items() for draw in range(count))
    of_classes = Counter(label_of[index] for index, _ in drawn)
    assert max(of_classes.values()) - min(of_classes[label] for label in label_of.values()) <= 1
    for members_of_class in classes:
        counts = [images[index] for index in members_of_class.tolist()]
        assert max(counts) - min(counts) <= 1
    rest = ranks(epoch * length + length // 2, classes)
    assert rest == [rank[length // 2 :] for rank in balanced]


def test_which_classes_and_images_a_balanced_epoch_has_more_of_is_drawn() -> None:
    members, labels = np.arange(40), np.repeat([0, 1, 2], [20, 17, 3])
    classes = group_by_class(members, labels)

    def epoch(number: int, seed: int = 0) -> list[int]:
        sampler = TrainBatchSampler(
            square_bucket(members), SCHEDULES[0], 8, seed, taken=lambda: 5 * number, classes=classes
        )
        return [item.index for items in sampler for item in items]

    larger = {int(np.bincount(labels[epoch(number)]).argmax()) for number in range(20)}
    assert larger == {0, 1, 2}
    assert {index for number in range(20) for index in epoch(number)} == set(range(40))
    assert len({tuple(epoch(number, seed)) for number in range(3) for seed in range(3)}) == 9


@settings(max_examples=60, deadline=None)
@given(st.integers(4, 120), st.integers(1, 30), st.booleans(), schedules, st.integers(0, 400))
def test_a_resumed_run_gets_exactly_the_remaining_batches(
    samples: int, batch: int, full: bool, schedule: SizeSchedule, taken: int
) -> None:
    buckets = make_buckets(samples, 1, full)
    length = len(TrainBatchSampler(buckets, schedule, batch, 5))
    epoch, start = divmod(taken, length)
    (whole,) = all_ranks(buckets, schedule, batch, 1, epoch * length)
    (rest,) = all_ranks(buckets, schedule, batch, 1, taken)
    assert rest == whole[start:]


def test_the_position_in_the_epoch_is_read_when_the_iterator_is_created() -> None:
    taken = 3
    batches = TrainBatchSampler(square_bucket(np.arange(100)), SCHEDULES[0], 10, 0, taken=lambda: taken)
    iterator = iter(batches)
    taken = 9
    assert len(list(iterator)) == 7


@settings(max_examples=60, deadline=None)
@given(st.integers(4, 200), st.integers(1, 40), st.booleans(), schedules)
def test_no_batch_exceeds_its_memory_and_batch_sizes_are_even(
    samples: int, batch: int, full: bool, schedule: SizeSchedule
) -> None:
    buckets = make_buckets(samples, 1, full)
    (batches,) = all_ranks(buckets, schedule, batch, 1, 0)
    for items in batches:
        ((height, width),) = items[0].shapes
        pixels = height * width
        base = schedule.train[0] if isinstance(schedule, Weighted) else min(height, width)
        assert len(items) == 1 or len(items) * pixels <= batch * base**2 * 1.05  # 5 %: the longer side is rounded
    if not full and not isinstance(schedule, Weighted):
        counts = {len(items) for items in batches}
        assert max(counts) - min(counts) <= 1


def test_order_depends_on_the_seed_and_on_the_epoch() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        batches = TrainBatchSampler(square_bucket(np.arange(64)), SCHEDULES[0], 8, seed, taken=lambda: 8 * epoch)
        return [item.index for items in batches for item in items]

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


@settings(max_examples=120, deadline=None)
@given(st.integers(1, 150), st.integers(1, 40), st.integers(1, 5), st.booleans())
def test_evaluation_counts_every_image_once_over_all_ranks(samples: int, batch: int, world: int, full: bool) -> None:
    buckets = make_buckets(samples, 1, full)
    ranks = [list(EvalBatchSampler(buckets, 48, [48], batch, rank, world)) for rank in range(world)]
    assert {len(rank) for rank in ranks} == {len(EvalBatchSampler(buckets, 48, [48], batch, 0, world))}
    for step in zip(*ranks, strict=True):
        assert len({len(items) for items in step}) == 1
        assert len({item.shapes for items in step for item in items}) == 1
    counted = Counter(item.index for rank in ranks for items in rank for item in items if item.valid)
    assert counted == Counter(index for bucket in buckets for index in bucket.members.tolist())
    shapes = [width / height for items in ranks[0] for height, width in items[0].shapes]
    assert shapes == sorted(shapes)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=30), st.data())
def test_cuts_fill_batches_evenly_within_their_room(room: list[int], data: st.DataObject) -> None:
    samples = data.draw(st.integers(len(room), sum(room)))
    parts = np.diff([0, *balanced_cuts(samples, room)])
    assert parts.sum() == samples
    assert all(1 <= part <= r for part, r in zip(parts, room, strict=True))


def test_buckets_hold_each_image_and_keep_its_aspect_ratio_to_half_a_step() -> None:
    shapes = np.array([(h, w) for h in range(20, 90, 3) for w in range(20, 90, 7)])
    members = np.arange(len(shapes))
    buckets = shape_buckets(members, shapes, 0.125)
    assert sorted(np.concatenate([bucket.members for bucket in buckets])) == members.tolist()
    for bucket in buckets:
        height, width = bucket.shape(480)
        for index in bucket.members:
            h, w = shapes[index]
            assert min(height, width) == 480
            assert (w > h) <= (width >= height)
            assert abs(max(height, width) / 480 - min(max(h, w) / min(h, w), MAX_ASPECT)) <= 0.0625 + 1 / 480


@pytest.mark.parametrize("step", [0.125, 0.3, 7.0])
def test_no_image_makes_an_input_longer_than_the_cap(step: float) -> None:
    shapes = np.array([(1, 3000), (3000, 1), (40, 160), (40, 165), (40, 40), (0, 0)])
    buckets = shape_buckets(np.arange(6), shapes, step)
    assert sorted(np.concatenate([bucket.members for bucket in buckets])) == list(range(6))
    assert all(max(bucket.shape(224)) <= MAX_ASPECT * 224 for bucket in buckets)
    (wide,) = (bucket for bucket in buckets if 0 in bucket.members)
    assert 3 in wide.members  # all long images share one squeezed shape
    assert wide.shape(224) == (224, MAX_ASPECT * 224)


STEP = 0.25


def steps(aspect: float) -> float:
    """An aspect on a linear scale of rounding steps: landscape above 0, portrait below."""
    return (aspect - 1 if aspect >= 1 else 1 - 1 / aspect) / STEP


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(20, 80), st.integers(20, 80)), min_size=1, max_size=120), st.integers(1, 12))
def test_a_rare_shape_joins_another_at_most_two_steps_away_or_stays(sides: list[tuple[int, int]], few: int) -> None:
    shapes, members = np.array(sides), np.arange(len(sides))
    own = {i: bucket.aspect for bucket in shape_buckets(members, shapes, STEP) for i in bucket.members.tolist()}
    buckets = shape_buckets(members, shapes, STEP, merge_below=few)
    assert sorted(np.concatenate([bucket.members for bucket in buckets])) == members.tolist()
    for bucket in buckets:
        moved = [i for i in bucket.members.tolist() if own[i] != bucket.aspect]
        assert len(moved) == bucket.stretched
        assert all(abs(steps(own[i]) - steps(bucket.aspect)) <= 2 + 1e-6 for i in moved)
        if len(bucket.members) < few:  # no other bucket is near enough
            away = [b.aspect for b in buckets if b is not bucket]
            assert all(any(abs(steps(own[i]) - steps(a)) > 2 for i in bucket.members.tolist()) for a in away)


def test_a_lone_square_joins_a_portrait_and_a_panorama_stays_alone() -> None:
    shapes = np.array([(40, 40)] + [(50, 40)] * 30 + [(40, 50)] * 20 + [(20, 80)])
    buckets = shape_buckets(np.arange(52), shapes, 0.125, merge_below=8)
    assert [(round(b.aspect, 3), len(b.members), b.stretched) for b in buckets] == [
        (0.8, 31, 1),  # the portraits are as near as the landscapes
        (1.25, 20, 0),
        (4.0, 1, 0),
    ]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(4, 150), st.integers(2, 40), st.integers(1, 2), st.booleans(), schedules, st.integers(0, 3), st.data()
)
def test_no_batch_is_of_one_image_where_the_network_needs_two(
    samples: int, batch: int, world: int, full: bool, schedule: SizeSchedule, epoch: int, data: st.DataObject
) -> None:
    pairs = data.draw(st.sets(st.sampled_from(schedule.sizes), min_size=1))
    members = np.arange(samples)
    shapes = np.random.default_rng(samples).integers(20, 60, (samples, 2))
    buckets = shape_buckets(members, shapes, 0.25, 2 * world) if full else square_bucket(members)

    def sampler(taken: int, pairs: set[int]) -> TrainBatchSampler:
        return TrainBatchSampler(buckets, schedule, batch, 5, 0, world, lambda: taken, pairs)

    length = len(sampler(0, pairs))
    batches = list(sampler(epoch * length, pairs))
    assert len(batches) == length
    assert all(len(items) >= 2 for items in batches if items[0].size in pairs)
    indices = [item.index for items in batches for item in items]
    assert len(indices) == len(set(indices)) == sampler(0, pairs).images == sampler(0, set()).images
    usual = list(sampler(epoch * len(sampler(0, set())), set()))
    if all(len(items) > 1 for items in usual) and not isinstance(schedule, Weighted):
        assert batches == usual


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 200), st.integers(1, 20), st.integers(1, 3), st.booleans(), st.integers(1, 6))
def test_a_limited_evaluation_uses_a_seeded_mixture(
    samples: int, batch: int, world: int, full: bool, limit: int
) -> None:
    buckets = make_buckets(samples, 1, full)

    def batches_of_ranks(limit: float | None, seed: int = 0) -> list[list[list[Item]]]:
        ranks = [list(EvalBatchSampler(buckets, 48, [48], batch, rank, world, limit, seed)) for rank in range(world)]
        for step in zip(*ranks, strict=True):
            assert len({len(items) for items in step}) == 1
            assert len({item.shapes for items in step for item in items}) == 1
        return ranks

    whole = batches_of_ranks(None)
    assert batches_of_ranks(1.0) == whole
    if limit >= len(whole[0]):
        assert batches_of_ranks(limit) == whole
        return
    cut = batches_of_ranks(limit)
    assert cut == batches_of_ranks(limit) == batches_of_ranks((limit + 0.5) / len(whole[0]))  # a share is rounded down
    assert [len(rank) for rank in cut] == [limit] * world
    counted = Counter(item.index for rank in cut for items in rank for item in items if item.valid)
    assert set(counted.values()) == {1}
    if 25 < len(counted) < samples / 2:  # taken in order, they would all be of the first classes
        assert max(counted) > 3 * samples / 2
        assert batches_of_ranks(limit, seed=1) != cut


@pytest.mark.parametrize("minimum", [1, 2, 5, 50])
def test_a_rare_shape_joins_its_neighbour_so_that_every_rank_gets_some(minimum: int) -> None:
    shapes = np.array([(40, 40)] * 30 + [(40, 80)] * 6 + [(40, 400)] + [(90, 40)] * 3)
    buckets = shape_buckets(np.arange(40), shapes, 0.125, minimum)
    assert sorted(np.concatenate([bucket.members for bucket in buckets])) == list(range(40))
    assert all(len(bucket.members) >= minimum for bucket in buckets) or len(buckets) == 1
