"""What our launchers have in common: the jobs of a sweep, from the overrides that a sweeper hands over.

Imported at every start, with the plugins, so nothing heavy is imported here but when a sweep begins.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from sppnet.config.overrides import TEXTS, quote_names
from sppnet.errors import UserError

if TYPE_CHECKING:
    from sppnet.studies.sweep import Sweep, SweepJob


class SweepLauncher(Launcher):
    """Makes a job of every list of overrides; how they are run is for a subclass to say (`sweep`)."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what Hydra hands over; the task function is not called, the children call their own."""
        self.hydra_context, self.config = hydra_context, config

    def sweep(self, command: str, jobs: list[SweepJob]) -> Sweep:
        """What runs the jobs."""
        raise NotImplementedError

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run all jobs; a failure ends the sweep after its last job (see `Sweep.run`)."""
        from sppnet.studies.sweep import SweepJob

        studies = {word for words in job_overrides for word in words if word.lstrip("+").startswith("experiments=")}
        if len(studies) > 1:
            raise UserError(f"{', '.join(sorted(studies))}: a sweep is of one study; start them one after the other")
        setup_globals()
        load, rows = self.hydra_context.config_loader.load_sweep_config, self._rows()
        command = str(self.config.hydra.job.name)
        jobs = []
        _refuse_numbers_for_texts(word for words in job_overrides for word in words)
        for number, words in enumerate(map(list, job_overrides), start=initial_job_idx):
            jobs.append(SweepJob(number, words, load(self.config, words), rows.get(tuple(sorted(words)), "")))
        self.sweep(command, jobs).run()
        made = [JobReturn(overrides=job.overrides, cfg=job.cfg, task_name=command) for job in jobs]
        for one in made:
            one.status, one.return_value = JobStatus.COMPLETED, None
        return made

    def _rows(self) -> dict[tuple[str, ...], str]:
        """The listed row that each job is of: the sweeper hands over overrides alone, and a typed one hides the row."""
        from sppnet.config.overrides import expand

        node = self.config.hydra.sweeper
        if not node.get("rows"):
            return {}
        typed = OmegaConf.to_container(self.config.hydra.overrides.task, resolve=False)  # as the sweeper has them
        assert isinstance(typed, list)
        made = expand(node.rows, node.only, node.params, typed, self.hydra_context.config_loader)
        return {tuple(sorted(job.overrides)): job.row for job in made}


def _refuse_numbers_for_texts(overrides: Iterable[str]) -> None:
    """Only an axis of a file brings such a number (`words.settle` quotes what is typed); 2024_05 is 202405 by now."""
    for word in overrides:
        key = word.partition("=")[0].lstrip("+")
        if key in TEXTS and quote_names(word) != word:
            raise UserError(
                f"{word} is a number in hydra.sweeper.params; there a text like it is quoted: {quote_names(word)}"
            )
