"""`hydra/launcher=sppnet_processes`: every job of a sweep is a process of its own, n at a time (`sppnet.sweep`).

Hydra takes launchers from this namespace only and imports them at every start, so nothing heavy is imported here.
(Nor are annotations deferred: Hydra executes the module before it is in `sys.modules`, where dataclasses look.)
"""

from collections.abc import Sequence
from dataclasses import dataclass

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@dataclass
class ProcessesLauncherConf:
    """Options of the launcher."""

    _target_: str = "hydra_plugins.sppnet_processes.launcher.ProcessesLauncher"
    n: int = 2


ConfigStore.instance().store(
    group="hydra/launcher", name="sppnet_processes", node=ProcessesLauncherConf, provider="sppnet"
)


class ProcessesLauncher(Launcher):
    """Starts `sppnet VERB OVERRIDES` for each job, `n` of them at a time."""

    def __init__(self, n: int = 2) -> None:
        self.n = n

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what Hydra hands over; the task function is not called, the children call their own."""
        self.hydra_context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run all jobs; a failure ends the sweep after its last job (see `sppnet.sweep.Sweep.run`)."""
        from sppnet.sweep import Sweep, SweepJob

        setup_globals()
        load, rows = self.hydra_context.config_loader.load_sweep_config, self._rows()
        jobs = [
            SweepJob(
                initial_job_idx + i, list(words), load(self.config, list(words)), rows.get(tuple(sorted(words)), "")
            )
            for i, words in enumerate(job_overrides)
        ]
        verb = str(self.config.hydra.job.name)
        Sweep(verb, self.n, jobs).run()
        made = [JobReturn(overrides=job.overrides, cfg=job.cfg, task_name=verb) for job in jobs]
        for one in made:
            one.status, one.return_value = JobStatus.COMPLETED, None
        return made

    def _rows(self) -> dict[tuple[str, ...], str]:
        """The listed row that each job is of: the sweeper hands over overrides alone, and a typed one hides the row."""
        from sppnet.expand import expand

        node, typed = self.config.hydra.sweeper, list(self.config.hydra.overrides.task)
        if not node.get("rows"):
            return {}
        made = expand(node.rows, node.only, node.params, typed, self.hydra_context.config_loader)
        return {tuple(sorted(job.words)): job.row for job in made}
