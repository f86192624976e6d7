"""From the items of a plan to batches of tensors: what runs in the worker processes, and the loader around them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypedDict, cast

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from sppnet.data.crops import Cut
from sppnet.data.decode import DataError
from sppnet.data.images import ImageSet, Label
from sppnet.data.pixels import Direct, Source
from sppnet.data.sampler import EvalBatches, Item, TrainBatches


class Batch(TypedDict):
    """One batch; all its images have one shape.

    Keys:
        image: uint8 (N, 3, h, w), RGB, laid out as decoders do it: colours innermost.
        more: the same images at further scales, in the order of the views' `scales`; empty but for tests at several.
        target: class numbers, int64 (N,); in a multi-label set float32 (N, K) of 0 and 1.
        index: int64 (N,), positions in the set.
        valid: bool (N,), False for an image that only fills up the batch and counts for nothing.
        offset: float32 (N, 3), to be added to RGB in [0, 1] before normalisation.
        size: the schedule's size: the shorter side, in pixels; of views cut out of larger images, that of the views.
        bad: names of the images that could not be read and were left out.
    """

    image: torch.Tensor
    more: list[torch.Tensor]
    target: torch.Tensor
    index: torch.Tensor
    valid: torch.Tensor
    offset: torch.Tensor
    size: int
    bad: list[str]


SMALL = frozenset({"target", "index", "valid", "offset"})


class Sample(NamedTuple):
    """One image of a batch at each of its shapes, or (without `images`) what kept it from being read."""

    item: Item
    target: Label
    images: list[torch.Tensor]
    offset: tuple[float, float, float]
    problem: str


class Drawn(NamedTuple):
    """The samples of a batch, and the batch that their images are rows of, at each of its shapes."""

    samples: list[Sample]
    batch: list[torch.Tensor]


@dataclass(frozen=True)
class Samples(Dataset[Sample]):
    """Reads, cuts out and resizes the images of one `Item` or of a batch of them.

    Attributes:
        images: the set.
        regions: what is cut out of an image, by its index and the epoch.
        source: how it is read and resized; None for the default.
    """

    images: ImageSet
    regions: Callable[[int, int], Cut]
    source: Source | None = None

    def __getitem__(self, item: Item) -> Sample:
        outs = [_room(1, *shape)[0] for shape in item.shapes]
        return self._sample(item, self.regions(item.index, item.epoch), outs)

    def __getitems__(self, items: Sequence[Item]) -> Drawn:
        # each image is drawn to its place in the batch, which a worker lays where the main process can read it
        batch = [_room(len(items), *shape) for shape in items[0].shapes]
        cuts = [self.regions(item.index, item.epoch) for item in items]
        samples: list[Sample] = []
        row = 0
        for item, cut in zip(items, cuts, strict=True):
            samples.append(self._sample(item, cut, [scale[row] for scale in batch]))
            row += bool(samples[-1].images)
        return Drawn(samples, [scale[:row] for scale in batch])

    def _sample(self, item: Item, cut: Cut, outs: list[torch.Tensor]) -> Sample:
        source = self.source or Direct(self.images)
        target = self.images.label(item.index)
        try:
            pixels = source.read(item.index)
        except DataError as error:  # kept as text: a traceback from a worker would bury the one line that helps
            return Sample(item, target, [], (0.0, 0.0, 0.0), str(error))
        region = cut(*source.size(pixels))
        for out in outs:
            source.draw(pixels, region, out)
        return Sample(item, target, outs, region.offset, "")


def _room(count: int, height: int, width: int) -> torch.Tensor:
    """An uninitialised batch of `count` images; in a worker in shared memory, as `default_collate` has it."""
    size = count * height * width * 3
    if get_worker_info() is None:
        flat = torch.empty(size, dtype=torch.uint8)
    else:
        storage: Any = torch.UntypedStorage._new_shared(size)  # type: ignore[no-untyped-call]
        flat = torch.empty(0, dtype=torch.uint8).set_(storage, 0, (size,), (1,))
    return flat.view(count, height, width, 3).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Collate:
    """Puts samples together to a `Batch`, leaving out those that could not be read.

    If none is left, one black image with `valid` False is, so that processes that train together stay in step.
    """

    images: ImageSet
    skip: bool

    def __call__(self, drawn: Drawn | Sequence[Sample]) -> Batch | DataError:
        """A batch, or the error to raise in the main process (see `Loader`)."""
        samples = drawn.samples if isinstance(drawn, Drawn) else drawn
        good = [sample for sample in samples if sample.images]
        bad = [sample for sample in samples if not sample.images]
        if bad and not self.skip:
            return DataError(f"{bad[0].problem}; data.bad_files=skip leaves such files out")
        if not good:
            item = bad[0].item._replace(valid=False)
            black = [torch.zeros(3, *shape, dtype=torch.uint8) for shape in item.shapes]
            good = [bad[0]._replace(item=item, images=black)]
        if isinstance(drawn, Drawn) and len(drawn.batch[0]):
            image, *more = drawn.batch
        else:
            image, *more = (torch.stack(scale) for scale in zip(*(sample.images for sample in good), strict=True))
        return Batch(
            image=image,
            more=more,
            target=self._targets([sample.target for sample in good]),
            index=torch.tensor([sample.item.index for sample in good]),
            valid=torch.tensor([sample.item.valid for sample in good]),
            offset=torch.tensor([sample.offset for sample in good], dtype=torch.float32),
            size=good[0].item.size,
            bad=[self.images.name(sample.item.index) for sample in bad if sample.item.valid],
        )

    def _targets(self, labels: Sequence[Label]) -> torch.Tensor:
        if not self.images.multilabel:
            return torch.tensor(labels)
        target_NK = torch.zeros(len(labels), len(self.images.classes))
        for row, label in enumerate(labels):
            assert isinstance(label, tuple)
            target_NK[row, list(label)] = 1
        return target_NK


@dataclass(frozen=True)
class _Light:
    """A `Collate` whose batches travel light.

    torch opens a file for every tensor that goes from process to process; for the four small ones of a batch that takes
    longer than to draw sixteen kept photographs. So they travel as arrays.
    """

    collate: Collate

    def __call__(self, drawn: Drawn | Sequence[Sample]) -> dict[str, Any] | DataError:
        batch = self.collate(drawn)
        if isinstance(batch, DataError):
            return batch
        return {key: value.numpy() if key in SMALL else value for key, value in batch.items()}  # type: ignore[attr-defined]


class Loader(DataLoader[Any]):
    """A `DataLoader` of `Batch`es that raises what workers found, as one line, and has a state for Lightning.

    The state is empty, as the batch sampler finds its place by arithmetic; without the two methods Lightning warns
    that the loader cannot be resumed.
    """

    def __init__(
        self,
        samples: Samples,
        batches: TrainBatches | EvalBatches,
        skip: bool,
        workers: int,
        pin: bool,
        persistent: bool = False,
    ) -> None:
        super().__init__(
            samples,
            batch_sampler=batches,
            collate_fn=_Light(Collate(samples.images, skip)),
            num_workers=workers,
            pin_memory=pin,
            persistent_workers=persistent and workers > 0,
        )

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        return _checked(super().__iter__())  # the inner iterator is made now, and with it the place in the epoch

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to do."""


def _checked(batches: Iterator[dict[str, Any] | DataError]) -> Iterator[Batch]:
    for batch in batches:
        if isinstance(batch, DataError):
            raise batch
        yield cast("Batch", {key: torch.from_numpy(x) if key in SMALL else x for key, x in batch.items()})
