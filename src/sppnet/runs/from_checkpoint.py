"""A trained network as a command finds it: what the user typed, over the configuration that its run stored.

The overrides of the run are composed twice, as they were and with what was typed; what was typed, and what it changed
elsewhere, is put over the stored configuration. So a later change of a default in `conf/` does not reach an old run.
Only reading a checkpoint file imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sppnet.config import compose
from sppnet.config.compose import Job
from sppnet.config.instantiate import check_target
from sppnet.config.schema import check_layout, format_value
from sppnet.errors import UserError, notice
from sppnet.runs.identity import digest, file_digest, own_code
from sppnet.runs.run_directory import Run
from sppnet.storage.files import read_record
from sppnet.storage.paths import expand_path

NORMALISATION = ("data.mean", "data.std")


HARDWARE = (
    *("trainer.accelerator", "trainer.precision", "trainer.threads", "trainer.deterministic", "trainer.compile"),
    *("trainer.channels_last", "trainer.limit_batches", "trainer.progress"),
)


@dataclass(frozen=True)
class Trained:
    """A trained network as a command finds it.

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


def from_checkpoint(command: str, job: Job, own: Sequence[str], may_change: Sequence[str]) -> Trained:
    """The network that `checkpoint` of a composed job names, with what was typed put over its configuration.

    Args:
        command: that composed the job.
        job: composed from the overrides of the run and, after them, those that were typed.
        own: top-level keys of the command itself.
        may_change: keys (and sections) in which the command may differ from the run.

    Raises:
        UserError: the checkpoint does not exist or is none, or something differs that may not.
    """
    where = checkpoint_path(job.cfg.pop("checkpoint"))
    kept, overrides = stored(where)
    overrides = compose.drop_missing_options(command, overrides)
    typed = [word.partition("=")[0].lstrip("+~") for word in job.overrides[len(overrides) :]]
    before, after = compose.compose_config(command, overrides), job.cfg
    theirs = {key: after.pop(key) for key in own}
    cfg = merge(kept, {key: value for key, value in before.items() if key not in own}, after, typed)
    refuse_changes(kept, cfg, may_change, command)
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
        then = read_checkpoint(where)["sppnet"].get("code", {})
    changed = {name: made for name, made in now.items() if name in then and then[name] != made}
    for name in changed:
        notice(
            f"the file of backbone._target_={name} has changed since checkpoint={where} was trained; as it is now, its"
            " weights may mean something else"
        )
    return changed


def checkpoint_path(typed: str) -> Path:
    """The path that was typed for `checkpoint`."""
    if not typed:
        raise UserError("checkpoint= is empty; it takes a run directory or a checkpoint file")
    return expand_path("checkpoint", typed)


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


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of ours, on the CPU.

    Raises:
        UserError: there is no such file, it is damaged or no checkpoint of sppnet's, it holds pickled objects (which
            are not executed), or the keys of its configuration have other names than today's.
    """
    from sppnet.storage.tensors import read_tensor_file  # imports torch

    loaded = read_tensor_file(path, "checkpoint")
    if not isinstance(loaded, dict) or not isinstance(loaded.get("sppnet"), dict) or "state_dict" not in loaded:
        raise UserError(f"checkpoint={path} is not a checkpoint of sppnet's (no configuration in it)")
    check_layout(loaded["sppnet"].get("layout"), f"checkpoint={path}")
    return loaded


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


def refuse_changes(kept: Mapping[str, Any], made: Mapping[str, Any], may_change: Sequence[str], command: str) -> None:
    """Refuse what differs between two configurations but for `may_change`.

    Raises:
        UserError: something differs that the command takes from its checkpoint.
    """
    for key, old, new in _differences(kept, made):
        if not any(key == may or key.startswith(f"{may}.") for may in may_change) or key in NORMALISATION:
            raise UserError(
                f"{key}={format_value(new)} is not allowed: a {command} takes it from its checkpoint, where it is"
                f" {format_value(old)}; what may change is {', '.join(may_change)}"
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
