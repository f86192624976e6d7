"""The text of the script that `sbatch` gets: `#SBATCH` lines, then a command per element of the job array."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sppnet.slurm.job import WARNING


def build_script(
    folder: Path,
    options: Mapping[str, Any],
    shape: tuple[int, int],
    commands: Sequence[Sequence[Sequence[str]]],
    environment: Mapping[str, str],
) -> str:
    """A bash script for one array of jobs.

    Args:
        folder: gets the logs of the jobs, one file per element.
        options: the options of `launch=slurm`.
        shape: nodes, and tasks per node.
        commands: for each element of the array, the command lines that run one after the other.
        environment: set for the jobs, because sites differ in what sbatch passes on.
    """
    nodes, tasks = shape
    directives = {
        "job-name": f"sppnet-{folder.parent.parent.name}",
        "array": f"0-{len(commands) - 1}" + (f"%{options['parallel']}" if options["parallel"] else ""),
        "output": f"{folder}/%a.log",
        "open-mode": "append",
        "signal": f"USR2@{options['warning']}",
        "nodes": nodes,
        "ntasks-per-node": tasks,
        "cpus-per-task": options["cpus"],
        "gpus-per-task": options["gpus"] or None,
        "mem": options["memory"],
        **{key: options[key] for key in ("partition", "account", "qos", "time")},
        **options["options"],
    }
    directives = {key: value for key, value in directives.items() if value is not None and value is not False}
    lines = ["#!/bin/bash", *(_directive(key, value) for key, value in directives.items())]
    lines += ["#SBATCH --requeue", "", f"cd {shlex.quote(str(Path.cwd()))} || exit", *options["setup"]]
    lines += [f"export SPPNET_SUBMISSION={shlex.quote(str(folder))} SPPNET_JOB_LOG=1", "status=0"]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]
    lines += ['run() { srun --kill-on-bad-exit=1 "$@" || status=$?; }', "case $SLURM_ARRAY_TASK_ID in"]
    for index, command_lines in enumerate(commands):
        lines += [f"{index})", *(f"  run {shlex.join(command_line)}" for command_line in command_lines), "  ;;"]
    lines += ["esac", f"if [ $status -eq {128 + WARNING} ]; then  # warned before the program could listen"]
    lines += ["  scontrol requeue ${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID", "fi", "exit $status"]
    return "\n".join(lines) + "\n"


def _directive(key: str, value: object) -> str:
    """A `#SBATCH` line in sbatch's syntax: True is a flag without a value, a value with blanks is quoted."""
    if value is True:
        return f"#SBATCH --{key}"
    text = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'#SBATCH --{key}="{text}"' if re.search(r"[\s\"'\\#]", text) else f"#SBATCH --{key}={text}"
