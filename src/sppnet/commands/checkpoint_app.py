"""Compose a command's configuration on top of a trained run's configuration (`checkpoint=RUN_DIR_OR_FILE`).

Hydra composes the command line without the run, for the launcher, the jobs of a sweep and the keys that the command
adds. `sppnet.runs.from_checkpoint` then applies the overrides of each job to the configuration that its run stored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sppnet.commands import hydra_app
from sppnet.config import overrides
from sppnet.config.compose import Job
from sppnet.runs.from_checkpoint import TrainedNetwork, checkpoint_path, configure, resolve_checkpoint


def run(command: str, words: Sequence[str], run_command: Callable[[TrainedNetwork[Any]], None]) -> None:
    """Compose `conf/COMMAND.yaml` for the run that `checkpoint=` names, and pass the trained network to `run_command`.

    `--cfg job` shows the configuration of the run with what was typed. (`predict` then uses whole images of one size
    unless `views` is typed, and all three commands use one device.)

    Args:
        command: the name of the command and of its primary configuration file.
        words: the words that follow the command on the command line.
        run_command: the body of the command.

    Raises:
        UserError: the checkpoint does not exist or was not written by sppnet, or a typed override changes a key that
            the command may not change.
    """
    words = overrides.force_keys(command, hydra_app.normalise(command, words))

    def run_job(job: Job[DictConfig]) -> None:
        trained = resolve_checkpoint(command, job)
        hydra_app.warn_of_keys_without_effect(trained.cfg, job.overrides, {})
        run_command(trained)

    checkpoint = overrides.last_override("checkpoint", words)
    typed = None if checkpoint is None or checkpoint.is_sweep_override() else checkpoint.value()
    if typed is not None and "${" not in str(typed) and overrides.shows_config(words):
        single, swept = overrides.split_sweeps(words)
        if not swept:
            print(OmegaConf.to_yaml(configure(command, checkpoint_path(str(typed)), single)), end="")
            return
    hydra_app.run_composed(command, words, run_job)
