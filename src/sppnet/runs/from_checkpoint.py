"""Resolves `checkpoint=RUN_DIR_OR_FILE` to a trained network's stored configuration plus the typed overrides.

The overrides stored with the network are composed twice, with and without the overrides that the user typed. Only the
difference between the two results is applied to the stored configuration, so a later change to a default in `conf/`
does not affect old runs. Only `read_checkpoint` imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import yaml

from sppnet.config import compose, option_files
from sppnet.config.command_schemas import COMMANDS
from sppnet.config.compose import Job
from sppnet.config.keys import keys, value_of
from sppnet.config.load import check_layout, load
from sppnet.config.merge import may_change, merge
from sppnet.config.overrides import last_value, split_sweeps
from sppnet.config.schema import Backbone, Config
from sppnet.errors import UserError, notice
from sppnet.runs.identity import digest, file_digest, own_class_digests
from sppnet.runs.run_directory import Run
from sppnet.storage.files import read_record
from sppnet.storage.paths import expand_path

Cfg = TypeVar("Cfg", bound=Config)


@dataclass(frozen=True)
class TrainedNetwork(Generic[Cfg]):
    """The configuration of a trained network and the path of its weights file, which a command is about to load.

    Attributes:
        cfg: the configuration of the network's run, with the typed overrides applied.
        checkpoint: the path that `checkpoint=` gives.
        run: the run that `checkpoint` belongs to; None for a file outside a run directory.
        weights: the checkpoint file.
        stored: the configuration of the network's run, as plain data.
        typed_keys: the keys and config groups that the user typed.
        changed_code: maps each of the user's backbone classes whose source file has changed since training to the
            current digest of that file.
    """

    cfg: Cfg
    checkpoint: Path
    run: Run | None
    weights: Path
    stored: Mapping[str, Any]
    typed_keys: tuple[str, ...]
    changed_code: dict[str, str]

    @property
    def name(self) -> str:
        """The name that the identity of a test uses for the weights.

        For the best.ckpt of a finished run, the name is `best`, so that the test counts as one of the run's own tests.
        For any other file, the name is the file's digest. In both cases, if the code of the backbone has changed since
        training, the name consists of two digests instead: that of the file and that of the code.
        """
        if self.changed_code:
            return f"{file_digest(self.weights)} in {digest(self.changed_code)}"
        if self.run is not None and self.run.done and self.weights.resolve() == self.run.best.resolve():
            return "best"
        return file_digest(self.weights)


def resolve_checkpoint(command: str, job: Job[dict[str, Any]], replayed: int) -> TrainedNetwork[Any]:
    """Apply the typed overrides to the configuration stored with `job.cfg["checkpoint"]`.

    Args:
        command: the command, such as `test`.
        job: the job composed from the run's overrides followed by the typed ones, as plain data.
        replayed: how many of the job's overrides come from the run.

    Raises:
        UserError: the checkpoint does not exist or is not an sppnet checkpoint, or an override has a value that is not
            allowed, or changes a key that must stay as it was in training.
    """
    schema, typed = COMMANDS[command], job.overrides[replayed:]
    checkpoint = checkpoint_path(job.cfg["checkpoint"])
    stored, overrides = load_stored_config(checkpoint)
    typed_keys = [override.partition("=")[0].lstrip("+~") for override in typed]
    set_by_file = []
    if file := last_value("experiments", typed):
        # Hydra takes one study's file, so `job` lacks the settings of the run's own file, which are in `stored`
        overrides = [override for override in overrides if compose.override_key(override) != "experiments"]
        set_by_file = option_files.names_in_study(file)
    after, before = job.cfg, compose.compose_plain(command, replayable(command, overrides, ()))
    if after.get("pyramid") == before["pyramid"] and not any(key.startswith("pyramid") for key in typed_keys):
        _restore_pyramid(after, stored)
    _restore_pyramid(before, stored)
    same = _replace_chosen_sections(command, after, stored, typed)
    if not file:
        load(schema, after)  # so that a typed name or value that is wrong is named before what may not change
    own = {name: value for name, value in after.items() if name not in Config.model_fields}
    changed = [key for key in (*set_by_file, *typed_keys) if key.replace("/", ".") not in same]
    cfg = load(schema, merge(command, stored | own, before | own, after, changed))
    assert isinstance(cfg, Config)
    run, weights = locate(checkpoint)
    changed_code = _changed_code(cfg.backbone, checkpoint, run)
    return TrainedNetwork(cfg, checkpoint, run, weights, stored, tuple(typed_keys), changed_code)


def replayable(command: str, run_overrides: Sequence[str], words: Sequence[str]) -> list[str]:
    """Select the overrides of a run that can be composed again before the `words` of a command line.

    Those of a key or group that the words sweep are left out, because each job of the sweep replays them itself, and so
    are those of a key or group that a typed study's file sets, because Hydra would prefer them to the file.

    Raises:
        UserError: the words cannot be composed.
    """
    single, swept = split_sweeps(words)
    file, sections = last_value("experiments", words), tuple(f"{compose.override_key(word)}." for word in swept)
    names = set(option_files.names_in_study(file)) if file else set()
    if "pyramid" in names | {compose.override_key(word) for word in single}:
        sections += ("pyramid.",)  # which would be preferred to the pyramid's name

    def is_kept(word: str) -> bool:
        key = compose.override_key(word)
        return key not in names and not f"{key}.".startswith(sections)

    return compose.replayable(command, list(filter(is_kept, run_overrides)), single)


def _restore_pyramid(plain: dict[str, Any], stored: Mapping[str, Any]) -> None:
    """Give `plain` the pyramid of the run, whose option file may be missing, where `pooling` refers to the pyramid."""
    bins, pyramid = value_of(plain, "pooling.bins"), plain["pyramid"]
    if bins is not None and bins == pyramid["bins"]:
        plain["pooling"]["bins"] = value_of(stored, "pyramid.bins")
    pyramid["bins"] = value_of(stored, "pyramid.bins")


def _replace_chosen_sections(
    command: str, plain: dict[str, Any], stored: Mapping[str, Any], typed: Sequence[str]
) -> list[str]:
    """Compose each section of which the user has chosen an option (`views=full`) from the typed overrides alone.

    The study's file of the run may set keys of the alternative that the run had, which the chosen one lacks.

    Returns:
        The sections that stay as they are, because their alternative belongs to the network and the same was chosen.
    """
    same = []
    options = {compose.override_key(word) for word in typed if not word.startswith("~") and "={" not in word}
    for key in keys(Config):
        if len(key.alternatives) < 2 or key.name not in options:
            continue
        words = [word for word in typed if f"{compose.override_key(word)}.".startswith(f"{key.name}.")]
        pyramid = f"pyramid.bins={value_of(plain, 'pyramid.bins')}"
        chosen = value_of(compose.compose_plain(command, [pyramid, *words]), key.name)
        tag = str(key.field.discriminator)
        trained = value_of(stored, f"{key.name}.{tag}")
        if value_of(chosen, tag) == trained and not may_change(f"{key.name}.{tag}", command):
            same.append(key.name)
        else:
            section, _, name = key.name.rpartition(".")
            value_of(plain, section)[name] = chosen
    return same


def _changed_code(backbone: Backbone, checkpoint: Path, run: Run | None) -> dict[str, str]:
    """Print a notice for each user class whose file has changed since training; return the files' current digests."""
    if not (now := own_class_digests(backbone.node())):
        return {}
    if run is not None:
        then = (read_record(run.path / "provenance.json").get("identity") or {}).get("code") or {}
    else:
        then = read_checkpoint(checkpoint)["sppnet"]["code"]
    changed = {target: file_hash for target, file_hash in now.items() if target in then and then[target] != file_hash}
    for target in changed:
        notice(
            f"backbone._target_={target}: its source file has changed since checkpoint={checkpoint} was trained; the"
            " weights might not fit the current code"
        )
    return changed


def checkpoint_path(typed: str) -> Path:
    """Expand the path that the user typed for `checkpoint`.

    Raises:
        UserError: the path is empty or cannot be accessed.
    """
    if not typed:
        raise UserError("checkpoint= is empty; give a run directory or a checkpoint file")
    return expand_path("checkpoint", typed)


def locate(checkpoint: Path) -> tuple[Run | None, Path]:
    """Find the run and the weights file of `checkpoint`, which is a run directory or a checkpoint file.

    The run is None for a file outside a run directory.

    Raises:
        UserError: the path does not exist, or it is a directory without `checkpoints/best.ckpt`.
    """
    if checkpoint.is_dir():
        run = Run(checkpoint)
        if not run.best.is_file():
            state = run.status.get("state", "none, so this is not an sppnet run")
            raise UserError(f"checkpoint={checkpoint} contains no checkpoints/best.ckpt (status: {state})")
        return run, run.best
    if not checkpoint.is_file():
        raise UserError(f"checkpoint={checkpoint}: no such file or directory")
    folder = checkpoint.resolve().parent
    if folder.name != "checkpoints" or not (folder.parent / "config.yaml").is_file():
        return None, checkpoint
    as_typed = checkpoint.parent.parent  # not the run directory if `checkpoint` is a symlink or a bare file name
    return Run(as_typed if as_typed.resolve() == folder.parent else folder.parent), checkpoint


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Load an sppnet checkpoint onto the CPU.

    Raises:
        UserError: the file does not exist, is damaged, is not an sppnet checkpoint, contains pickled objects (which are
            not executed), or stores a configuration in a layout that this version of sppnet does not read.
    """
    from sppnet.storage.tensors import read_tensor_file  # imports torch

    loaded = read_tensor_file(path, "checkpoint")
    if not isinstance(loaded, dict) or not isinstance(loaded.get("sppnet"), dict) or "state_dict" not in loaded:
        raise UserError(f"checkpoint={path} is not an sppnet checkpoint (it lacks the configuration or the weights)")
    check_layout(loaded["sppnet"].get("layout"), f"checkpoint={path}")
    return loaded


def load_stored_config(checkpoint: Path) -> tuple[dict[str, Any], list[str]]:
    """Load the configuration and the overrides of the run that wrote the checkpoint.

    Both are read from the run directory or, if `checkpoint` is a file outside a run directory, from that file.

    Raises:
        UserError: the path does not exist, or the configuration cannot be read.
    """
    run, weights = locate(checkpoint)
    if run is not None:
        try:
            cfg = yaml.safe_load((run.path / "config.yaml").read_text(encoding="utf-8"))
            if not isinstance(cfg, dict) or not isinstance(cfg.get("data"), dict):
                raise UserError(
                    f"checkpoint={checkpoint}: config.yaml is damaged; copy a checkpoint file out of the run directory"
                    " and use the copy, which contains the configuration as well"
                )
            check_layout(cfg.pop("layout", None), f"checkpoint={checkpoint}")
            return cfg, (run.path / "overrides.txt").read_text(encoding="utf-8").splitlines()
        except (OSError, yaml.YAMLError) as error:
            raise UserError(f"checkpoint={checkpoint}: the configuration cannot be read ({error})") from None
    content = read_checkpoint(weights)["sppnet"]
    return content["config"], content["overrides"]
