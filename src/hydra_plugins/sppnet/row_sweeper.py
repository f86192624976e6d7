"""`hydra/sweeper=sppnet_rows`: a sweep over listed rows, each of several overrides, times the axes of `params`.

The cells of a published table are seldom a full product: a network without a pyramid takes one size, say.
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
        rows: by name: `set`, a list of overrides; and whatever else is known of the row, such as published figures.
        only: names of the rows to run (or one name); all, if there are none.
    """

    _target_: str = "hydra_plugins.sppnet.row_sweeper.RowsSweeper"
    rows: dict[str, Any] = field(default_factory=dict)
    only: Any = field(default_factory=list)


ConfigStore.instance().store(group="hydra/sweeper", name="sppnet_rows", node=RowsSweeperConf, provider="sppnet")


class RowsSweeper(BasicSweeper):
    """Runs every row at every point of the axes; what is typed replaces what a row or an axis says."""

    def __init__(
        self,
        max_batch_size: int | None,
        params: dict[str, str] | None,
        rows: dict[str, Any],
        only: str | Sequence[str],
    ) -> None:
        super().__init__(max_batch_size, params)
        self.rows, self.only = rows, only

    def sweep(self, arguments: list[str]) -> list[Sequence[JobReturn]]:
        """Launch all jobs; rows that are the same once `arguments` are in are one job."""
        from sppnet.config.overrides import expand

        assert self.hydra_context is not None
        assert self.launcher is not None
        made = expand(self.rows, self.only, self.params, arguments, self.hydra_context.config_loader)
        jobs = [job.overrides for job in made]
        self.validate_batch_is_legal(jobs)
        return [self.launcher.launch(jobs, initial_job_idx=0)]
