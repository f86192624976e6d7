"""The sweeper `sppnet_rows`, which `conf/base.yaml` chooses.

It runs each listed row (a list of overrides) at each grid point of `params`. The rows of a published table rarely form
a full grid. For example, a network without a pyramid has only one training size. Without rows, the sweep is a plain
grid.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper, BasicSweeperConf
from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn


@dataclass
class RowsSweeperConf(BasicSweeperConf):
    """Options of the sweeper.

    Attributes:
        rows: the rows by name. Each has `set` (a list of overrides) and optional data such as the published values
            (`paper`).
        only: the name or names of the rows to run; if empty, all rows run.
    """

    _target_: str = "hydra_plugins.sppnet.row_sweeper.RowsSweeper"
    params: dict[str, str] | None = field(default_factory=dict)
    rows: dict[str, Any] = field(default_factory=dict)
    only: Any = field(default_factory=list)


ConfigStore.instance().store(group="hydra/sweeper", name="sppnet_rows", node=RowsSweeperConf, provider="sppnet")


class RowsSweeper(BasicSweeper):
    """Runs every listed row with every combination of the axes' values.

    Overrides that the user types replace those of the rows and axes that set the same keys, also if they begin with +.
    """

    def __init__(self, max_batch_size: int | None, params: dict[str, str] | None, **rows: Any) -> None:
        super().__init__(max_batch_size, params)  # `expand` reads the rows and axes from the configuration

    def sweep(self, arguments: list[str]) -> list[Sequence[JobReturn]]:
        """Launch all jobs. Rows that the typed `arguments` make identical become one job."""
        from sppnet.config.sweep_jobs import expand
        from sppnet.errors import notice
        from sppnet.studies.hydra_launcher import SweepLauncher

        assert self.hydra_context is not None
        assert self.launcher is not None
        assert self.config is not None
        command, loader = str(self.config.hydra.job.name), self.hydra_context.config_loader
        jobs = [job.overrides for job in expand(command, self.config.hydra.sweeper, arguments, loader)]
        self.validate_batch_is_legal(jobs)
        size = self.max_batch_size
        if size is not None and isinstance(self.launcher, SweepLauncher):  # a failed batch would end the sweep
            notice(
                "warning: hydra.sweeper.max_batch_size has no effect; see hydra.launcher.n or hydra.launcher.parallel"
            )
            size = None
        returns: list[Sequence[JobReturn]] = []
        for batch in self.split_overrides_to_chunks(jobs, size) if jobs else [[]]:
            returns.append(self.launcher.launch(batch, initial_job_idx=sum(map(len, returns))))
            _ = [job.return_value for job in returns[-1]]  # raises the exception of a job that failed
        return returns
