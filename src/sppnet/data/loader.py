"""From the items of a plan to batches of tensors: what runs in the worker processes, and the loader around them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypedDict, cast

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from sppnet.data.batch_samplers import EvalBatches, Item, TrainBatches
from sppnet.data.crops import Cut
from sppnet.data.datasets.base import ImageSet, Label
from sppnet.data.decode import DataError
from sppnet.data.jpeg import take_remarks
from sppnet.data.readers import Direct, Source


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
        remarks: harmless warnings of the decoder, by file (see `sppnet.data.jpeg`).
    """

    image: torch.Tensor
    more: list[torch.Tensor]
    target: torch.Tensor
    index: torch.Tensor
    valid: torch.Tensor
    offset: torch.Tensor
    size: int
    bad: list[str]
    remarks: dict[str, str]


SMALL = frozenset({"target", "index", "valid", "offset"})


class Sample(NamedTuple):
    """One image of a batch, or (with a `problem`) what kept it from being read."""

    item: Item
    target: Label
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0)
    problem: str = ""


class Drawn(NamedTuple):
    """The samples of a batch; the images of those that could be read, in order, at each of the batch's shapes; and
    harmless warnings of the decoder, by file."""

    samples: list[Sample]
    images: list[torch.Tensor]
    remarks: dict[str, str]


@dataclass(frozen=True)
class Samples(Dataset[Drawn]):
    """Reads, cuts out and resizes the images of a batch of `Item`s; for loaders with a batch sampler.

    Attributes:
        images: the set.
        regions: what is cut out of an image, by its index and the epoch.
        source: how it is read and resized; None for the default.
    """

    images: ImageSet
    regions: Callable[[int, int], Cut]
    source: Source | None = None

    def __getitems__(self, items: Sequence[Item]) -> Drawn:
        # each image is drawn to its place in the batch, which a worker lays where the main process can read it
        images = [_room(len(items), *shape) for shape in items[0].shapes]
        cuts = [self.regions(item.index, item.epoch) for item in items]
        samples: list[Sample] = []
        row = 0
        for item, cut in zip(items, cuts, strict=True):
            samples.append(self._draw(item, cut, [scale[row] for scale in images]))
            row += not samples[-1].problem
        return Drawn(samples, [scale[:row] for scale in images], take_remarks())

    def _draw(self, item: Item, cut: Cut, outs: list[torch.Tensor]) -> Sample:
        source = self.source or Direct(self.images)
        target = self.images.label(item.index)
        try:
            pixels = source.read(item.index)
        except DataError as error:  # kept as text: a traceback from a worker would bury the one line that helps
            return Sample(item, target, problem=str(error) or f"{self.images.name(item.index)} cannot be read")
        region = cut(*source.size(pixels))
        for out in outs:
            source.draw(pixels, region, out)
        return Sample(item, target, region.offset)


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
    """Makes a `Batch` of what was drawn, leaving out the images that could not be read.

    If none is left, one black image with `valid` False is, so that processes that train together stay in step.

    Attributes:
        images: the set.
        skip: whether images that cannot be read are left out, or raised.
        pairs: an image that is left alone of several is there twice, once with `valid` False: batch normalisation may
            not be able to train on it alone.
    """

    images: ImageSet
    skip: bool
    pairs: bool = False

    def __call__(self, drawn: Drawn) -> Batch | DataError:
        """A batch, or the error to raise in the main process (see `Loader`)."""
        good = [sample for sample in drawn.samples if not sample.problem]
        bad = [sample for sample in drawn.samples if sample.problem]
        if bad and not self.skip:
            return DataError(f"{bad[0].problem}; data.bad_files=skip leaves such files out")
        image, *more = drawn.images
        if not good:
            item = bad[0].item._replace(valid=False)
            good = [bad[0]._replace(item=item)]
            image, *more = (_room(1, *shape).zero_() for shape in item.shapes)
        if self.pairs and len(good) == 1 < len(drawn.samples):
            good.append(good[0]._replace(item=good[0].item._replace(valid=False)))
            image, *more = (_room(2, *x.shape[2:]).copy_(x) for x in (image, *more))
        return Batch(
            image=image,
            more=more,
            target=self._targets([sample.target for sample in good]),
            index=torch.tensor([sample.item.index for sample in good]),
            valid=torch.tensor([sample.item.valid for sample in good]),
            offset=torch.tensor([sample.offset for sample in good], dtype=torch.float32),
            size=good[0].item.size,
            bad=[self.images.name(sample.item.index) for sample in bad if sample.item.valid],
            remarks=drawn.remarks,
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

    def __call__(self, drawn: Drawn) -> dict[str, Any] | DataError:
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
            collate_fn=_Light(Collate(samples.images, skip, isinstance(batches, TrainBatches))),  # type: ignore[arg-type]  # no list: __getitems__
            num_workers=workers,
            pin_memory=pin,
            persistent_workers=persistent and workers > 0,
        )

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        # the inner iterator is made now, and with it the place in the epoch
        return _checked(super().__iter__(), self.pin_memory)

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to do."""


def _checked(batches: Iterator[dict[str, Any] | DataError], pin: bool) -> Iterator[Batch]:
    for batch in batches:
        if isinstance(batch, DataError):
            raise batch
        small = {key: torch.from_numpy(batch[key]) for key in SMALL}
        yield cast("Batch", batch | ({key: x.pin_memory() for key, x in small.items()} if pin else small))
