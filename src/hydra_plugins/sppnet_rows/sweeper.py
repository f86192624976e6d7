"""`hydra/sweeper=sppnet_rows`: a sweep over listed rows, each of several overrides, times the axes of `params`.

The cells of a published table are seldom a full product: a network without a pyramid takes one size, say. (Nothing
heavy is imported, and annotations are not deferred, for the reasons in `sppnet_processes.launcher`.)
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper, BasicSweeperConf
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from hydra.errors import HydraException


@dataclass
class RowsSweeperConf(BasicSweeperConf):
    """Options of the sweeper.

    Attributes:
        rows: by name: `set`, a list of overrides; and whatever else is known of the row, such as published figures.
        only: names of the rows to run (or one name); all, if there are none.
    """

    _target_: str = "hydra_plugins.sppnet_rows.sweeper.RowsSweeper"
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
        self.rows, self.only = rows, [only] if isinstance(only, str) else only

    def sweep(self, arguments: list[str]) -> list[Sequence[JobReturn]]:
        """Launch all jobs; rows that are the same once `arguments` are in are one job."""
        assert self.hydra_context is not None
        assert self.launcher is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        jobs: dict[tuple[str, ...], list[str]] = {}
        for row in self._chosen():
            overrides = parser.parse_overrides([*self._parse_config(), *row, *arguments])
            [made] = self.split_arguments(overrides, None)
            jobs |= {tuple(sorted(job)): job for job in made}
        self.validate_batch_is_legal(list(jobs.values()))
        return [self.launcher.launch(list(jobs.values()), initial_job_idx=0)]

    def _chosen(self) -> list[list[str]]:
        for name in self.only:
            if name not in self.rows:
                raise HydraException(f"hydra.sweeper.only={name} is not allowed; rows are {', '.join(self.rows)}")
        return [list(self.rows[name]["set"]) for name in self.only or self.rows]
