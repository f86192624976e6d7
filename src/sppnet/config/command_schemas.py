"""The configurations of the commands: that of a run, and the keys that each command adds. Does not import torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from sppnet.config.marks import affects, changed_by
from sppnet.config.schema import (
    MAX_LEVEL,
    Config,
    Count,
    Distinct,
    FilePath,
    Label,
    Positive,
    Pyramid,
    Section,
    Sides,
    Text,
    Whole,
)


class TestConfig(Config):
    checkpoint: FilePath


class PredictConfig(TestConfig):
    input: FilePath
    output: FilePath | None
    top: Whole
    draw: bool | FilePath


class SVM(Section):
    C: Positive


class ExportConfig(TestConfig):
    format: Literal["onnx", "pt2", "safetensors", "hub"]
    output: FilePath
    size: Annotated[int, Field(ge=1, le=4096)] | None
    preprocess: bool


class PerClass(Section):
    train: Whole
    test: Whole


class TransferConfig(Config):
    # layer=spp uses these bins for a network without a pyramid
    pyramid: Annotated[Pyramid, affects.by_content, changed_by("transfer")]
    checkpoint: FilePath | None
    layer: Literal["conv", "pool", "spp", "gap", "pooling", "fc1", "fc2"]
    pool_to: Annotated[int, Field(ge=1, le=MAX_LEVEL)]
    svm: SVM
    splits: Annotated[int, Field(ge=1, le=10_000)] | None
    per_class: PerClass
    split_seed: Count


class StatusConfig(Config):
    study: Annotated[Label | None, affects.bookkeeping]  # type: ignore[assignment]  # null: see conf/status.yaml
    watch: bool


class ReportConfig(Config):
    study: Annotated[Label | None, affects.bookkeeping]  # type: ignore[assignment]  # null: see conf/report.yaml
    output: FilePath | None
    latex: bool
    html: bool


class BenchConfig(Section):
    only: (
        Distinct[
            Literal["layer", "loading", "views", "windows", "step", "throughput", "compile", "start", "sweep", "export"]
        ]
        | None
    )
    accelerator: Literal["auto", "cpu", "gpu"]
    num_threads: Annotated[int, Field(ge=1, le=1024)]
    photographs: FilePath | None
    quick: bool
    output: FilePath | None


class TestSizes(Section):
    test: Sides


class ModelsConfig(Section):
    sizes: TestSizes


COMMANDS: dict[str, type[Section]] = {
    "train": Config,
    "test": TestConfig,
    "predict": PredictConfig,
    "transfer": TransferConfig,
    "export": ExportConfig,
    "status": StatusConfig,
    "report": ReportConfig,
    "bench": BenchConfig,
    "models": ModelsConfig,
}
# the commands that apply what is typed to the configuration of a run
FROM_CHECKPOINT = tuple(name for name, schema in COMMANDS.items() if "checkpoint" in schema.model_fields)
STARTS_JOBS = ("train", *FROM_CHECKPOINT)  # the commands that a launcher can run


SET_BY_LAUNCHER = (
    *("array", "error", "no-requeue", "nodes", "ntasks", "ntasks-per-node", "open-mode", "output", "requeue", "signal"),
)


def _refuse_own_options(options: dict[str, Any]) -> dict[str, Any]:
    if options.keys() & {*SET_BY_LAUNCHER}:
        raise ValueError("set by the launcher")
    return options


class SlurmOptions(Section):
    """Options of launch=slurm (`hydra.launcher`); conf/launch/slurm.yaml has the defaults."""

    partition: Text | None
    account: Text | None
    qos: Text | None
    time: Annotated[
        Annotated[str, Field(pattern=r"^(\d+-)?\d+(:\d+){0,2}$")] | Whole | None,
        Field(description="null, a number of minutes, or a time such as '12:00:00' or '1-12:00:00'"),
    ]
    cpus: Whole
    gpus: Count
    memory: Text | Whole | None
    parallel: Whole | None
    warning: Annotated[int, Field(ge=1, le=65535)]
    setup: list[Text]
    options: Annotated[
        dict[str, Text | int | float | bool | None],
        AfterValidator(_refuse_own_options),
        Field(
            description="a mapping from sbatch's long options to plain values, without those that the launcher sets "
            f"itself ({', '.join(SET_BY_LAUNCHER)})"
        ),
    ]
