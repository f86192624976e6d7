"""`sppnet export checkpoint=RUN_DIR_OR_FILE format=NAME output=PATH`: write a trained network for other programs."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sppnet.commands import checkpoint_app
from sppnet.commands.test import warn_of_training_keys
from sppnet.config.command_schemas import ExportConfig
from sppnet.config.load import load
from sppnet.config.schema import Config
from sppnet.errors import UserError, notice
from sppnet.runs.checkpoint_files import CONFIG, WEIGHTS
from sppnet.runs.from_checkpoint import TrainedNetwork
from sppnet.runs.onnx_checkpoint import RUNS_ONNX, require_packages
from sppnet.storage.files import atomic_write
from sppnet.storage.paths import expand_path

if TYPE_CHECKING:
    from sppnet.export.verification import Agreement

NEEDS = {  # packages, all of the extra `export`
    "onnx": (*RUNS_ONNX, "onnxscript"),
    "pt2": (),
    "safetensors": ("safetensors",),
    "hub": ("safetensors", "huggingface_hub"),
}
ENDINGS = {"onnx": ".onnx", "pt2": ".pt2", "safetensors": ".safetensors"}


def main(words: Sequence[str]) -> None:
    checkpoint_app.run("export", words, export)


def export(trained: TrainedNetwork[ExportConfig]) -> None:
    """Write the network that `checkpoint` names to `output`.

    Raises:
        UserError: a value is not allowed, a package is missing, or the format cannot express the network.
        RunFailed: what was exported differs from the network; no file has been written.
    """
    cfg, output = trained.cfg, expand_path("output", trained.cfg.output)
    require_packages(f"format={cfg.format}", NEEDS[cfg.format])
    check_output(trained, output)
    check_keys(trained)
    # imports torch
    from sppnet.runs.checkpoint_files import read_checkpoint
    from sppnet.runs.model_metadata import describe, local_paths
    from sppnet.training.losses import uses_sigmoid

    # make SIGTERM raise KeyboardInterrupt, so that half-written files are removed; inside the import of torch, an
    # exception would abort the process
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    checkpoint = read_checkpoint(trained.weights)
    stored = load(Config, checkpoint["sppnet"]["config"])
    sigmoid = uses_sigmoid(stored.loss, stored.data.name, checkpoint["sppnet"]["multilabel"])
    metadata = describe(trained, checkpoint, stored, sigmoid)
    if trained.run is not None and not trained.run.done:
        state = trained.run.status.get("state", "unknown")
        notice(f"{trained.run.path} is not done (status: {state}), so its weights may still change")
    if paths := local_paths(metadata["sppnet"]["config"]):
        notice(f"the export holds paths of this machine: {', '.join(paths)}")
    if cfg.format == "hub":
        _write_hub_folder(trained, checkpoint, stored, metadata, output)
        return
    agreements: list[Agreement] = []
    if cfg.format == "safetensors":
        from sppnet.export.safetensors_file import build_safetensors

        content = build_safetensors(checkpoint["state_dict"], metadata)
    else:
        from sppnet.export.graph import build_graph
        from sppnet.training.trainer import set_threads_and_filter_warnings

        set_threads_and_filter_warnings(cfg)
        content, agreements = build_graph(cfg, checkpoint, stored, metadata, trained.weights)
    check_output(trained, output)  # again: another job may have written it meanwhile
    with _writing(output), atomic_write(output.resolve(), "wb") as file:
        file.write(content)
    if agreements:
        print(*_format_table(agreements), sep="\n")
    print(f"written: {output} ({len(content) / 1e6:.1f} MB)")


def _write_hub_folder(
    trained: TrainedNetwork[ExportConfig],
    checkpoint: Mapping[str, Any],
    stored: Config,
    metadata: Mapping[str, Any],
    output: Path,
) -> None:
    """Write the weights, the configuration, the model card and the figure of a network, and say how to upload them."""
    from sppnet.export.hub_folder import CARD, FIGURE, build_config, write_folder
    from sppnet.export.model_card import build_card
    from sppnet.export.safetensors_file import build_safetensors
    from sppnet.report.model_results import model_results, training_facts

    run = trained.run
    # the results and the provenance are those of the run's best weights
    is_best = run is not None and trained.weights.resolve() == run.best.resolve()
    results = model_results(run, stored.report) if run is not None and is_best else None
    unknown = "those of a run's best.ckpt alone are known"
    if run is not None and is_best:
        unknown = "the run has no whole record of its own test" if run.done else "the run was not done"
    facts, command = training_facts(run) if run is not None and is_best else ([], [])
    name = str(metadata["origin"]["run"] or output.resolve().name)
    card = build_card(name, stored, metadata, facts, command, results or unknown, FIGURE)
    files = {
        WEIGHTS: build_safetensors(checkpoint["state_dict"], metadata),
        CONFIG: build_config(metadata).encode(),
        CARD: card.encode(),
    }
    if results is not None and results.figure:
        files[FIGURE] = results.figure.encode()
    with _writing(output):
        write_folder(output, files, trained.cfg.force)
    if results is None:
        notice(f"the card has no results: {unknown}")
    print(f"written: {output} ({', '.join(files)})")
    where = shlex.quote(str(output))
    print(f"choose a license in {output / CARD}, then upload it: hf upload USER/NAME {where} --private")


@contextlib.contextmanager
def _writing(output: Path) -> Iterator[None]:
    """Raise UserError if the block cannot write."""
    try:
        yield
    except OSError as error:
        raise UserError(f"output={output} cannot be written: {error.strerror or error}") from None


def check_output(trained: TrainedNetwork[ExportConfig], output: Path) -> None:
    """Raise UserError if `output` has the wrong ending, exists, or cannot be written."""
    cfg = trained.cfg
    if cfg.format == "hub":
        from sppnet.export.hub_folder import check_folder

        check_folder(output, cfg.force)
        if output.resolve() == trained.weights.resolve().parent:
            raise UserError(f"output={cfg.output} is the folder that checkpoint= names; choose another")
        return
    ending = ENDINGS[cfg.format]
    if output.suffix != ending:
        raise UserError(f"output={cfg.output}: a file of format={cfg.format} ends in {ending}, such as model{ending}")
    target = Path(os.path.realpath(output))  # of a link
    if target.is_symlink():
        raise UserError(f"output={cfg.output} is a link that leads to itself")
    if target == trained.weights.resolve():
        raise UserError(f"output={cfg.output} is the file that checkpoint= names; choose another")
    if output.exists() and not output.is_file():
        raise UserError(f"output={cfg.output} is not a file")
    if (output.exists() or output.is_symlink()) and not cfg.force:
        raise UserError(f"output={cfg.output} exists; force=true replaces it")
    folder = target.parent if output.is_symlink() else output.parent
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise UserError(f"output={cfg.output}: there is no folder {folder} that can be written to")


def check_keys(trained: TrainedNetwork[ExportConfig]) -> None:
    """Raise UserError if the format has no use for `size` or `preprocess`, and say so of the data."""
    cfg = trained.cfg
    if cfg.format not in ("safetensors", "hub"):
        warn_of_training_keys(trained.typed_keys, "on an export")
        return
    if cfg.size is not None or not cfg.preprocess:
        key = f"size={cfg.size}" if cfg.size is not None else "preprocess=false"
        raise UserError(f"{key} has no effect with format={cfg.format}, which holds weights; leave it out")
    for key in trained.typed_keys:
        if key.partition(".")[0] == "data":
            notice(f"warning: {key} has no effect with format={cfg.format}, which compares no images")


def _format_table(agreements: Sequence[Agreement]) -> list[str]:
    rows = [("", "shapes", "images", "largest difference", "same top-1")]
    for a in agreements:
        rows.append((a.what, str(a.shapes), str(a.images), f"{a.difference:.1e}", f"{a.same} of {a.images}"))
    width = max(len(row[0]) for row in rows)
    return [f"{row[0]:<{width}}  {row[1]:>6}  {row[2]:>6}  {row[3]:>18}  {row[4]:>12}" for row in rows]
