"""Commands that start from a trained network (`checkpoint=RUN_DIR_OR_FILE`) and change only what the user typed.

The overrides of the run come before the typed ones, so that `views=full` or `data=folder` mean what they mean in
training. `sppnet.runs.from_checkpoint` puts what they change over the configuration that the run stored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sppnet.commands import hydra_app
from sppnet.config import compose, overrides
from sppnet.config.compose import Job
from sppnet.runs.from_checkpoint import Trained, checkpoint_path, from_checkpoint, stored


def run(
    command: str,
    words: Sequence[str],
    job: Callable[[Trained], None],
    own: Sequence[str],
    may_change: Sequence[str],
) -> None:
    """Compose `conf/COMMAND.yaml` over the run that `checkpoint=` names and call `job`.

    Args:
        command: names the primary configuration file.
        words: what follows the command on the command line.
        job: does the work.
        own: top-level keys of the command itself, which no run has and the command checks.
        may_change: keys (and sections) in which the command may differ from the run.

    Raises:
        UserError: the checkpoint does not exist or is none, or something differs that may not.
    """
    words = hydra_app.normalise(command, words)
    checkpoint = named_checkpoint(words)
    replayed = [] if checkpoint is None else compose.known(command, stored(checkpoint_path(checkpoint))[1])

    def start(composed: Job) -> None:
        job(from_checkpoint(command, composed, own, may_change))

    hydra_app.run(command, [*replayed, *words], start, len(replayed))


def named_checkpoint(words: Sequence[str]) -> str | None:
    """The value of `checkpoint=` on a command line; None for `null`, for several in a sweep (each job has its own), or
    if there is none."""
    return overrides.text_of("checkpoint", words)
