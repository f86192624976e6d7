"""Builds the script for `sbatch`: `#SBATCH` lines, followed by the commands of each element of the job array."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from sppnet.config.command_schemas import SlurmOptions
from sppnet.slurm.job import WARNING


def build_script(
    folder: Path,
    options: SlurmOptions,
    shape: tuple[int, int],
    commands: Sequence[Sequence[Sequence[str]]],
    environment: Mapping[str, str],
) -> str:
    """Build the bash script of a job array.

    Args:
        folder: the folder for the logs, one file per array element.
        options: the options of `launch=slurm`.
        shape: the number of nodes and the number of tasks per node.
        commands: for each array element, the command lines that it runs one after another.
        environment: the variables that the script exports, because clusters differ in which variables sbatch passes on.
    """
    nodes, tasks = shape
    directives = {
        "job-name": f"sppnet-{folder.parent.parent.name}",
        "array": f"0-{len(commands) - 1}" + (f"%{options.parallel}" if options.parallel else ""),
        "output": f"{folder}/%a.log",
        "open-mode": "append",
        "signal": f"USR2@{options.warning}",
        "nodes": nodes,
        "ntasks-per-node": tasks,
        "cpus-per-task": options.cpus,
        "gpus-per-task": options.gpus or None,
        "mem": options.memory,
        "partition": options.partition,
        "account": options.account,
        "qos": options.qos,
        "time": options.time,
        **options.options,
    }
    directives = {key: value for key, value in directives.items() if value is not None and value is not False}
    lines = ["#!/bin/bash", *(_directive(key, value) for key, value in directives.items())]
    lines += ["#SBATCH --requeue", "", f"cd {shlex.quote(str(Path.cwd()))} || exit", *options.setup]
    lines += [f"export SPPNET_SUBMISSION={shlex.quote(str(folder))} SPPNET_JOB_LOG=1", "status=0"]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]
    lines += ['run() { srun --kill-on-bad-exit=1 "$@" || status=$?; }', "case $SLURM_ARRAY_TASK_ID in"]
    for index, command_lines in enumerate(commands):
        lines += [f"{index})", *(f"  run {shlex.join(command_line)}" for command_line in command_lines), "  ;;"]
    lines += ["esac", f"if [ $status -eq {128 + WARNING} ]; then  # warned before the signal handler was installed"]
    lines += ["  scontrol requeue ${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID", "fi", "exit $status"]
    return "\n".join(lines) + "\n"


def _directive(key: str, value: object) -> str:
    """Format an option as a `#SBATCH` line.

    If `value` is True, the option is a flag without a value. Values with spaces or special characters are quoted.
    """
    if value is True:
        return f"#SBATCH --{key}"
    text = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'#SBATCH --{key}="{text}"' if re.search(r"[\s\"'\\#]", text) else f"#SBATCH --{key}={text}"
