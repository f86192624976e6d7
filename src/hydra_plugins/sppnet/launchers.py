"""The launchers: `hydra/launcher=sppnet_processes` runs a sweep on this machine, `sppnet_slurm` on a cluster."""

from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore

from sppnet.studies.hydra_launcher import SweepLauncher


@dataclass
class ProcessesLauncherConf:
    """Options of the local launcher; `n` is the number of jobs that run at a time."""

    _target_: str = "hydra_plugins.sppnet.launchers.ProcessesLauncher"
    n: int | None = None


SLURM = {"_target_": "hydra_plugins.sppnet.launchers.SlurmLauncher"}  # conf/launch/slurm.yaml adds the options

for name, node in (("sppnet_processes", ProcessesLauncherConf), ("sppnet_slurm", SLURM)):
    ConfigStore.instance().store(group="hydra/launcher", name=name, node=node, provider="sppnet")


class ProcessesLauncher(SweepLauncher):
    """Runs `sppnet COMMAND OVERRIDES` for each job, `n` at a time."""

    def __init__(self, n: int | None = None) -> None:
        self.n = n

    def sweep(self, command: str, jobs: list[Any]) -> Any:
        from sppnet.studies.local_launcher import LocalSweep

        return LocalSweep(command, jobs, self.n)


class SlurmLauncher(SweepLauncher):
    """Submits `sppnet COMMAND OVERRIDES` for each job without waiting for it; `sppnet status` shows the jobs."""

    def __init__(self, **options: Any) -> None:
        self.options = options

    def sweep(self, command: str, jobs: list[Any]) -> Any:
        from sppnet.studies.slurm_launcher import SlurmSweep

        return SlurmSweep(command, jobs, self.options)
