"""`hydra/launcher=sppnet_processes`: every job of a sweep is a process of its own, n at a time (`sppnet.processes`).

Hydra takes launchers from this namespace only and imports them at every start, so nothing heavy is imported here.
(Nor are annotations deferred: Hydra executes the module before it is in `sys.modules`, where dataclasses look.)
"""

from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore

from sppnet.launching import SweepLauncher


@dataclass
class ProcessesLauncherConf:
    """Options of the launcher."""

    _target_: str = "hydra_plugins.sppnet_processes.launcher.ProcessesLauncher"
    n: int | None = None


ConfigStore.instance().store(
    group="hydra/launcher", name="sppnet_processes", node=ProcessesLauncherConf, provider="sppnet"
)


class ProcessesLauncher(SweepLauncher):
    """Starts `sppnet VERB OVERRIDES` for each job, `n` of them at a time."""

    def __init__(self, n: int | None = None) -> None:
        self.n = n

    def sweep(self, verb: str, jobs: list[Any]) -> Any:
        """A sweep of local processes."""
        from sppnet.processes import Processes

        return Processes(verb, jobs, self.n)
