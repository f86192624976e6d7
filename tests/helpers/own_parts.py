"""Poolings and heads of a user's own, most of them with a mistake, and a metric."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from sppnet.pyramid import SpatialPyramidPool2d


class Mean(nn.Module):
    """Has arguments with the names of keys of `pooling=spp` that mean something else."""

    def __init__(self, kernel: float = 1, bins: Any = (), kind: Any = None, p: float = 1) -> None:
        super().__init__()
        self.kernel = kernel

    def forward(self, maps: Tensor) -> Tensor:
        return self.kernel * maps.mean((2, 3))


class Counter(Mean):
    """Counts its calls in a buffer."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, maps: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(maps)


class Cached(nn.Module):
    """A weighted mean that keeps the weights for maps of the last size."""

    grid: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("grid", torch.zeros(0, 0), persistent=False)
        self.register_buffer("table", torch.ones(1, 1).expand(3, 3), persistent=False)

    def forward(self, maps: Tensor) -> Tensor:
        height, width = maps.shape[2:]
        if self.grid.shape != (height, width):
            self.grid = torch.full((height, width), 1 / (height * width), device=maps.device)
        return (maps * self.grid).sum((2, 3))


class Remembered(Mean):
    """Keeps its last map, which is harmless, and how many maps it has seen."""

    last: Tensor | None = None

    def __init__(self) -> None:
        super().__init__()
        self._seen = [0]

    def forward(self, maps: Tensor) -> Tensor:
        self.last, self._seen = maps.detach(), [self._seen[0] + len(maps)]
        return super().forward(maps)


class Latest(Mean):
    """Keeps its last vectors."""

    def forward(self, maps: Tensor) -> Tensor:
        self.last = super().forward(maps).detach()
        return super().forward(maps)


class Accumulated(Mean):
    """Keeps a running mean in a buffer that is not saved."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()), persistent=False)

    def forward(self, maps: Tensor) -> Tensor:
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * maps.detach().mean()
        return super().forward(maps) - self.mean


class Drawn(Mean):
    """Draws a permutation that no checkpoint holds."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.order = torch.randperm(channels)

    def forward(self, maps: Tensor) -> Tensor:
        return super().forward(maps)[:, self.order]


class Scaled(SpatialPyramidPool2d):
    """Inherits a `pool_windows` that does not scale, which makes no difference before the training."""

    def __init__(self) -> None:
        super().__init__((1,))
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, maps: Tensor) -> Tensor:
        return self.scale * super().forward(maps)


class Undefined(Mean):
    def forward(self, maps: Tensor) -> Tensor:
        return super().forward((maps - 1e9).log())


class Grows(Mean):
    """Collects vectors in training."""

    bank: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("bank", torch.zeros(0, channels))

    def forward(self, maps: Tensor) -> Tensor:
        pooled = super().forward(maps)
        if self.training:
            self.bank = torch.cat([self.bank, pooled.detach()])
        return pooled


class Unused(Mean):
    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Parameter(torch.ones(()))


class FailsOnRank1(Mean):
    def forward(self, maps: Tensor) -> Tensor:
        if torch.distributed.is_initialized() and torch.distributed.get_rank() == 1:
            raise ValueError("out of luck")
        return super().forward(maps)


class Single(nn.Module):
    """Computes in float32, whatever its maps are."""

    def forward(self, maps: Tensor) -> Tensor:
        return maps.float().mean((2, 3))


class Pick(nn.Module):
    """Reorders the channels by a buffer of indices."""

    index: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("index", torch.arange(channels).flip(0))

    def forward(self, maps: Tensor) -> Tensor:
        return maps.mean((2, 3))[:, self.index]


class Detached(Mean):
    def forward(self, maps: Tensor) -> Tensor:
        return super().forward(maps.detach())


class InPlace(Mean):
    def forward(self, maps: Tensor) -> Tensor:
        return super().forward(maps.exp_()).log()


class OverBatch(Mean):
    def forward(self, maps: Tensor) -> Tensor:
        pooled = super().forward(maps)
        return pooled - pooled.mean(0)


class Appears(Mean):
    def forward(self, maps: Tensor) -> Tensor:
        self.register_buffer("last", maps[0, 0])
        return super().forward(maps)


class FirstImage(Mean):
    """Its `pool_windows` always pools the first image."""

    def pool_windows(self, maps: Tensor, windows: Tensor) -> Tensor:
        return torch.cat([self(maps[:1, :, y0:y1, x0:x1]) for _, x0, y0, x1, y1 in windows.tolist()])


class NoWindows(Mean):
    def pool_windows(self, maps: Tensor, windows: Tensor) -> Tensor:
        raise NotImplementedError("not yet")


class Flat(nn.Flatten):
    pass


class Unflattened(nn.AdaptiveAvgPool2d):
    def __init__(self) -> None:
        super().__init__(1)


class Squeezed(nn.Module):
    def forward(self, maps: Tensor) -> Tensor:
        return maps.mean((2, 3)).squeeze()


class Double(Mean):
    def forward(self, maps: Tensor) -> Tensor:
        return super().forward(maps).double()


class Noisy(Mean):
    def forward(self, maps: Tensor) -> Tensor:
        pooled = super().forward(maps)
        return pooled + torch.rand_like(pooled)


class Lazy(Mean):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.LazyConv2d(8, 1)

    def forward(self, maps: Tensor) -> Tensor:
        return super().forward(self.mix(maps))


class Uncopied(Mean):
    """Holds a tensor with a history, as the older `weight_norm` of torch does; such modules cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.square = self.scale**2


class Normed(nn.Sequential):
    """A backbone with the older `weight_norm` of torch."""

    def __init__(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            super().__init__(nn.utils.weight_norm(nn.Conv2d(3, 4, 5, 4)))


class Large(Mean):
    """Needs maps of at least seven cells along each side."""

    def forward(self, maps: Tensor) -> Tensor:
        return maps.unfold(2, 7, 1).amax((2, 3, 4))


class Doubled(SpatialPyramidPool2d):
    """Inherits a `pool_windows` that does not pool as its `forward` does."""

    def forward(self, maps: Tensor) -> Tensor:
        return 2 * super().forward(maps)


class TenClasses(nn.Linear):
    """Has its own number of classes."""

    def __init__(self, in_features: int) -> None:
        super().__init__(in_features, 10)


class Groups(nn.Linear):
    """Its argument must fit the number of classes."""

    def __init__(self, in_features: int, num_classes: int, groups: list[int]) -> None:
        if sum(groups) != num_classes:
            raise ValueError(f"groups {groups} must sum to {num_classes}")
        super().__init__(in_features, num_classes)


class Total(nn.Module):
    def forward(self, vectors: Tensor) -> Tensor:
        return vectors.sum()


class Cosine(nn.Module):
    def __init__(self, in_features: int, num_classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_classes, in_features))

    def forward(self, vectors: Tensor) -> Tensor:
        return 10 * nn.functional.linear(nn.functional.normalize(vectors), nn.functional.normalize(self.weight))


class MadeOnTheCPU(Cosine):
    """Computes with tensors that it makes on the CPU, in its constructor and when it runs."""

    def __init__(self, in_features: int, num_classes: int) -> None:
        super().__init__(in_features, num_classes)
        self.ones = float(torch.ones(3).sum().item())

    def forward(self, vectors: Tensor) -> Tensor:
        return super().forward(vectors) + torch.zeros(1, device="cpu")


class Ramp(Cosine):
    """Makes tensors in the default dtype, which is bfloat16 in a step of `bf16-true`."""

    def forward(self, vectors: Tensor) -> Tensor:
        return super().forward(vectors * torch.linspace(0.5, 1, vectors.shape[1]))


class Precise(Cosine):
    """Has a float64 buffer, whatever the precision is."""

    projection: Tensor

    def __init__(self, in_features: int, num_classes: int) -> None:
        super().__init__(in_features, num_classes)
        self.register_buffer("projection", torch.eye(in_features, dtype=torch.float64))

    def forward(self, vectors: Tensor) -> Tensor:
        return super().forward((vectors.double() @ self.projection).to(vectors.dtype))


class PreciseMean(Mean):
    """Has a float64 buffer, whatever the precision is."""

    projection: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("projection", torch.eye(channels, dtype=torch.float64))

    def forward(self, maps: Tensor) -> Tensor:
        return (super().forward(maps).double() @ self.projection).to(maps.dtype)


class Classes(Cosine):
    def forward(self, vectors: Tensor) -> Tensor:
        return super().forward(vectors).argsort(1)


class PlainTensor(Cosine):
    """Keeps a tensor that is neither a parameter nor a buffer, so that it stays in float32."""

    def __init__(self, in_features: int, num_classes: int) -> None:
        super().__init__(in_features, num_classes)
        self.projection = torch.eye(in_features)

    def forward(self, vectors: Tensor) -> Tensor:
        return super().forward(vectors @ self.projection)


class Extra(Cosine):
    """Counts its training steps in its extra state."""

    steps = 0

    def forward(self, vectors: Tensor) -> Tensor:
        self.steps += self.training
        return super().forward(vectors)

    def get_extra_state(self) -> dict[str, int]:
        return {"steps": self.steps}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.steps = state["steps"]


class SqueezedHead(Cosine):
    def forward(self, vectors: Tensor) -> Tensor:
        return super().forward(vectors).squeeze()


class Sharpness(Metric):
    """The mean of the largest probabilities, a thousandfold. It says neither its direction nor its bounds."""

    total: Tensor
    images: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros(()), dist_reduce_fx="sum")

    def update(self, probabilities: Tensor, target: Tensor) -> None:
        self.total += 1000 * probabilities.amax(1).sum()
        self.images += len(target)

    def compute(self) -> float:
        return float(self.total / self.images)


class Forgetful(Sharpness):
    """Changes its inputs in place. Can't do with more than 40 images at once."""

    def update(self, probabilities: Tensor, target: Tensor) -> None:
        if len(target) > 40:
            raise ValueError("too\nmany")
        super().update(probabilities.fill_(0), target.fill_(0))


class Plain(Sharpness):
    """Keeps its last images and, outside its states, all targets."""

    last: Tensor | None = None

    def __init__(self) -> None:
        super().__init__()
        self._seen: list[Tensor] = []

    def update(self, probabilities: Tensor, target: Tensor) -> None:
        super().update(probabilities, target)
        self.last = probabilities
        self._seen.append(target)


class Buffered(Sharpness):
    """Counts in a buffer, which is not summed over processes."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def update(self, probabilities: Tensor, target: Tensor) -> None:
        super().update(probabilities, target)
        self.seen += len(target)


class Both(Sharpness):
    """The sum of two metrics, which it also holds in a list, and keeps its last images."""

    last: Tensor | None = None

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = Sharpness(), Sharpness()
        self.parts = [self.one, self.other]

    def update(self, probabilities: Tensor, target: Tensor) -> None:
        self.last = probabilities.clone()
        for part in self.parts:
            part.update(probabilities, target)

    def compute(self) -> float:
        return sum(part.compute() for part in self.parts)


class Costs(Metric):
    """The mean product of probabilities with a matrix. Under autocast, its list state has the precision's dtype."""

    values: Any  # a list of tensors; under DDP, `compute` gets a tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("values", [], dist_reduce_fx="cat")

    def update(self, probabilities: Tensor, target: Tensor) -> None:
        self.values.append((probabilities @ torch.ones(probabilities.shape[1], 1)).squeeze(1))

    def compute(self) -> float:
        assert isinstance(self.values, Tensor) or all(value.numel() for value in self.values), "a batch without images"
        return float(dim_zero_cat(self.values).float().mean())


class Marked(Costs):
    """Its list state has the default dtype."""

    def update(self, probabilities: Tensor, target: Tensor) -> None:
        self.values.append(torch.where(target.reshape(len(target), -1)[:, 0] > 0, torch.tensor(1.0), torch.tensor(0.0)))


class Merged(Costs):
    """Keeps one tensor, for which it resets itself in every update."""

    def update(self, probabilities: Tensor, target: Tensor) -> None:
        merged = dim_zero_cat([*self.values, probabilities.amax(1)])
        self.reset()
        self.values.append(merged)


class Batches(Costs):
    """Keeps a whole number for each batch."""

    def update(self, probabilities: Tensor, target: Tensor) -> None:
        self.values.append((probabilities.amax(1) > 0.5).sum())


class Wrong(Costs):
    """Keeps (n, K) for the images that are not of class 0, if there are any."""

    def update(self, probabilities: Tensor, target: Tensor) -> None:
        wrong = target.reshape(len(target), -1)[:, 0] != 0
        if wrong.any():
            self.values.append(probabilities[wrong])


class TwoClasses(nn.Linear):
    def __init__(self, in_features: int) -> None:
        super().__init__(in_features, 2)
