"""Which process of a run this is. Only `sppnet train` and the jobs of `launch=slurm` start several for one run.

What else the environment says of ranks is left over from something, or the mark of a launcher that is not ours.
Nothing here imports torch; called before Lightning is imported, which reads the environment as it is.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from sppnet.errors import UserError
from sppnet.runs.identity import world_size
from sppnet.slurm import job

TORCH = ("RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RUN_ID")
ADDRESS = ("MASTER_ADDR", "MASTER_PORT")
SLURM = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_NTASKS", "SLURM_NTASKS_PER_NODE")
LSF = ("JSM_NAMESPACE_RANK", "JSM_NAMESPACE_LOCAL_RANK", "JSM_NAMESPACE_SIZE")
STARTERS = {  # the number of processes that each says to have started
    "SLURM_STEP_NUM_TASKS": "srun",
    "OMPI_COMM_WORLD_SIZE": "mpirun",
    "PMI_SIZE": "mpirun",
    "JSM_NAMESPACE_SIZE": "jsrun",
}


def settle(command: str) -> None:
    """Let this process be the first of its run, whatever is left over in the environment.

    Raises:
        UserError: something has started several processes of this command at once.
    """
    if command in {"rank", "status", "report"}:  # started by us; read only
        return
    if job.inside():  # its tasks have their ranks from srun; anything else came along from where it was sent
        _forget(*TORCH)
        return
    sizes = {f"{name} ({key}={number})": number for key, name in STARTERS.items() if (number := _number(key)) > 1}
    if "TORCHELASTIC_RUN_ID" in os.environ and _number("WORLD_SIZE") > 1:
        sizes[f"torchrun (WORLD_SIZE={os.environ['WORLD_SIZE']})"] = _number("WORLD_SIZE")
    for text, number in sizes.items():
        raise UserError(
            f"{text} has started {number} processes of this command, but sppnet starts those of a run itself: start one"
            f" (srun --ntasks=1, no torchrun) with trainer.devices={number}, or send a job with launch=slurm"
        )
    _forget(*TORCH, *ADDRESS, *SLURM, *LSF)


def check(cfg: Mapping[str, Any]) -> None:
    """Compare the processes that there are with those that `cfg` wants.

    Raises:
        UserError: there are others.
    """
    wanted, inside = world_size(cfg), job.inside()
    key = "SLURM_STEP_NUM_TASKS" if inside else "WORLD_SIZE"
    there = _number(key)
    if there == wanted or (there == 1 and not inside):
        _forget("WORLD_SIZE")
        return
    shape = f"trainer.devices={cfg['trainer']['devices']} and trainer.num_nodes={cfg['trainer']['num_nodes']}"
    how = "leave nodes and tasks to launch=slurm" if inside else f"type trainer.devices={there}, or unset it"
    raise UserError(f"{key}={there} in the environment, but {shape} make {wanted}: {how}")


def _number(key: str) -> int:
    """A number of processes; 1 where none is given."""
    text = os.environ.get(key, "")
    return int(text) if text.isdecimal() else 1


def _forget(*keys: str) -> None:
    for key in keys:
        os.environ.pop(key, None)
