"""`sppnet test checkpoint=RUN_DIR_OR_FILE`: test a trained network with the configuration of its run."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sppnet.commands import checkpoint_app
from sppnet.config.command_schemas import TestConfig
from sppnet.config.keys import nearest, value_of
from sppnet.config.load import replace
from sppnet.config.schema import Config
from sppnet.data import ImageSet, build_images_from_config, build_sizes, load_tested
from sppnet.data.build import decoding_notices
from sppnet.errors import notice
from sppnet.runs.from_checkpoint import TrainedNetwork
from sppnet.runs.identity import ONE_DEVICE, digest, eval_identity
from sppnet.runs.result_text import print_result
from sppnet.runs.run_directory import Run
from sppnet.runs.test_record import confusion_file, read_confusion, write_test
from sppnet.storage.files import write_text


def main(words: Sequence[str]) -> None:
    checkpoint_app.run("test", words, test)


def test(trained: TrainedNetwork[TestConfig]) -> None:
    """Print a checkpoint's test metrics. If the checkpoint belongs to a run, store them in `RUN/tests` for reuse."""
    run, cfg = trained.run, replace(trained.cfg, ONE_DEVICE)
    build_sizes(cfg.sizes)
    warn_of_training_keys(trained.typed_keys, "on a test")
    images = build_images_from_config(cfg)
    test_hash = digest(eval_identity(cfg, trained.name, images))
    typed = any(key.startswith("trainer.profiler") for key in trained.typed_keys)
    profiled = typed or cfg.plain()["trainer"].get("profiler") != value_of(trained.stored, "trainer.profiler")
    result = run.result(test_hash) if run and not cfg.force and not profiled else None
    if result is not None and _checked_duplicates(result, cfg):
        for line in result.get("notices", ()):
            notice(line)
        print_result(run, result)
        if "confusion" not in result and not images.multilabel:
            notice("this test has no confusion matrix, because an older version stored it; force=true tests again")
        _draw_confusion(run, test_hash, result)
        return
    result = score_run(cfg, trained.weights, trained.name, images, _chose_data(trained))
    print_result(run, result)  # print before writing, which may fail in another user's run directory
    if run:
        write_test(run, test_hash, result)
        _draw_confusion(run, test_hash, result)


def _draw_confusion(run: Run | None, test: str, result: Mapping[str, Any]) -> None:
    """Draw the confusion matrix at each test size beside its CSV file, unless it has been drawn before."""
    for size in result.get("confusion", ()) if run else ():
        assert run is not None
        path = confusion_file(run, test, size)
        figure = path.with_suffix(".svg")
        if path.exists() and not (figure.exists() and figure.stat().st_mtime >= path.stat().st_mtime):
            from sppnet.report.confusion import draw_confusion  # imports matplotlib

            with contextlib.suppress(OSError):  # in another user's run directory
                write_text(figure, draw_confusion(*read_confusion(path)))


def warn_of_training_keys(typed: Iterable[str], where: str) -> None:
    """Warn about each typed key of `data` that determines only how a network is trained, such as `data.crop`.

    A key that `predict` may change, such as `data.batch_size`, also determines how a trained network is run.
    """
    for name in typed:
        key = nearest(Config, name.replace("/", "."))
        if key is None or not key.name.startswith("data."):
            continue
        if key.affects.weights and not key.affects.test and not key.may_change("predict"):
            notice(f"warning: {name} has no effect {where}")


def _checked_duplicates(result: Mapping[str, Any], cfg: Config) -> bool:
    """Whether a stored test passed the check that `data.duplicates` requires.

    `data.duplicates` is not part of the test's hash, so the test may have been run with a different value.
    """
    policy = cfg.data.duplicates
    return bool(policy != "error" or result.get("duplicates") == policy)


def _chose_data(trained: TrainedNetwork[TestConfig]) -> bool:
    """Whether the user chose the data to test on: typed the data set or an argument of its class, or has others now.

    The arguments may also come from a chosen option, such as one of `debug`.
    """
    node, stored = trained.cfg.data.node(), trained.stored["data"]
    names = {key.partition(".")[2].partition(".")[0] for key in trained.typed_keys if key.startswith("data.")}
    changed = any(value != stored.get(name) for name, value in node.items())
    return changed or "data" in trained.typed_keys or not names.isdisjoint(node)


def score_run(cfg: Config, weights: Path, name: str, images: ImageSet, chosen: bool = False) -> dict[str, Any]:
    """Test a network on one device and return the record of the test.

    Args:
        cfg: the configuration to test with.
        weights: the checkpoint file.
        name: the name under which the weights are recorded.
        images: the data set.
        chosen: whether the user chose the data (see `load_tested`).
    """
    from sppnet.training.preflight import check_job  # imports torch

    cfg = replace(cfg, {"backbone.weights": None, **ONE_DEVICE})  # all weights come from the checkpoint
    check_job(cfg)
    from sppnet.data.duplicates import describe_duplicates
    from sppnet.runs.checkpoint_files import locate, read_checkpoint
    from sppnet.training.callbacks import BadFiles, progress_display  # imports Lightning
    from sppnet.training.inference import load_classifier
    from sppnet.training.lightning_trainer import check_limits, make_trainer
    from sppnet.training.trainer import build_data, run_test, set_threads_and_filter_warnings

    set_threads_and_filter_warnings(cfg)
    checkpoint = read_checkpoint(weights)
    sets, notices = load_tested(cfg.data, images, checkpoint["sppnet"], chosen)
    notices += decoding_notices(cfg.data, images) + describe_duplicates(cfg.data, images, sets.parts())
    for line in notices:
        notice(line)
    classifier = load_classifier(checkpoint, cfg, sets, weights)
    bad_files = BadFiles(None)
    run, _ = locate(weights)
    root = run.path if run else None  # for the files of a profiler
    trainer = make_trainer(cfg, [bad_files, *progress_display(cfg.progress)], [], root)
    data = build_data(cfg, sets)
    check_limits(cfg, trainer, data, ("test",))
    try:
        result = run_test(trainer, classifier, data, eval_identity(cfg, name, images))
    except SystemExit:  # Lightning turns Ctrl-C into SystemExit
        raise KeyboardInterrupt from None
    for bad in sorted(bad_files.names):
        print(f"sppnet: {bad} could not be read and was left out", file=sys.stderr)
    if bad_files.names:
        notice(f"unreadable images left out of the test: {len(bad_files.names)}")
    return {
        **result,
        "bad_files": sorted(bad_files.names),
        "notices": notices,
        "duplicates": cfg.data.duplicates,
    }
