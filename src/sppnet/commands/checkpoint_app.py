"""Compose a command's configuration on top of a trained run's configuration (`checkpoint=RUN_DIR_OR_FILE`).

Hydra composes the command line without the run, for the launcher, the jobs of a sweep and the keys that the command
adds. `sppnet.runs.from_checkpoint` then applies the overrides of each job to the configuration that its run stored.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sppnet.commands import hydra_app
from sppnet.config import command_line
from sppnet.config.compose import Job
from sppnet.config.keys import value_of
from sppnet.config.overlay import check_removals
from sppnet.errors import UserError
from sppnet.runs.from_checkpoint import TrainedNetwork, configure, resolve_checkpoint


def run(command: str, words: Sequence[str], run_command: Callable[[TrainedNetwork[Any]], None]) -> None:
    """Compose `conf/COMMAND.yaml` for the run that `checkpoint=` names, and pass the trained network to `run_command`.

    `--cfg job` and `--cfg all` show the configuration of the run with what was typed. (`predict` then uses whole images
    of one size unless `views` is typed, and all three commands use one device.)

    Args:
        command: the name of the command and of its primary configuration file.
        words: the words that follow the command on the command line.
        run_command: the body of the command.

    Raises:
        UserError: the checkpoint does not exist or was not written by sppnet, or a typed override changes a key that
            the command may not change.
    """
    words = hydra_app.normalise(command, words)
    check_removals(words)
    words = command_line.force_keys(command, words)

    def run_job(job: Job[DictConfig]) -> None:
        trained = resolve_checkpoint(command, job)
        hydra_app.warn_of_keys_without_effect(trained.cfg, job.overrides, {})
        run_command(trained)

    if (shown := command_line.shown_job(words)) and (plain := configure(command, shown.overrides)):
        _show(plain, shown)
        return
    hydra_app.run_composed(command, words, run_job)


def _show(plain: dict[str, Any], options: Namespace) -> None:
    """Print a configuration as Hydra's `--cfg` and `--package` do."""
    if options.cfg == "job":
        del plain["hydra"]
    package = options.package if options.package not in {None, "_global_"} else ""
    node = value_of(plain, package) if package else plain
    if node is None:
        raise UserError(f"--package={package}: there is no such section")
    print(f"# @package {package}\n" if package and isinstance(node, dict | list) else "", end="")
    print(OmegaConf.to_yaml(OmegaConf.create(node)) if isinstance(node, dict | list) else f"{node}\n", end="")
