"""Writes the model card of a folder for the Hugging Face Hub: what a network is, its results and how it was trained."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sppnet.config.schema import SPP, Config, OpenSection
from sppnet.errors import format_value

MAX_CLASSES = 40  # names that the card lists
LICENSE = "not-chosen-yet"
HUB_METRICS = {"top1": "accuracy", "macro_f1": "f1"}  # the names that the Hub knows


@dataclass(frozen=True)
class Score:
    """One metric of one test size.

    Attributes:
        metric: its name, such as `top1`.
        size: the test size in pixels.
        images: number of test images at this size.
        value: that of the network itself.
        shown: the value as text.
        over_seeds: mean, deviation and 95 % interval over the seeds of the study's row, as text; "" for a lone run.
        seeds: the number of seeds of `over_seeds`.
    """

    metric: str
    size: str
    images: int
    value: float
    shown: str
    over_seeds: str = ""
    seeds: int = 1


@dataclass(frozen=True)
class Results:
    """The test results of a network.

    Attributes:
        scores: one per metric and test size.
        views: how the test crops or resizes images, the name of `views`.
        study: the name of the study that planned the run; "" for a lone run.
        row: the name of the run's row in the study's table.
        note: what limits the result, such as `trainer.limit_train_batches=4`.
        figure: the study's figure as SVG; None if there is none.
    """

    scores: Sequence[Score]
    views: str
    study: str = ""
    row: str = ""
    note: str = ""
    figure: str | None = None


def build_card(
    name: str,
    cfg: Config,
    metadata: Mapping[str, Any],
    training: Sequence[tuple[str, str]],
    command: Sequence[str],
    results: Results | str,
    figure_file: str,
) -> str:
    """Return the content of the model card, with the front matter that the Hub reads.

    Args:
        name: the name of the network.
        cfg: the configuration of its training.
        metadata: see `sppnet.runs.model_metadata.describe`.
        training: facts about the training that the configuration lacks, as (name, value).
        command: the command line that trained it; empty if it is not known.
        results: the test results, or the reason why they are not known.
        figure_file: the name of the file with the figure.
    """
    from huggingface_hub import ModelCard  # an optional package

    parts = [
        f"# {_plain(name)}",
        _introduction(cfg),
        "**Before you publish this:** choose a license (`license` and `license_name` at the top of this file; they are"
        " placeholders), and say here what the network is for and where it fails.",
        "## Classes",
        _classes(metadata["classes"]),
        "## Results",
        *_results(results, figure_file),
        "## Training",
        _table([("setting", "value"), *_settings(cfg), *training]),
        *(["The command that trained it, and repeats it:", f"```\n{shlex.join(command)}\n```"] if command else []),
        "## Use",
        _usage(metadata),
    ]
    scores = () if isinstance(results, str) else results.scores
    content = "\n\n".join([f"---\n{_front_matter(name, cfg, scores)}\n---", *parts]) + "\n"
    ModelCard(content)  # parses the front matter
    return content


def _front_matter(name: str, cfg: Config, scores: Sequence[Score]) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    task, data = "image-classification", cfg.data.name
    evaluations = [
        EvalResult(
            task_type=task,
            dataset_type=data,
            dataset_name=data,
            metric_type=HUB_METRICS.get(score.metric, score.metric),
            metric_name=f"{score.metric} at {score.size} px",
            metric_value=score.value,
        )
        for score in scores
    ]
    front = ModelCardData(
        library_name="sppnet",
        pipeline_tag=task,
        license="other",
        license_name=LICENSE,
        tags=["sppnet", "pytorch", task, "spatial-pyramid-pooling" if isinstance(cfg.pooling, SPP) else "pooling"],
        model_name=name if evaluations else None,
        eval_results=evaluations or None,
    )
    return front.to_yaml()


def _introduction(cfg: Config) -> str:
    pooling = _option(cfg.pooling)
    if isinstance(cfg.pooling, SPP):
        levels = ", ".join(f"{n}x{n}" for n in cfg.pooling.bins)
        pooling = f"a spatial pyramid of {levels} bins"
    shapes = "any height and width that its backbone takes"
    if not getattr(cfg.pooling, "takes_any_shape", True):
        shapes = "one size" if cfg.pooling.name == "flatten" else "the sizes that its pooling takes"
    sizes = format_value(list(cfg.sizes.train))
    return (
        f"A network that classifies images. Its backbone is `{_option(cfg.backbone)}`, its pooling is {pooling}, and"
        f" its head is `{_option(cfg.head)}`. It was trained with sppnet on the data set"
        f" `{_plain(cfg.data.name)}` at sizes of {sizes} pixels, and takes images of {shapes}."
    )


def _classes(classes: Sequence[str]) -> str:
    names = ", ".join(f"`{_plain(label)}`" for label in classes[:MAX_CLASSES])
    more = f" and {len(classes) - MAX_CLASSES} more (all in `config.json`)" if len(classes) > MAX_CLASSES else ""
    return f"{len(classes)} classes, in the order of the logits: {names}{more}."


def _results(results: Results | str, figure_file: str) -> list[str]:
    if isinstance(results, str):
        return [f"The test results are not known: {_plain(results)}."]
    scores, planned = results.scores, bool(results.study)
    head = (
        "metric",
        "test size",
        "images",
        "this network",
        *(["mean ± deviation [95 % interval]", "seeds"] if planned else []),
    )
    rows = [
        (
            score.metric,
            f"{score.size} px",
            str(score.images),
            score.shown,
            *([score.over_seeds, str(score.seeds)] if planned else []),
        )
        for score in scores
    ]
    about = f"Measured with `views={_plain(results.views)}` on the given number of test images. "
    if planned:
        about += (
            f"Means are taken over the seeds of the row `{_plain(results.row)}` of the study `{_plain(results.study)}`;"
            " the interval is Student's, for the mean. The network in this folder has one of these seeds."
        )
        if any(not score.seeds for score in scores):
            about += (
                " Where there is no mean, the row's latest tests, which the figure shows, measure the metric in another"
                " way, or not at all."
            )
    else:
        about += "No study that planned this test was found, so the results are those of one training with one seed."
    note = f"The results are limited: {_plain(results.note)}." if results.note else ""
    figure = f"![All rows of the study {_plain(results.study)}]({figure_file})" if results.figure else ""
    return [part for part in (_table([head, *rows]), about, note, figure) if part]


def _settings(cfg: Config) -> list[tuple[str, str]]:
    """The settings that a reader asks for first; `config.json` has all."""
    values = {
        "data": cfg.data.name,
        "sizes.train": list(cfg.sizes.train),
        "sizes.test": list(cfg.sizes.test),
        "backbone": _option(cfg.backbone),
        "pooling": _option(cfg.pooling),
        "head": _option(cfg.head),
        "loss": _option(cfg.loss),
        "optim": cfg.optim.target.rpartition(".")[2],
        "optim.lr": cfg.optim.lr,
        "optim.schedule": cfg.optim.schedule.name,
        "data.batch_size": cfg.data.batch_size,
        "trainer.max_epochs": cfg.trainer.max_epochs,
        "trainer.precision": cfg.trainer.precision,
        "seed": cfg.seed,
    }
    return [(key, _plain(format_value(value))) for key, value in values.items()]


def _usage(metadata: Mapping[str, Any]) -> str:
    probabilities = "sigmoid()" if metadata["activation"] == "sigmoid" else "softmax(1)"
    return (
        "```python\n"
        "import sppnet  # with its extra `export`\n\n"
        'model = sppnet.from_pretrained("USER/NAME")  # the name on the Hub, or the path of this folder\n'
        f'probabilities = model.network(model.preprocess("photo.jpg")[None]).{probabilities}\n'
        "```\n\n"
        "The order of the probabilities is that of `model.classes`. Nothing in this folder is executed; classes of the"
        ' author\'s own, if there are any, need `allow="PACKAGE"` and the package. `sppnet test`, `predict`, `transfer`'
        " and `export` take the folder as `checkpoint=FOLDER`."
    )


def _option(section: Any) -> str:
    """The name of a chosen option or, without one, of its class."""
    named = getattr(section, "name", None)
    return _plain(str(named or (section.target if isinstance(section, OpenSection) else type(section).__name__)))


def _table(rows: Iterable[Sequence[str]]) -> str:
    head, *body = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *body])


def _plain(text: str) -> str:
    """Text that ends neither a code span nor a line."""
    return "".join(character if character.isprintable() else " " for character in text).replace("`", "'")
