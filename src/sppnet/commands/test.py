"""`sppnet test checkpoint=RUN_DIR_OR_FILE`: test a trained network with the configuration of its run."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sppnet.commands import checkpoint_app
from sppnet.data import ImageSet, build_images_from_config, load_tested
from sppnet.data.build import OWN_KEYS
from sppnet.errors import notice
from sppnet.runs.from_checkpoint import HARDWARE, TrainedNetwork
from sppnet.runs.identity import digest, eval_identity
from sppnet.runs.plan import validate
from sppnet.runs.result_text import print_result
from sppnet.storage.files import write_json

TRAINING_ONLY = ("data.crop", "data.flip", "data.color", "data.fit", "data.aspect_step")
MAY_CHANGE = ("data", "sizes.test", "views", "paths", "debug", "force", *HARDWARE)


def main(words: Sequence[str]) -> None:
    checkpoint_app.run("test", words, test, (), MAY_CHANGE)


def test(trained: TrainedNetwork) -> None:
    """Print a checkpoint's test metrics. If the checkpoint belongs to a run, store them in `RUN/tests` for reuse."""
    run = trained.run
    # one device, as in `score_run`; otherwise the hash below would not match the test that `score_run` records
    cfg = {**trained.cfg, "trainer": {**trained.cfg["trainer"], "devices": 1, "num_nodes": 1}}
    validate(cfg)
    for key in trained.typed_keys:
        if key.startswith(TRAINING_ONLY):
            print(f"sppnet: warning: {key} has no effect on a test", file=sys.stderr)
    images = build_images_from_config(cfg)
    test_hash = digest(eval_identity(cfg, trained.name, images))
    result = run.result(test_hash) if run and not cfg["force"] else None
    if result is not None and _checked_duplicates(result, cfg):
        for line in result.get("notices", ()):
            notice(line)
        print_result(run, result)
        return
    result = score_run(cfg, trained.weights, trained.name, images, _chose_data(trained.typed_keys))
    print_result(run, result)  # print before writing, which may fail in another user's run directory
    if run:
        file = run.test_file(test_hash)
        file.parent.mkdir(exist_ok=True)
        write_json(file, result)


def _checked_duplicates(result: Mapping[str, Any], cfg: Mapping[str, Any]) -> bool:
    """Whether a stored test passed the check that `data.duplicates` requires.

    `data.duplicates` is not part of the test's hash, so the test may have been run with a different value.
    """
    policy = cfg["data"]["duplicates"]
    return bool(policy != "error" or result.get("duplicates") == policy)


def _chose_data(typed: Iterable[str]) -> bool:
    """Whether the user chose the data to test on."""
    own = {f"data.{key}" for key in OWN_KEYS}
    return any(key == "data" or (key.startswith("data.") and ".".join(key.split(".")[:2]) not in own) for key in typed)


def score_run(
    cfg: Mapping[str, Any], weights: Path, name: str, images: ImageSet, chosen: bool = False
) -> dict[str, Any]:
    """Test a network on one device and return the record of the test.

    Args:
        cfg: the configuration to test with.
        weights: the checkpoint file.
        name: the name under which the weights are recorded.
        images: the data set.
        chosen: whether the user chose the data (see `load_tested`).
    """
    from sppnet.training.preflight import check_job  # imports torch

    backbone = {**cfg["backbone"], "weights": None}  # all weights come from the checkpoint
    cfg = {**cfg, "backbone": backbone, "trainer": {**cfg["trainer"], "devices": 1, "num_nodes": 1}}
    check_job(cfg)
    from sppnet.data.duplicates import describe_duplicates
    from sppnet.runs.from_checkpoint import read_checkpoint
    from sppnet.training.callbacks import BadFiles, progress_display  # imports Lightning
    from sppnet.training.inference import load_classifier
    from sppnet.training.trainer import build_data, make_trainer, run_test, set_threads_and_filter_warnings

    set_threads_and_filter_warnings(cfg)
    checkpoint = read_checkpoint(weights)
    sets, notices = load_tested(cfg["data"], images, checkpoint["sppnet"], chosen)
    notices = [*notices, *describe_duplicates(cfg["data"], images, sets.parts())]
    for line in notices:
        notice(line)
    classifier = load_classifier(checkpoint, cfg, sets, weights)
    bad_files = BadFiles(None)
    trainer = make_trainer(cfg, [bad_files, *progress_display(cfg["trainer"]["progress"])], [])
    try:
        result = run_test(trainer, classifier, build_data(cfg, sets), eval_identity(cfg, name, images))
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
        "duplicates": cfg["data"]["duplicates"],
    }
