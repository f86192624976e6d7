"""`sppnet test checkpoint=RUN_DIR_OR_FILE`: score a trained network; only what the user typed differs from its run."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sppnet.commands import checkpoint_app
from sppnet.data import ImageSet, images_of, load_tested
from sppnet.data.build import OWN_KEYS
from sppnet.errors import notice
from sppnet.runs.from_checkpoint import HARDWARE, Trained
from sppnet.runs.identity import digest, eval_identity
from sppnet.runs.plan import validate
from sppnet.runs.result_text import print_result
from sppnet.storage.files import write_json

TRAINING_ONLY = ("data.crop", "data.flip", "data.color", "data.fit", "data.aspect_step")
MAY_CHANGE = ("data", "sizes.test", "views", "paths", "debug", "force", *HARDWARE)


def main(words: Sequence[str]) -> None:
    """Put the run's overrides before the typed ones and compose `conf/test.yaml`."""
    checkpoint_app.run("test", words, test, (), MAY_CHANGE)


def test(trained: Trained) -> None:
    """Score the checkpoint and print its figures; the figures of a run are kept in `RUN/tests`."""
    run = trained.run
    cfg = {**trained.cfg, "trainer": {**trained.cfg["trainer"], "devices": 1, "num_nodes": 1}}  # see `score_run`
    validate(cfg)
    for key in trained.typed:
        if key.startswith(TRAINING_ONLY):
            print(f"sppnet: warning: {key} has no effect on a test", file=sys.stderr)
    images = images_of(cfg)
    hashed = digest(eval_identity(cfg, trained.name, images))
    found = run.result(hashed) if run and not cfg["force"] else None
    if found is not None and _serves(found, cfg):
        for line in found.get("notices", ()):
            notice(line)
        print_result(run, found)
        return
    found = score_run(cfg, trained.weights, trained.name, images, _chosen(trained.typed))
    print_result(run, found)  # before it is kept: a run of somebody else's may not be ours to write to
    if run:
        file = run.test_file(hashed)
        file.parent.mkdir(exist_ok=True)
        write_json(file, found)


def _serves(found: Mapping[str, Any], cfg: Mapping[str, Any]) -> bool:
    """Whether a test that is kept has refused what `data.duplicates` refuses."""
    how = cfg["data"]["duplicates"]
    return bool(how != "error" or found.get("duplicates") == how)


def _chosen(typed: Iterable[str]) -> bool:
    """Whether what was typed says which data to test on."""
    own = {f"data.{key}" for key in OWN_KEYS}
    return any(key == "data" or (key.startswith("data.") and ".".join(key.split(".")[:2]) not in own) for key in typed)


def score_run(
    cfg: Mapping[str, Any], weights: Path, name: str, images: ImageSet, chosen: bool = False
) -> dict[str, Any]:
    """Score the network in `weights`, called `name` in the record, on `images` as `cfg` says, on one device.

    `chosen` says whether the user chose the data (see `load_tested`).
    """
    from sppnet.training.preflight import check_job  # imports torch

    backbone = {**cfg["backbone"], "weights": None}  # all weights come from the checkpoint
    cfg = {**cfg, "backbone": backbone, "trainer": {**cfg["trainer"], "devices": 1, "num_nodes": 1}}
    check_job(cfg)
    from sppnet.data.duplicates import describe_duplicates
    from sppnet.training.callbacks import BadFiles, progress_display  # imports Lightning
    from sppnet.training.checkpointing import read_checkpoint
    from sppnet.training.inference import load_trained
    from sppnet.training.trainer import build_data, make_trainer, score, settle

    settle(cfg)
    checkpoint = read_checkpoint(weights)
    sets, notices = load_tested(cfg["data"], images, checkpoint["sppnet"], chosen)
    notices = [*notices, *describe_duplicates(cfg["data"], images, sets.parts())]
    for line in notices:
        notice(line)
    classifier = load_trained(checkpoint, cfg, sets, weights)
    bad_files = BadFiles(None)
    trainer = make_trainer(cfg, [bad_files, *progress_display(cfg["trainer"]["progress"])], [])
    try:
        found = score(trainer, classifier, build_data(cfg, sets), eval_identity(cfg, name, images))
    except SystemExit:  # what Lightning makes of Ctrl-C
        raise KeyboardInterrupt from None
    for bad in sorted(bad_files.names):
        print(f"sppnet: {bad} could not be read and was left out", file=sys.stderr)
    if bad_files.names:
        notice(f"{len(bad_files.names)} image(s) of the test part could not be read and were left out")
    kept = {"notices": notices, "duplicates": cfg["data"]["duplicates"]}
    return found | {"bad_files": sorted(bad_files.names)} | kept
