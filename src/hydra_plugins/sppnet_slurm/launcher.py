"""`hydra/launcher=sppnet_slurm`: the jobs of a sweep as arrays of `sbatch` (`sppnet.slurm`).

(Nothing heavy is imported, and annotations are not deferred, for the reasons in `sppnet_processes.launcher`.)
"""

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore

from sppnet.launching import SweepLauncher


@dataclass
class SlurmLauncherConf:
    """Options of the launcher; `conf/launch/slurm.yaml` says what they are."""

    _target_: str = "hydra_plugins.sppnet_slurm.launcher.SlurmLauncher"
    partition: Any = None
    account: Any = None
    qos: Any = None
    time: Any = None
    cpus: Any = 2
    gpus: Any = 0
    memory: Any = None
    parallel: Any = None
    warning: Any = 120
    setup: Any = field(default_factory=list)
    options: Any = field(default_factory=dict)


ConfigStore.instance().store(group="hydra/launcher", name="sppnet_slurm", node=SlurmLauncherConf, provider="sppnet")


class SlurmLauncher(SweepLauncher):
    """Submits `sppnet VERB OVERRIDES` for each job and leaves; `sppnet status` shows what becomes of them."""

    def __init__(self, **options: Any) -> None:
        self.options = options

    def sweep(self, verb: str, jobs: list[Any]) -> Any:
        """A sweep that is submitted."""
        from sppnet.slurm.submit import Submission

        return Submission(verb, jobs, self.options)
