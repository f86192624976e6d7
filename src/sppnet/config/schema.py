"""The configuration: one class per section, one line per key. Does not import torch.

A line gives a key's type, its range and its marks (see `sppnet.config.marks`). Its default and the comment for the user
are in `conf/`. Everything else that depends on keys is computed from these classes (`sppnet.config.keys`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from sppnet.config.alternatives import ChosenBy
from sppnet.config.instantiate import check_target
from sppnet.config.marks import Only, Passed, affects, changed_by
from sppnet.config.trainer_arguments import check_trainer_arguments, is_default
from sppnet.errors import UserError, format_value

LAYOUT = 2  # increased when keys are renamed or moved; stored in every run and checkpoint
# This repeats the limit in sppnet.pyramid, which cannot be imported here because it imports torch. The memory that the
# bins need is checked in sppnet.models.fit_check.
MAX_LEVEL = 1024
INT_MAX = 2**31 - 1
Item = TypeVar("Item")

EVERY = changed_by("test", "predict", "transfer")  # how a network is run
TESTED = changed_by("test", "transfer")
READ = changed_by(*TESTED.commands, "export")  # the images that a network is run on


def _distinct(values: list[Item]) -> list[Item]:
    if len(set(values)) < len(values):
        raise ValueError("values repeat")
    return values


def _ascending(values: list[float]) -> list[float]:
    if values[0] > values[1]:
        raise ValueError("not ascending")
    return values


# Kinds of values. A description completes "must be ..." where the type does not say all.
Whole = Annotated[int, Field(ge=1, le=INT_MAX)]
Count = Annotated[int, Field(ge=0, le=INT_MAX)]  # or zero
Positive = Annotated[float, Field(gt=0, lt=1e300)]
Exponent = Annotated[float, Field(ge=1e-6, le=1e6)]  # beyond, float32 has no digits left
UpToMillion = Annotated[float, Field(ge=0, le=1e6), AfterValidator(abs)]
NotNegative = Annotated[float, Field(ge=0, lt=1e300), AfterValidator(abs)]  # -0.0 and 0.0 are one run
Ratio = Annotated[float, Field(gt=0, le=1)]
Share = Annotated[float, Field(ge=0, lt=1), AfterValidator(abs)]  # a share that may be nothing, but not all
Probability = Annotated[float, Field(ge=0, le=1), AfterValidator(abs)]
Part = Annotated[float, Field(gt=0, lt=1)]  # neither nothing nor all
Text = Annotated[str, Field(pattern=r"\S", description="a non-empty string")]
FilePath = Text  # `~` stands for the home directory
Label = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+=-]{0,99}$",
        description="a name of at most 100 letters, digits and . _ + = - that starts with a letter or digit (it names a"
        " directory)",
    ),
]
NonEmpty = Annotated[list[Item], Field(min_length=1)]
Distinct = Annotated[NonEmpty[Item], Field(json_schema_extra={"uniqueItems": True}), AfterValidator(_distinct)]
# A number of batches, or a share of all. The share 1.0 becomes null: both mean all batches, so they are one run.
BatchLimit = Annotated[
    Whole | Ratio | None, AfterValidator(lambda value: None if isinstance(value, float) and value == 1 else value)
]
Side = Annotated[int, Field(ge=1, le=8192)]
Sides = NonEmpty[Side]  # `build_sizes` checks the further limits of each size schedule
Bins = NonEmpty[Annotated[int, Field(ge=1, le=MAX_LEVEL)]]


def _numbers(count: int, description: str) -> Any:
    return Field(min_length=count, max_length=count, description=description)


Mean = Annotated[
    list[Annotated[float, Field(ge=0, le=1)]], _numbers(3, "three numbers from 0 to 1, for red, green and blue")
]
Std = Annotated[
    list[Annotated[float, Field(ge=1e-6, le=1)]], _numbers(3, "three numbers from 1e-06 to 1, for red, green and blue")
]
AreaRange = Annotated[
    list[Ratio],
    _numbers(2, "two numbers greater than 0 and at most 1, in ascending order"),
    AfterValidator(_ascending),
]
AspectRange = Annotated[
    list[Annotated[float, Field(gt=0, le=1000)]],
    _numbers(2, "two numbers greater than 0 and at most 1000, in ascending order"),
    AfterValidator(_ascending),
]


class Section(BaseModel):
    """A section of the configuration. It has only the keys that its class declares."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=())

    def plain(self) -> dict[str, Any]:
        """Return the section as plain data, as a run stores it: without the keys that the configuration did not set."""
        return self.model_dump(by_alias=True, exclude_unset=True)


def _check_plain(value: object) -> object:
    """Refuse what cannot be stored with a run, such as the bytes of YAML's `!!binary`."""
    if isinstance(value, list | dict):
        for item in (*value, *(value.values() if isinstance(value, dict) else ())):
            _check_plain(item)
    elif not isinstance(value, str | int | float | None):
        raise ValueError("must be text, a number, true, false, null, or a list or mapping of these")
    return value


Argument = Annotated[Any, AfterValidator(_check_plain)]


class OpenSection(Section):
    """A section that describes an object: `_target_` names its class, and further keys are arguments of the class."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Argument] = Field(init=False)

    target: Annotated[str, BeforeValidator(lambda name: check_target(name, ""))] = Field(alias="_target_")

    def node(self, **more: Any) -> dict[str, Any]:
        """Return `_target_` and the arguments of the class, as `sppnet.config.instantiate` takes them."""
        passed = {
            name: getattr(self, name)
            for name, field in type(self).model_fields.items()
            if any(isinstance(mark, Passed) for mark in field.metadata) and name in self.model_fields_set
        }
        return {"_target_": self.target, **passed, **(self.model_extra or {}), **more}


def _names(*sections: type[Section]) -> tuple[str, ...]:
    """The values of `name` that choose one of `sections`."""
    return tuple(name for section in sections for name in ChosenBy("name").values(section))


class OwnPart(OpenSection):
    """A part of the user's own in a slot whose options are ours by name."""

    slot: ClassVar[str]
    ours: ClassVar[tuple[str, ...]]
    name: Annotated[Label | None, affects.by_content] = None

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        if self.name in self.ours:  # the class would get the keys of that option as arguments
            raise ValueError(
                f"{self.slot}._target_={self.target} and {self.slot}={self.name} are not allowed together; choose"
                f" {self.slot}=class, or an option file of your own without name={self.name}"
            )
        return self


class Split(Section):
    val: Share
    test: Part
    seed: Count
    fold: Count | None

    @model_validator(mode="after")
    def _check_sum(self) -> Self:
        if self.val + self.test >= 1:
            raise ValueError(f"data.split.val={self.val} and data.split.test={self.test} leave nothing to train on")
        return self


class PaperCrop(Section):
    name: Literal["paper"]
    positions: Literal["random", "fixed"]


class RandomResizedCrop(Section):
    name: Literal["random_resized"]
    scale: AreaRange
    ratio: AspectRange


AnyCrop = Annotated[PaperCrop | RandomResizedCrop, ChosenBy("name")]
WITHOUT_FILES = ("sppnet.data.Digits", "sppnet.data.Cifar10")  # data sets whose images are not image files
IF_CROPPED, IF_WHOLE = Only("data.fit", ("crop",)), Only("data.fit", ("full",))


class Data(OpenSection):
    name: Annotated[Label, affects.by_content]
    root: Annotated[FilePath | None, affects.nothing, Passed()] = None
    # Of `sppnet.data.Table`. In another class, they may be of any type, and null counts as a value.
    file: Annotated[FilePath | Argument, Passed()] = ""
    separator: Annotated[Text | Argument, Passed()] = ""
    fit: Annotated[Literal["crop", "full"], affects.weights, changed_by()]
    batch_size: Annotated[int, Field(ge=1, le=2**20), affects.weights, EVERY]
    num_workers: Annotated[int, Field(ge=0, le=1024), affects.nothing, EVERY]
    sampling: Annotated[Literal["uniform", "balanced"], affects.weights, changed_by()] = "uniform"
    bad_files: Literal["error", "skip"]
    duplicates: Annotated[Literal["warn", "error", "ignore"], affects.nothing]
    split: Split
    crop: Annotated[AnyCrop, affects.weights, IF_CROPPED]
    crop_pct: Annotated[Ratio, affects.weights, IF_CROPPED]
    short_side: Annotated[Annotated[int, Field(ge=8, le=8192)] | None, IF_CROPPED] = None
    decode: Annotated[Literal["full", "scaled"], Only("data._target_", unless=WITHOUT_FILES), TESTED] = "full"
    resampler: Annotated[Literal["pillow", "torch"], TESTED]
    interpolation: Annotated[Literal["bilinear", "bicubic"], TESTED] = "bilinear"
    cache: Annotated[bool, affects.nothing, IF_CROPPED] = False
    aspect_step: Annotated[Positive, affects.weights, IF_WHOLE]
    mean: Annotated[Mean, changed_by()]
    std: Annotated[Std, changed_by()]

    @model_validator(mode="after")
    def _check_cache(self) -> Self:
        if self.fit == "crop" and self.cache and self.short_side is None:
            raise ValueError("data.cache=true requires data.short_side; set data.short_side=256, for example")
        return self

    @model_validator(mode="after")
    def _check_sampling(self) -> Self:
        if self.fit == "full" and self.sampling == "balanced":
            raise ValueError(
                "data.sampling=balanced is not allowed with data.fit=full: the number of images of each shape, and with"
                " it the number of batches, would differ between epochs"
            )
        return self


def nests_transforms(node: Mapping[str, Any]) -> bool:
    """Whether `transforms` of a transform are others, as of RandomApply. One of the user's may call anything so."""
    inner = node.get("transforms", [])
    names_classes = isinstance(inner, list) and any(isinstance(each, dict) and "_target_" in each for each in inner)
    return names_classes or ("transforms" in node and str(node["_target_"]).startswith("torchvision."))


def _check_transforms(nodes: object, slot: str = "augment.transforms") -> object:
    """Check the names of transforms, and of those inside them, as in RandomApply, which are built as well."""
    if not isinstance(nodes, list) or not all(isinstance(node, dict) and "_target_" in node for node in nodes):
        value = format_value(nodes)
        raise UserError(f"{slot}={value} is not allowed: must be a list of transforms, each a mapping with _target_")
    for number, node in enumerate(nodes):
        check_target(node["_target_"], f"{slot}.{number}")
        if nests_transforms(node):
            _check_transforms(node["transforms"], f"{slot}.{number}.transforms")
    return nodes


class Augment(Section):
    flip: bool
    color: NotNegative
    transforms: Annotated[list[OpenSection], BeforeValidator(_check_transforms)] = []
    erasing: Probability = 0.0


# Below 0.1, float32 is too narrow for torch's gamma variates: both become 0, and half of each image would be mixed in
# instead of next to nothing.
MixAlpha = Annotated[float, Field(ge=0.1, le=1000)]


class NoMix(Section):
    name: Literal["none"]


class Mixup(Section):
    name: Literal["mixup"]
    alpha: MixAlpha
    p: Ratio


class Cutmix(Section):
    name: Literal["cutmix"]
    alpha: MixAlpha
    p: Ratio


class MixupOrCutmix(Section):
    name: Literal["both"]
    mixup_alpha: MixAlpha
    cutmix_alpha: MixAlpha
    p: Ratio


AnyMix = Annotated[NoMix | Mixup | Cutmix | MixupOrCutmix, ChosenBy("name")]


class Sizes(OpenSection):
    train: Annotated[Sides, Passed()]
    val: Annotated[Sides, Passed()]
    test: Annotated[Sides, Passed(), affects.test, EVERY]


class Backbone(OpenSection):
    name: Annotated[Label | None, affects.by_content] = None
    weights: Annotated[FilePath | None, affects.by_content] = None
    freeze: bool | Distinct[Text] = False
    update_bn: bool = False


class Pyramid(Section):
    bins: Bins


IF_GEM, IF_LSE = Only("pooling.pool", ("gem",)), Only("pooling.pool", ("lse",))


class Pooling(Section):
    @property
    def takes_any_shape(self) -> bool:
        """Whether it pools maps of any shape to vectors of the same length."""
        return True


class SPP(Pooling):
    name: Literal["spp"]
    bins: Annotated[Bins, changed_by("transfer")]
    pool: Annotated[Literal["max", "avg", "avgmax", "gem", "lse"], changed_by("transfer")]
    rule: Annotated[Literal["adaptive", "sliding", "padded"], changed_by("transfer")]
    kernel: Annotated[Literal["auto", "plain"], affects.nothing, EVERY] = "auto"
    p: Annotated[Exponent, IF_GEM] = 3.0
    learn_p: Annotated[bool, IF_GEM] = True
    per_channel: Annotated[bool, IF_GEM, Only("pooling.learn_p", (True,))] = False
    r: Annotated[Exponent, IF_LSE] = 10.0

    @property
    def takes_any_shape(self) -> bool:
        return self.rule == "adaptive"


class GAP(Pooling):
    name: Literal["gap"]


class AvgMax(Pooling):
    name: Literal["avgmax"]


class GeM(Pooling):
    name: Literal["gem"]
    p: Exponent
    learn_p: bool
    per_channel: Annotated[bool, Only("pooling.learn_p", (True,))]


class LSE(Pooling):
    name: Literal["lse"]
    r: Exponent


class Flatten(Pooling):
    name: Literal["flatten"]
    pool: Annotated[Literal["max", "avg"], Only("pooling.output_size")]
    output_size: Annotated[int, Field(ge=1, le=MAX_LEVEL)] | None

    @property
    def takes_any_shape(self) -> bool:
        return False


class OwnPooling(OwnPart):
    slot = "pooling"
    ours = _names(SPP, GAP, AvgMax, GeM, LSE, Flatten)


AnyPooling = Annotated[SPP | GAP | AvgMax | GeM | LSE | Flatten | OwnPooling, ChosenBy("name")]


class MLP(Section):
    name: Literal["mlp"]
    hidden: list[Annotated[int, Field(ge=1, le=2**20)]]
    dropout: Annotated[Share, Only("head.hidden", unless=([],))]


class Linear(Section):
    name: Literal["linear"]
    dropout: Share


class OwnHead(OwnPart):
    slot, ours = "head", _names(MLP, Linear)


AnyHead = Annotated[MLP | Linear | OwnHead, ChosenBy("name")]


class Loss(Section):
    name: Annotated[Literal["auto", "cross_entropy", "bce", "focal"], affects.by_content]
    label_smoothing: Share
    class_weights: Literal["balanced"] | NonEmpty[UpToMillion] | None = None
    gamma: Annotated[float, Field(ge=0, le=100), AfterValidator(abs), Only("loss.name", ("focal",))] = 2.0


class OwnLoss(OwnPart):
    slot, ours = "loss", _names(Loss)
    activation: Literal["auto", "softmax", "sigmoid"] = "auto"


AnyLoss = Annotated[Loss | OwnLoss, ChosenBy("name")]


class Cosine(Section):
    name: Literal["cosine"]
    warmup: Share


class Plateau(Section):
    name: Literal["plateau"]
    factor: Part
    patience: Count
    drops: Count


class Constant(Section):
    name: Literal["constant"]


AnySchedule = Annotated[Cosine | Plateau | Constant, ChosenBy("name")]


class Optim(OpenSection):
    lr: Annotated[Positive, Passed()]
    weight_decay: Annotated[NotNegative | None, Passed()] = None
    decay_norms: Annotated[bool, Only("optim.weight_decay", unless=(0,))] = True
    ema: Part | None = None
    schedule: AnySchedule

    def node(self, **more: Any) -> dict[str, Any]:
        """Return what `OpenSection.node` does, in which `weight_decay=null` means the same as no such key."""
        return {name: value for name, value in super().node(**more).items() if (name, value) != ("weight_decay", None)}


class Trainer(Section):
    """Arguments of `lightning.Trainer`. Those without a line here are passed on and are part of a run's identity."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Argument] = Field(init=False)

    max_epochs: Whole
    max_steps: Annotated[Whole | Literal[-1], Field(description="-1 or an integer of at least 1")]
    accelerator: Annotated[Literal["auto", "cpu", "gpu", "cuda", "mps"], affects.nothing, EVERY]
    devices: Annotated[
        Annotated[int, Field(ge=1, le=1024)] | Distinct[Annotated[int, Field(ge=0, le=1023)]], affects.by_content
    ]
    num_nodes: Annotated[Whole, affects.by_content]
    strategy: Annotated[Text | OpenSection, affects.by_content]
    precision: Annotated[
        Literal["32-true", "bf16-mixed", "16-mixed", "bf16-true", "64-true"], affects.weights_and_test, EVERY
    ]
    deterministic: Annotated[bool | Literal["warn"], EVERY]
    gradient_clip_val: Positive | None
    gradient_clip_algorithm: Annotated[Literal["norm", "value"], Only("trainer.gradient_clip_val")] = "norm"
    accumulate_grad_batches: Whole
    limit_train_batches: Annotated[BatchLimit, Only("trainer.overfit_batches", (0,))]
    limit_val_batches: Annotated[BatchLimit, Only("trainer.overfit_batches", (0,))]
    # The identity of a test describes the images that the limit selects; see `sppnet.runs.identity`.
    limit_test_batches: Annotated[BatchLimit, affects.by_content, changed_by("test")]
    overfit_batches: Whole | Share
    val_check_interval: BatchLimit
    check_val_every_n_epoch: Whole | None
    log_every_n_steps: Annotated[Whole, affects.nothing]
    profiler: Annotated[Text | OpenSection | None, affects.nothing, changed_by("test")]
    enable_model_summary: Annotated[bool, affects.nothing]

    @model_validator(mode="after")
    def _check_arguments(self) -> Self:
        passed = self.model_extra or {}
        check_trainer_arguments(passed, type(self).model_fields, self.strategy)
        for what, last in (("epochs", self.max_epochs), ("steps", self.max_steps)):
            first = passed.get(f"min_{what}")
            if first is not None and (first < 0 or first > last != -1):
                limits = "at least 0" if last == -1 else f"from 0 to trainer.max_{what}={last}"
                raise ValueError(f"trainer.min_{what}={first} is not allowed: must be {limits}")
        return self

    @model_serializer(mode="wrap")
    def _exclude_defaults(self, dump: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        """Count Lightning's defaults of the arguments that are passed on among the defaults."""
        passed = self.model_extra or {}
        plain = dump(self).items()
        return {key: v for key, v in plain if not (info.exclude_defaults and key in passed and is_default(key, v))}


class Compute(Section):
    num_threads: Annotated[int, Field(ge=1, le=1024)]
    compile: bool
    channels_last: bool


class Checkpointing(Section):
    every_n_steps: Whole | None
    # They determine which weights best.ckpt holds, and when the plateau schedule lowers the learning rate.
    monitor: Annotated[Text | None, affects.weights] = None
    mode: Annotated[Literal["max", "min"] | None, affects.weights, Only("checkpointing.monitor")] = None


class Center(Section):
    name: Label
    fit: Literal["center"]
    crop_pct: Ratio
    aspect_step: ClassVar[float] = 1.0  # has no effect on squares


class Warp(Section):
    name: Label
    fit: Literal["warp"]
    crop_pct: ClassVar[float] = 1.0
    aspect_step: ClassVar[float] = 1.0


class Full(Section):
    name: Label
    fit: Literal["full"]
    crop_pct: ClassVar[float] = 1.0
    aspect_step: Positive


class Windows(Section):
    name: Label
    fit: Literal["windows"]
    crop_pct: ClassVar[float] = 1.0
    scales: Distinct[Side]
    base_size: Side
    positions: Literal[5, 9]
    mirror: bool
    full: Side | None
    source: Literal["map", "image"]
    aspect_step: Positive


AnyViews = Annotated[Center | Warp | Full | Windows, ChosenBy("fit")]


class Wandb(Section):
    project: Text
    entity: Text | None
    tags: list[Text]
    mode: Literal["offline", "online"]


class TensorBoard(Section):
    pass


class Logger(Section):
    wandb: Wandb | None = None
    tensorboard: TensorBoard | None = None


class Paths(Section):
    runs: FilePath
    cache: FilePath


class Debug(Section):
    traceback: bool


class Report(Section):
    metrics: Distinct[Label] | None
    figure: Literal["rows", "bins", "sizes"]
    compare: Text | None


class Config(Section):
    """The configuration of a run, with all values resolved."""

    study: Annotated[Label, affects.bookkeeping, changed_by("transfer", "status")]
    name: Annotated[Label | None, affects.nothing]
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)]
    force: Annotated[bool, affects.bookkeeping, changed_by(*EVERY.commands, "export")]
    retry: Annotated[Literal["failed", "all", "none"], affects.bookkeeping]
    init: Annotated[FilePath | None, affects.by_content] = None
    progress: Annotated[Literal["auto", "bar", "lines", "none"], affects.nothing, EVERY]
    data: Annotated[Data, affects.weights_and_test, READ]
    augment: Augment
    mix: AnyMix = NoMix(name="none")
    sizes: Sizes
    backbone: Backbone
    pyramid: Annotated[Pyramid, affects.by_content, changed_by("transfer"), Only("pooling.name", ("spp",))]
    pooling: AnyPooling
    head: AnyHead
    loss: AnyLoss
    optim: Optim
    trainer: Trainer
    compute: Annotated[Compute, EVERY]
    checkpointing: Annotated[Checkpointing, affects.nothing]
    views: Annotated[AnyViews, affects.test, EVERY]
    callbacks: dict[str, OpenSection]
    # A run's identity holds the metric that `checkpointing.monitor` names; see `sppnet.runs.identity`.
    metrics: Annotated[dict[str, OpenSection], affects.test, changed_by("test")] = {}
    logger: Annotated[Logger, affects.nothing]
    paths: Annotated[Paths, affects.bookkeeping, changed_by(*READ.commands, "status")]
    # debug=fast and debug=study set other keys, which the identity holds.
    debug: Annotated[Debug, affects.by_content, changed_by(*EVERY.commands, "export", "status")]
    report: Annotated[Report, affects.bookkeeping, changed_by("status")]

    @model_validator(mode="after")
    def _check_weights(self) -> Self:
        if self.init is not None and self.backbone.weights is not None:
            raise ValueError(
                f"init={self.init} and backbone.weights={self.backbone.weights} are not allowed together: both give the"
                " weights of the backbone; set backbone.weights=null"
            )
        if self.backbone.update_bn and self.data.batch_size == 1:
            raise ValueError(
                "backbone.update_bn=true and data.batch_size=1 are not allowed together: batch normalisation takes its"
                " statistics from batches of at least two images"
            )
        if self.backbone.update_bn and self.trainer.precision == "bf16-true":
            raise ValueError(
                "backbone.update_bn=true and trainer.precision=bf16-true are not allowed together: a mean over many"
                " batches needs more digits than bfloat16 has; use trainer.precision=bf16-mixed"
            )
        return self
