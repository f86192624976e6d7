"""Clears inherited rank variables and checks the number of processes. Does not import torch.

Only `sppnet train` and the jobs of `launch=slurm` start several processes for one run. Rank variables from any other
source are stale, or come from a launcher that sppnet does not support. They are cleared before Lightning is imported;
otherwise, Lightning would take the rank of this process from them.
"""

from __future__ import annotations

import os

from sppnet.config.schema import Config
from sppnet.errors import UserError
from sppnet.runs.identity import world_size
from sppnet.slurm import job

TORCH = ("RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RUN_ID")
ADDRESS = ("MASTER_ADDR", "MASTER_PORT")
SLURM = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_NTASKS", "SLURM_NTASKS_PER_NODE")
LSF = ("JSM_NAMESPACE_RANK", "JSM_NAMESPACE_LOCAL_RANK", "JSM_NAMESPACE_SIZE")
LAUNCHERS = {  # the variable that holds the number of processes, and the launcher that sets it
    "SLURM_STEP_NUM_TASKS": "srun",
    "OMPI_COMM_WORLD_SIZE": "mpirun",
    "PMI_SIZE": "mpirun",
    "JSM_NAMESPACE_SIZE": "jsrun",
}


def clear_inherited_ranks(command: str) -> None:
    """Remove inherited rank variables, so that this process is rank 0 of its run.

    Raises:
        UserError: a launcher has started several processes of this command.
    """
    if command in {"rank", "status", "report"}:  # `rank` needs these variables; `status` and `report` only read files
        return
    if job.inside_slurm():  # srun has set the SLURM variables; torch's come from the submitting shell and are stale
        _unset(*TORCH)
        return
    torchrun = {"WORLD_SIZE": "torchrun"} if "TORCHELASTIC_RUN_ID" in os.environ else {}
    for key, launcher in {**LAUNCHERS, **torchrun}.items():
        if (count := _count(key)) > 1:
            raise UserError(
                f"{launcher} ({key}={count}) has started {count} processes of this command, but sppnet starts the"
                f" processes of a run itself: start a single process (srun --ntasks=1, no torchrun) with"
                f" trainer.devices={count}, or submit a job with launch=slurm"
            )
    _unset(*TORCH, *ADDRESS, *SLURM, *LSF)


def check_world_size(cfg: Config) -> None:
    """Check that the environment and `cfg` specify the same number of processes.

    Raises:
        UserError: the numbers differ.
    """
    required, inside_slurm = world_size(cfg), job.inside_slurm()
    key = "SLURM_STEP_NUM_TASKS" if inside_slurm else "WORLD_SIZE"
    count = _count(key)
    if count == required or (count == 1 and not inside_slurm):
        _unset("WORLD_SIZE")
        return
    shape = f"trainer.devices={cfg.trainer.devices} and trainer.num_nodes={cfg.trainer.num_nodes}"
    fix = "let launch=slurm set nodes and tasks" if inside_slurm else f"set trainer.devices={count} or unset WORLD_SIZE"
    raise UserError(
        f"{key}={count} in the environment specifies {count} process(es), but {shape} require {required}: {fix}"
    )


def is_echo(error: str) -> bool:
    """Whether an error (`TYPE: MESSAGE`) of `torch.distributed` says only that another process of the run has ended."""
    return error.startswith(("DistError:", "DistBackendError:", "DistNetworkError:")) or "gloo" in error


def _count(key: str) -> int:
    """The number of processes that an environment variable specifies; 1 if it is unset or is not a number."""
    text = os.environ.get(key, "")
    return int(text) if text.isdecimal() else 1


def _unset(*keys: str) -> None:
    for key in keys:
        os.environ.pop(key, None)
