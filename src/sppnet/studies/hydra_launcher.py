"""The base class of both Hydra launchers, which builds the jobs of a sweep from the sweeper's overrides.

Hydra imports this module along with the plugins at every start, so heavy imports are inside functions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from sppnet.config.overrides import key_of, quote_names, text_keys
from sppnet.errors import UserError

if TYPE_CHECKING:
    from sppnet.studies.sweep import Sweep, SweepJob


class SweepLauncher(Launcher):
    """Builds a `SweepJob` from each list of overrides; the `sweep` method of a subclass runs the jobs."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Store Hydra's context and configuration. The task function is unused: each job is a separate process."""
        self.hydra_context, self.config = hydra_context, config

    def sweep(self, command: str, jobs: list[SweepJob]) -> Sweep:
        """Return the sweep that runs `jobs`."""
        raise NotImplementedError

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run all jobs; a failed job does not stop the others (see `Sweep.run`).

        Raises:
            UserError: the sweep has no jobs, spans several studies or launchers, or an axis contains a number where a
                string is expected.
        """
        from sppnet.studies.sweep import SweepJob

        if not job_overrides:
            raise UserError("the sweep has no jobs: one of its axes has no values")
        self._refuse_axis(job_overrides, "experiments", "can run only one study; start a separate sweep for each")
        for launcher in ("launch", "hydra.launcher"):
            self._refuse_axis(job_overrides, launcher, "has one launcher for all jobs")
        setup_globals()
        load, rows = self.hydra_context.config_loader.load_sweep_config, self._listed_rows()
        command = str(self.config.hydra.job.name)
        jobs = []
        _refuse_numbers_for_texts(override for overrides in job_overrides for override in overrides)
        for number, overrides in enumerate(map(list, job_overrides), start=initial_job_idx):
            row = rows.get(tuple(sorted(overrides)), "")
            jobs.append(SweepJob(number, overrides, load(self.config, overrides), row))
        self.sweep(command, jobs).run()
        returns = [JobReturn(overrides=job.overrides, cfg=job.composed, task_name=command) for job in jobs]
        for job_return in returns:
            job_return.status, job_return.return_value = JobStatus.COMPLETED, None
        return returns

    def _listed_rows(self) -> dict[tuple[str, ...], str]:
        """The name of each job's listed row, keyed by the job's sorted overrides.

        The rows are expanded a second time here, because the sweeper passes only overrides to the launcher, and a typed
        override can replace one that would identify the row.
        """
        from sppnet.config.sweep_jobs import expand

        sweeper = self.config.hydra.sweeper
        if not sweeper.get("rows"):
            return {}
        command, loader = str(self.config.hydra.job.name), self.hydra_context.config_loader
        expanded = expand(command, sweeper, self._typed(), loader)
        return {tuple(sorted(job.overrides)): job.row for job in expanded}

    def _typed(self) -> list[str]:
        """The overrides with which the sweeper expanded the rows."""
        words = OmegaConf.to_container(self.config.hydra.overrides.task, resolve=False)
        assert isinstance(words, list)
        return words

    def _refuse_axis(self, job_overrides: Sequence[Sequence[str]], key: str, reason: str) -> None:
        """Refuse a row, and a sweep of even a single value, that sets a key or group which Hydra reads only once."""
        typed = OverridesParser.create().parse_overrides(self._typed())
        last = {key_of(override.input_line or ""): override for override in typed}
        single = {name for name, override in last.items() if not override.is_sweep_override()}
        words = {word for each in job_overrides for word in each if f"{key_of(word)}.".startswith(f"{key}.")}
        if any(key_of(word) not in single for word in words):
            raise UserError(f"{', '.join(sorted(words))}: a sweep {reason}")


def _refuse_numbers_for_texts(overrides: Iterable[str]) -> None:
    """Refuse a number as the value of a string option: YAML may have changed what the user wrote (2024_05 to 202405).

    Only `hydra.sweeper.params` in a file can contain such a number, because sppnet quotes such values in typed
    overrides.
    """
    for override in overrides:
        key = key_of(override)
        if key in text_keys() and quote_names(override) != override:
            quotes = "put the value in two pairs of quotes, as in \"'2024_05'\""
            raise UserError(f"{override}: hydra.sweeper.params must give {key} a string; {quotes}")
