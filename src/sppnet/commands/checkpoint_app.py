"""Compose a command's configuration on top of a trained run's configuration (`checkpoint=RUN_DIR_OR_FILE`).

The run's overrides are replayed before the typed ones, so that a typed override such as `views=full` or `data=folder`
has the effect that it would have had in training. `sppnet.runs.from_checkpoint` then takes the configuration that
the run stored and changes only the values that the typed overrides affect.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sppnet.commands import hydra_app
from sppnet.config import overrides
from sppnet.config.compose import Job
from sppnet.runs.from_checkpoint import (
    TrainedNetwork,
    checkpoint_path,
    load_stored_config,
    replayable,
    resolve_checkpoint,
)


def run(command: str, words: Sequence[str], run_command: Callable[[TrainedNetwork[Any]], None]) -> None:
    """Compose `conf/COMMAND.yaml` for the run that `checkpoint=` names, and pass the trained network to `run_command`.

    Args:
        command: the name of the command and of its primary configuration file.
        words: the words that follow the command on the command line.
        run_command: the body of the command.

    Raises:
        UserError: the checkpoint does not exist or was not written by sppnet, or a typed override changes a key that
            the command may not change.
    """
    words = hydra_app.normalise(command, words)
    checkpoint = overrides.last_value("checkpoint", words)
    replayed: list[str] = []
    if checkpoint is not None:
        _, run_overrides = load_stored_config(checkpoint_path(checkpoint))
        replayed = replayable(command, run_overrides, words)

    def run_job(job: Job[dict[str, Any]]) -> None:
        trained = resolve_checkpoint(command, job, len(replayed))
        hydra_app.warn_of_keys_without_effect(trained.cfg, job.overrides[len(replayed) :], {})
        run_command(trained)

    hydra_app.run_plain(command, [*replayed, *words], run_job, len(replayed))
