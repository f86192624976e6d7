"""Verbs that start from a trained network (`checkpoint=RUN_DIR_OR_FILE`): only what was typed differs from its run.

The run's own overrides are composed again, once as they were and once with what was typed; what was typed, and what it
changed elsewhere, is put over the configuration that the run stored. So a later change of a default in `conf/` does not
reach an old run, and `views=full` or `data=folder` mean there what they mean in training. Nothing here imports torch,
but to read a lone checkpoint file.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sppnet.commands import hydra_app
from sppnet.commands.hydra_app import Job
from sppnet.config import compose, overrides
from sppnet.config.instantiate import check_target
from sppnet.config.schema import check_layout, shown
from sppnet.data.datasets.listing import given_path
from sppnet.errors import UserError, notice
from sppnet.runs.identity import digest, file_digest, own_code
from sppnet.runs.run_directory import Run, read_record

NORMALISATION = ("data.mean", "data.std")
HARDWARE = (
    *("trainer.accelerator", "trainer.precision", "trainer.threads", "trainer.deterministic", "trainer.compile"),
    *("trainer.channels_last", "trainer.limit_batches", "trainer.progress"),
)


@dataclass(frozen=True)
class Trained:
    """A trained network as a verb finds it.

    Attributes:
        cfg: the configuration of its run with what was typed put over it.
        where: the value of `checkpoint`.
        run: the run that `where` means; None for a lone file.
        weights: the checkpoint file.
        typed: the keys and groups that were typed.
        other_code: the code of the user's own backbone, if it is not what was trained.
    """

    cfg: dict[str, Any]
    where: Path
    run: Run | None
    weights: Path
    typed: tuple[str, ...]
    other_code: dict[str, str]

    @property
    def name(self) -> str:
        """`best` for the best weights of a run that is done, as its own test is called; a digest for anything else,
        also for those weights in a network whose code has changed."""
        if self.other_code:
            return f"{file_digest(self.weights)} in {digest(self.other_code)}"
        if self.run is not None and self.run.done and self.weights.resolve() == self.run.best.resolve():
            return "best"
        return file_digest(self.weights)


def run(verb: str, job: Callable[[Trained], None], own: Sequence[str], may_change: Sequence[str]) -> None:
    """Compose `conf/<verb>.yaml` over the run that `checkpoint=` names and call `job`.

    Args:
        verb: names the primary configuration file.
        job: does the work.
        own: top-level keys of the verb itself, which no run has; what they are is the verb's to check.
        may_change: keys (and sections) in which the verb may differ from the run.

    Raises:
        UserError: nothing is there, it is no checkpoint, or something differs that may not.
    """
    overrides.settle(verb)
    where = named_checkpoint()
    replayed = [] if where is None else compose.known(verb, stored(_path(where))[1])
    sys.argv[1:1] = replayed

    def start(made: Job) -> None:
        job(_trained(verb, made, own, may_change))

    hydra_app.run(verb, start, len(replayed))


def named_checkpoint() -> str | None:
    """What `checkpoint=` was given on the command line; None for `null`, for several in a sweep (each job finds its
    own), or if it was not given."""
    return overrides.typed("checkpoint")


def _trained(verb: str, made: Job, own: Sequence[str], may_change: Sequence[str]) -> Trained:
    where = _path(made.cfg.pop("checkpoint"))
    kept, overrides = stored(where)
    overrides = compose.known(verb, overrides)
    typed = [word.partition("=")[0].lstrip("+~") for word in made.overrides[len(overrides) :]]
    before, after = compose.again(verb, overrides), made.cfg
    theirs = {key: after.pop(key) for key in own}
    cfg = merge(kept, {key: value for key, value in before.items() if key not in own}, after, typed)
    refuse_changes(kept, cfg, may_change, verb)
    run, weights = locate(where)
    return Trained(cfg | theirs, where, run, weights, tuple(typed), _other_code(cfg.get("backbone"), where, run))


def _other_code(backbone: Any, where: Path, run: Run | None) -> dict[str, str]:
    """The code of a backbone of the user's own if it has changed since its run was trained, which is said."""
    if not isinstance(backbone, Mapping):
        return {}
    check_target(backbone.get("_target_"), "backbone")  # before a package of its name is looked into
    if not (now := own_code(backbone)):
        return {}
    if run is not None:
        then = (read_record(run.path / "provenance.json").get("identity") or {}).get("code") or {}
    else:
        from sppnet.storage.tensors import read_checkpoint

        then = read_checkpoint(where)["sppnet"].get("code", {})
    changed = {name: made for name, made in now.items() if name in then and then[name] != made}
    for name in changed:
        notice(
            f"the file of backbone._target_={name} has changed since checkpoint={where} was trained; as it is now, its"
            " weights may mean something else"
        )
    return changed


def _path(typed: str) -> Path:
    if not typed:
        raise UserError("checkpoint= is empty; it takes a run directory or a checkpoint file")
    return given_path("checkpoint", typed)


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
    if home.name != "checkpoints" or not (home.parent / "config.yaml").is_file():
        return None, where
    named = where.parent.parent  # as it was typed, unless that is a link, or begins in the folder
    return Run(named if named.resolve() == home.parent else home.parent), where


def stored(where: Path) -> tuple[dict[str, Any], list[str]]:
    """Configuration and overrides of the run that made the checkpoint; a lone file carries its own.

    Raises:
        UserError: nothing is there, or it is no checkpoint.
    """
    run, weights = locate(where)
    if run is not None:
        try:
            cfg = yaml.safe_load((run.path / "config.yaml").read_text(encoding="utf-8"))
            if not isinstance(cfg, dict) or not isinstance(cfg.get("data"), dict):
                raise UserError(f"checkpoint={where}: its config.yaml is damaged; a checkpoint file carries its own")
            check_layout(cfg.pop("layout", None), f"checkpoint={where}")
            return cfg, (run.path / "overrides.txt").read_text(encoding="utf-8").splitlines()
        except (OSError, yaml.YAMLError) as error:
            raise UserError(f"checkpoint={where}: its configuration cannot be read: {error}") from None
    from sppnet.storage.tensors import read_checkpoint

    found = read_checkpoint(weights)["sppnet"]
    return found["config"], found["overrides"]


def merge(
    kept: Mapping[str, Any], before: Mapping[str, Any], after: Mapping[str, Any], typed: Sequence[str]
) -> dict[str, Any]:
    """`kept` with what differs between `before` and `after`, and what was `typed` (keys and groups), put over it.

    How images are normalised belongs to the network, so it stays whatever the data.
    """
    made = {  # a section that is younger than the run is as it is now
        key: _merge(kept[key], before.get(key), after.get(key)) if key in kept else after[key]
        for key in {**kept, **after}
    }
    for key in typed:
        _put(made, after, key.split("."))
    for key in ("mean", "std"):
        if f"data.{key}" not in typed:
            made["data"] = {**made["data"], key: kept["data"][key]}
    return made


def refuse_changes(kept: Mapping[str, Any], made: Mapping[str, Any], may_change: Sequence[str], verb: str) -> None:
    """Refuse what differs between two configurations but for `may_change`.

    Raises:
        UserError: something differs that the verb takes from its checkpoint.
    """
    for key, old, new in _differences(kept, made):
        if not any(key == may or key.startswith(f"{may}.") for may in may_change) or key in NORMALISATION:
            raise UserError(
                f"{key}={shown(new)} is not allowed: a {verb} takes it from its checkpoint, where it is {shown(old)};"
                f" what may change is {', '.join(may_change)}"
            )


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
