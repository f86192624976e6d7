"""`sppnet test checkpoint=RUN_DIR_OR_FILE`: score a trained network; only what the user typed differs from its run.

The run's own overrides are composed again, once as they were and once with what was typed; what was typed, and what it
changed elsewhere, is put over the configuration that the run stored. So a later change of a default in `conf/` does not
reach an old run, and `views=full` or `data=folder` mean here what they mean in training.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from sppnet import compose, settings
from sppnet.compose import Job
from sppnet.errors import UserError
from sppnet.identity import check_identity, digest, file_digest
from sppnet.runs import Run, read_json, write_json
from sppnet.show import print_result

NORMALISATION = ("data.mean", "data.std")
MAY_CHANGE = (
    *("data", "sizes.test", "views", "paths", "debug", "force"),
    *(f"trainer.{k}" for k in ("accelerator", "precision", "threads", "deterministic", "limit_batches", "progress")),
    *("trainer.compile", "trainer.channels_last"),
)


def main() -> None:
    """Put the run's overrides before the typed ones and compose `conf/test.yaml`."""
    named = [word.partition("=")[2] for word in sys.argv[1:] if word.startswith("checkpoint=")]
    sweep = any(word in {"-m", "--multirun"} for word in sys.argv[1:])
    if named and not (sweep and "," in named[-1]):  # a list of checkpoints: each job finds its own overrides
        sys.argv[1:1] = stored(Path(named[-1]))[1]
    compose.run("test", test)


def test(job: Job) -> None:
    """Score the checkpoint and print its figures; the figures of a run are kept in `RUN/tests`."""
    where = Path(job.cfg.pop("checkpoint"))
    kept, overrides = stored(where)
    typed = [word.partition("=")[0].lstrip("+~") for word in job.overrides[len(overrides) :]]
    cfg = merge(kept, compose.again("test", overrides), job.cfg, typed)
    settings.check(cfg)
    run, weights = locate(where)
    name = _weights_name(run, weights)
    file = run.test_file(digest(check_identity(cfg, name))) if run else None
    found = read_json(file) if file and not cfg["force"] else None
    if found is not None:
        print_result(run, found)
        return
    found = score_run(cfg, weights, name)
    print_result(run, found)  # before it is kept: a run of somebody else's may not be ours to write to
    if file:
        file.parent.mkdir(exist_ok=True)
        write_json(file, found)


def score_run(cfg: Mapping[str, Any], weights: Path, name: str) -> dict[str, Any]:
    """Score the network in `weights`, called `name` in the record, as `cfg` says, on one device."""
    from sppnet.checks import check_job  # imports torch

    cfg = {**cfg, "trainer": {**cfg["trainer"], "devices": 1, "num_nodes": 1}}
    check_job(cfg)
    from sppnet.callbacks import BadFiles, progress_display  # imports Lightning
    from sppnet.checkpoints import read_checkpoint
    from sppnet.data import load_sets
    from sppnet.training import build_data, load_trained, make_trainer, score, settle

    settle(cfg)
    checkpoint = read_checkpoint(weights)
    sets = load_sets(cfg["data"])
    classifier = load_trained(checkpoint, cfg, sets, weights)
    bad_files = BadFiles(None)
    trainer = make_trainer(cfg, [bad_files, *progress_display(cfg["trainer"]["progress"])], [])
    try:
        found = score(trainer, classifier, build_data(cfg, sets), check_identity(cfg, name))
    except SystemExit:  # what Lightning makes of Ctrl-C
        raise KeyboardInterrupt from None
    for bad in sorted(bad_files.names):
        print(f"sppnet: {bad} could not be read and was left out", file=sys.stderr)
    return found | {"bad_files": sorted(bad_files.names)}


def locate(where: Path) -> tuple[Run | None, Path]:
    """The run that `checkpoint=where` means (if it is one's directory or lies in one) and the file of weights.

    Raises:
        UserError: nothing is there, or the run has no checkpoint yet.
    """
    if where.is_dir():
        run = Run(where)
        if not run.best.is_file():
            state = run.status.get("state", "no run of sppnet's")
            raise UserError(f"checkpoint={where}: there is no checkpoints/best.ckpt in it ({state})")
        return run, run.best
    if not where.is_file():
        raise UserError(f"checkpoint={where}: no such file or directory")
    home = where.resolve().parent
    inside = home.name == "checkpoints" and (home.parent / "config.yaml").is_file()
    return (Run(where.parent.parent) if inside else None), where


def stored(where: Path) -> tuple[dict[str, Any], list[str]]:
    """Configuration and overrides of the run that made the checkpoint; a lone file carries its own.

    Raises:
        UserError: nothing is there, or it is no checkpoint.
    """
    run, weights = locate(where)
    if run is not None:
        try:
            cfg = yaml.safe_load((run.path / "config.yaml").read_text(encoding="utf-8"))
            return cfg, (run.path / "overrides.txt").read_text(encoding="utf-8").splitlines()
        except (OSError, yaml.YAMLError) as error:
            raise UserError(f"checkpoint={where}: its configuration cannot be read: {error}") from None
    from sppnet.checkpoints import read_checkpoint

    found = read_checkpoint(weights)["sppnet"]
    return found["config"], found["overrides"]


def merge(
    kept: Mapping[str, Any], before: Mapping[str, Any], after: Mapping[str, Any], typed: Sequence[str]
) -> dict[str, Any]:
    """`kept` with what differs between `before` and `after`, and what was `typed` (keys and groups), put over it.

    How images are normalised belongs to the network, so it stays whatever the data.

    Raises:
        UserError: something differs that a test takes from its checkpoint.
    """
    made = {key: _merge(kept.get(key), before.get(key), after.get(key)) for key in {**kept, **after}}
    for key in typed:
        _put(made, after, key.split("."))
    for key in ("mean", "std"):
        if f"data.{key}" not in typed:
            made["data"] = {**made["data"], key: kept["data"][key]}
    for key, old, new in _differences(kept, made):
        if not any(key == may or key.startswith(f"{may}.") for may in MAY_CHANGE) or key in NORMALISATION:
            raise UserError(
                f"{key}={new} is not allowed: a test takes it from its checkpoint, where it is {old};"
                f" what may change is {', '.join(MAY_CHANGE)}"
            )
    return made


def _put(made: dict[str, Any], source: Any, path: list[str]) -> None:
    """Copy the node at `path` from `source`, if it is there (a group that is no key, such as pyramid, is not)."""
    node: Any = made
    for part in path[:-1]:
        if not isinstance(source, dict) or part not in source or not isinstance(node.get(part), dict):
            return
        node[part] = dict(node[part])
        node, source = node[part], source[part]
    if isinstance(source, dict) and path[-1] in source:
        node[path[-1]] = source[path[-1]]


def _merge(kept: Any, before: Any, after: Any) -> Any:
    if before == after:
        return kept
    if not (isinstance(kept, dict) and isinstance(before, dict) and isinstance(after, dict)):
        return after
    keys = [key for key in {**kept, **after} if key in after or before.get(key) == after.get(key)]
    return {key: _merge(kept.get(key), before.get(key), after.get(key)) for key in keys}


def _differences(old: Any, new: Any, key: str = "") -> list[tuple[str, Any, Any]]:
    if old == new:
        return []
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return [(key, old, new)]
    return [
        found
        for name in {**old, **new}
        for found in _differences(old.get(name), new.get(name), f"{key}.{name}".lstrip("."))
    ]


def _weights_name(run: Run | None, weights: Path) -> str:
    """`best` for the best weights of a run that is done, as its own test is called; a digest for anything else."""
    if run is not None and run.done and weights.resolve() == run.best.resolve():
        return "best"
    return file_digest(weights)
