"""The data loader: worker processes load the items of a batch sampler and collate them into a `Batch` of tensors."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypedDict, cast

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from sppnet.data.augmentation import Augmentation
from sppnet.data.batch_samplers import EvalBatchSampler, Item, TrainBatchSampler
from sppnet.data.crops import RegionFunction
from sppnet.data.datasets.base import ImageSet, Label
from sppnet.data.decode import DataError
from sppnet.data.jpeg import take_remarks
from sppnet.data.readers import Reader, SubpixelReader
from sppnet.errors import UserError
from sppnet.processes import die_with_parent


class Batch(TypedDict):
    """A batch of images that all have the same shape.

    Keys:
        image: uint8 (N, 3, h, w), RGB, in channels-last memory format, like decoded images.
        more: the same images at the remaining scales, in the order of `views.scales`; empty if there is only one scale.
        target: class indices, int64 (N,); for a multi-label data set, zeros and ones, float32 (N, K).
        index: int64 (N,), the image indices in the data set.
        valid: bool (N,), False for an image that only pads the batch and must not count.
        all_valid: whether all images are valid; known without waiting for the device that holds `valid`.
        offset: float32 (N, 3), the colour offset to add to RGB in [0, 1] before normalisation.
        size: the size from the schedule, in pixels: the shorter side or, with windows, the side of a window.
        bad: names of the images that could not be read and were left out.
        remarks: harmless warnings of the decoder, by file path (see `sppnet.data.jpeg`).
    """

    image: torch.Tensor
    more: list[torch.Tensor]
    target: torch.Tensor
    index: torch.Tensor
    valid: torch.Tensor
    all_valid: bool
    offset: torch.Tensor
    size: int
    bad: list[str]
    remarks: dict[str, str]


SMALL_TENSORS = frozenset({"target", "index", "valid", "offset"})


class Sample(NamedTuple):
    """One image of a batch, without its pixels.

    `problem` says why the image could not be read; it is empty if the image was read.
    """

    item: Item
    target: Label
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0)
    problem: str = ""


class UncollatedBatch(NamedTuple):
    """The images of a batch as loaded by `BatchDataset`, before collation.

    Attributes:
        samples: one sample per item, in order.
        images: one tensor (N, 3, h, w) per shape, with the N images that could be read, in order.
        remarks: harmless warnings of the decoder, by file path.
        failure: says which transform failed and why; empty if none did.
    """

    samples: list[Sample]
    images: list[torch.Tensor]
    remarks: dict[str, str]
    failure: str = ""


@dataclass(frozen=True)
class BatchDataset(Dataset[UncollatedBatch]):
    """Reads, crops and resizes the images of a batch, for a data loader whose batch sampler yields lists of `Item`s.

    Attributes:
        images: the data set.
        regions: maps the (index, epoch, *repeats) of an `Item` to the function that selects the image's region.
        reader: reader of the pixels; None for a `SubpixelReader`.
        augmentation: transforms of the resized regions; None for none.
    """

    images: ImageSet
    regions: Callable[..., RegionFunction]
    reader: Reader | None = None
    augmentation: Augmentation | None = None

    def __getitems__(self, items: Sequence[Item]) -> UncollatedBatch:
        # images are resized directly into the batch tensor, which a worker allocates in shared memory
        images = [_empty_batch(len(items), *shape) for shape in items[0].shapes]
        region_functions = [self.regions(item.index, item.epoch, *item.repeats()) for item in items]
        samples: list[Sample] = []
        count = 0
        for item, region_function in zip(items, region_functions, strict=True):
            samples.append(self._load(item, region_function, [batch[count] for batch in images]))
            count += not samples[-1].problem
        return UncollatedBatch(
            samples, [batch[:count] for batch in images], take_remarks(), self._augment(images, samples)
        )

    def _load(self, item: Item, region_function: RegionFunction, outs: list[torch.Tensor]) -> Sample:
        reader = self.reader or SubpixelReader(self.images)
        target = self.images.label(item.index)
        try:
            region = reader.read(item.index, region_function, outs)
        except DataError as error:  # keep only its text: a worker's traceback would hide the one helpful line
            return Sample(item, target, problem=str(error) or f"{self.images.name(item.index)} cannot be read")
        return Sample(item, target, region.offset)

    def _augment(self, images: Sequence[torch.Tensor], samples: Sequence[Sample]) -> str:
        """Transform the images that could be read. Returns what went wrong, "" if nothing did."""
        if self.augmentation is None:
            return ""
        items = [sample.item for sample in samples if not sample.problem]
        try:
            self.augmentation(images[0][: len(items)], items)
        except UserError as error:  # keep only its text, as in `_load`
            return str(error)
        return ""


def _empty_batch(count: int, height: int, width: int) -> torch.Tensor:
    """An uninitialised uint8 tensor (count, 3, height, width) in channels-last format.

    In a worker, it is allocated in shared memory, so that it reaches the main process without a copy. torch's
    `default_collate` does the same.
    """
    size = count * height * width * 3
    if get_worker_info() is None:
        flat = torch.empty(size, dtype=torch.uint8)
    else:
        storage: Any = torch.UntypedStorage._new_shared(size)  # type: ignore[no-untyped-call]
        flat = torch.empty(0, dtype=torch.uint8).set_(storage, 0, (size,), (1,))
    return flat.view(count, height, width, 3).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Collator:
    """Collates an `UncollatedBatch` into a `Batch`, without the images that could not be read.

    If no image could be read, the batch is a single black image with `valid` False, so that all ranks still have the
    same number of batches.

    Attributes:
        images: the data set.
        skip: whether to leave out images that cannot be read (`data.bad_files=skip`) instead of returning an error.
        pairs: whether to duplicate an image if it is the only readable one in a batch of several, as batch
            normalisation may be unable to train on a single image. The copy has `valid` False.
    """

    images: ImageSet
    skip: bool
    pairs: bool = False

    def __call__(self, uncollated: UncollatedBatch) -> Batch | DataError:
        """Return the batch, or an error for `Loader` to raise in the main process."""
        good = [sample for sample in uncollated.samples if not sample.problem]
        bad = [sample for sample in uncollated.samples if sample.problem]
        if bad and not self.skip:
            return DataError(f"{bad[0].problem}; data.bad_files=skip leaves such files out")
        image, *more = uncollated.images
        if not good:
            item = bad[0].item._replace(valid=False)
            good = [bad[0]._replace(item=item)]
            image, *more = (_empty_batch(1, *shape).zero_() for shape in item.shapes)
        if self.pairs and len(good) == 1 < len(uncollated.samples):
            good.append(good[0]._replace(item=good[0].item._replace(valid=False)))
            image, *more = (_empty_batch(2, *x.shape[2:]).copy_(x) for x in (image, *more))
        return Batch(
            image=image,
            more=more,
            target=self._targets([sample.target for sample in good]),
            index=torch.tensor([sample.item.index for sample in good]),
            valid=torch.tensor([sample.item.valid for sample in good]),
            all_valid=all(sample.item.valid for sample in good),
            offset=torch.tensor([sample.offset for sample in good], dtype=torch.float32),
            size=good[0].item.size,
            bad=[self.images.name(sample.item.index) for sample in bad if sample.item.valid],
            remarks=uncollated.remarks,
        )

    def _targets(self, labels: Sequence[Label]) -> torch.Tensor:
        if not self.images.multilabel:
            return torch.tensor(labels, dtype=torch.long)  # they may be integers of NumPy
        target_NK = torch.zeros(len(labels), len(self.images.classes))
        for n, label in enumerate(labels):
            assert isinstance(label, tuple)
            target_NK[n, [int(number) for number in label]] = 1
        return target_NK


@dataclass(frozen=True)
class _NumpyCollator:
    """A `Collator` that returns the small tensors as NumPy arrays.

    torch opens a file for every tensor that a worker sends. For the four small tensors of a batch, this takes longer
    than loading 16 cached images.
    """

    collator: Collator

    def __call__(self, uncollated: UncollatedBatch) -> dict[str, Any] | UserError:
        if uncollated.failure:
            return UserError(uncollated.failure)
        batch = self.collator(uncollated)
        if isinstance(batch, DataError):
            return batch
        return {key: value.numpy() if key in SMALL_TENSORS else value for key, value in batch.items()}  # type: ignore[attr-defined]


class Loader(DataLoader[Any]):
    """A `DataLoader` of `Batch`es that raises a worker's `UserError` without the worker's traceback.

    `state_dict` and `load_state_dict` exist because Lightning would otherwise warn that the loader cannot be resumed.
    The state is empty, as the batch sampler computes its position from the number of batches taken.
    """

    def __init__(
        self,
        dataset: BatchDataset,
        batches: TrainBatchSampler | EvalBatchSampler,
        skip: bool,
        workers: int,
        pin: bool,
        persistent: bool = False,
    ) -> None:
        collator = Collator(dataset.images, skip, pairs=isinstance(batches, TrainBatchSampler))
        super().__init__(
            dataset,
            batch_sampler=batches,
            collate_fn=_NumpyCollator(collator),  # type: ignore[arg-type]  # `__getitems__` does not return a list
            num_workers=workers,
            worker_init_fn=_start_worker,
            pin_memory=pin,
            persistent_workers=persistent and workers > 0,
        )

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        # Do not turn this into a generator function. Otherwise, the batch sampler would read its position in the epoch
        # only when the first batch is requested (see `TrainBatchSampler.__iter__`).
        return _to_batches(super().__iter__(), self.pin_memory)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def _start_worker(_worker: int) -> None:
    """Keep signals to the process group, such as that of `timeout`, from a worker: it ends when the run does.

    Before a run can stop, it needs the worker's batches to finish a validation. If the run is killed, nothing reads the
    worker's pipe any more, and a worker that waits for room in a full pipe would never notice.
    """
    os.setpgid(0, 0)
    die_with_parent()


def _to_batches(collated: Iterator[dict[str, Any] | UserError], pin: bool) -> Iterator[Batch]:
    """Convert the arrays of `_NumpyCollator` back to tensors and raise the errors that workers returned."""
    for batch in collated:
        if isinstance(batch, UserError):
            raise batch
        small = {key: torch.from_numpy(batch[key]) for key in SMALL_TENSORS}
        yield cast("Batch", batch | ({key: x.pin_memory() for key, x in small.items()} if pin else small))
