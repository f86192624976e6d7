"""A private SLURM cluster on this machine: two nodes, no root, starts in a second."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

from private_accounting import Accounting

NEEDED = ("slurmctld", "slurmd", "sbatch", "munged")
SBIN = "/usr/sbin:/sbin"


def lacking(*needed: str) -> str:
    """The programs out of `needed` that are not installed."""
    path = f"{os.environ['PATH']}:{SBIN}"
    return ", ".join(name for name in needed if not shutil.which(name, path=path))


class Cluster:
    """A cluster in `folder` with the partitions `main` and `high`; jobs in `high` preempt those in `main`.

    Without accounting, the controller remembers finished jobs for a day; with it, for a minute at most.
    """

    def __init__(self, folder: Path, port: int, accounting: bool = False, nodes: int = 2, cpus: int = 8) -> None:
        self.folder, self.nodes = folder, nodes
        self.env = {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": f"{os.environ['PATH']}:{SBIN}"}
        for name in ("state", "log", "run", *(f"spool-n{i + 1}" for i in range(nodes))):
            (folder / name).mkdir(parents=True)
        ledger = Accounting.conf(folder, port + 10) if accounting else ["AccountingStorageType=accounting_storage/none"]
        (folder / "slurm.conf").write_text(
            "\n".join([*self._conf(port, cpus, 2 if accounting else 86400), *ledger, ""])
        )
        (folder / "cgroup.conf").write_text("CgroupAutomount=no\nCgroupPlugin=cgroup/v1\n")
        key = folder / "run/munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        folder.chmod(0o755)
        self._call(
            *("munged", "--force", f"--key-file={key}", f"--socket={folder}/run/munge.sock"),
            *(f"--pid-file={folder}/run/munged.pid", f"--log-file={folder}/log/munged.log"),
            f"--seed-file={folder}/run/munge.seed",
        )
        self.accounting = Accounting(folder, port + 10, self.env) if accounting else None
        self._call("slurmctld", "-c", "-f", self.env["SLURM_CONF"])
        for i in range(nodes):
            self._call("slurmd", "-N", f"n{i + 1}", "-f", self.env["SLURM_CONF"])
        self.wait(lambda: self.call("sinfo", "-h", "-N", "-p", "main", "-o", "%T").split() == ["idle"] * nodes, 30)

    def call(self, *words: str) -> str:
        """Run a SLURM command and return its output."""
        done = subprocess.run(words, env=os.environ | self.env, capture_output=True, text=True, timeout=60)
        return done.stdout.strip()

    def for_sppnet(self) -> dict[str, str]:
        """The environment in which to call `sppnet` on the cluster."""
        return os.environ | self.env | {"PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}

    def jobs(self) -> dict[str, str]:
        """The state of every pending or running job, by its number."""
        lines = self.call("squeue", "-h", "-r", "-o", "%i %T").splitlines()
        return dict(line.split() for line in lines)

    def wait(self, ready: object, seconds: float = 600) -> None:
        assert callable(ready)
        end = time.monotonic() + seconds
        while not ready():
            assert time.monotonic() < end, (self.call("squeue", "-a"), self.call("sinfo", "-N", "-l"))
            time.sleep(0.5)

    def stop(self) -> None:
        """Cancel all jobs and end the daemons, by their PID files."""
        self.call("scancel", "-f", "-u", getpass.getuser())
        time.sleep(0.3)
        for name in (*(f"slurmd-n{i + 1}" for i in range(self.nodes)), "slurmctld", "munged"):
            file = self.folder / f"run/{name}.pid"
            if file.exists():
                with_pid = int(file.read_text())
                try:
                    os.kill(with_pid, signal.SIGTERM)
                    for _ in range(100):
                        os.kill(with_pid, 0)
                        time.sleep(0.05)
                    os.kill(with_pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
        if self.accounting:
            self.accounting.stop()

    def _call(self, *words: str) -> None:
        subprocess.run(words, env=os.environ | self.env, check=True, capture_output=True, timeout=60)

    def _conf(self, port: int, cpus: int, remembered: int) -> list[str]:
        host, user, d = socket.gethostname().split(".")[0], getpass.getuser(), self.folder
        return [
            "ClusterName=test",
            f"SlurmctldHost={host}(127.0.0.1)",
            *(f"SlurmUser={user}", f"SlurmdUser={user}"),
            *(f"SlurmctldPort={port}", f"SlurmdPort={port + 1}"),
            *(f"StateSaveLocation={d}/state", f"SlurmdSpoolDir={d}/spool-%n"),
            *(f"SlurmctldPidFile={d}/run/slurmctld.pid", f"SlurmdPidFile={d}/run/slurmd-%n.pid"),
            *(f"SlurmctldLogFile={d}/log/slurmctld.log", f"SlurmdLogFile={d}/log/slurmd-%n.log"),
            "AuthType=auth/munge",
            "CredType=cred/munge",
            f"AuthInfo=socket={d}/run/munge.sock,cred_expire=5",  # a requeued job waits this long
            *("ProctrackType=proctrack/linuxproc", "TaskPlugin=task/none", "JobAcctGatherType=jobacct_gather/none"),
            *("SwitchType=switch/none", "MpiDefault=none", "ReturnToService=2", "SlurmdParameters=config_overrides"),
            *("SelectType=select/cons_tres", "SelectTypeParameters=CR_Core", "SchedulerType=sched/backfill"),
            "SchedulerParameters=sched_interval=2,bf_interval=2,sched_min_interval=0,batch_sched_delay=0",
            *("PreemptType=preempt/partition_prio", "PreemptMode=REQUEUE", "JobRequeue=1", "KillWait=5"),
            *("UnkillableStepTimeout=20", f"MinJobAge={remembered}", "InactiveLimit=0", "Waittime=0"),
            *(
                f"NodeName=n{i + 1} NodeHostname={host} NodeAddr=127.0.0.1 Port={port + 2 + i} CPUs={cpus} Boards=1"
                f" SocketsPerBoard=1 CoresPerSocket={cpus} ThreadsPerCore=1 RealMemory=8000 State=UNKNOWN"
                for i in range(self.nodes)
            ),
            "PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE DefaultTime=20 State=UP PriorityTier=1"
            " PreemptMode=REQUEUE GraceTime=6 OverSubscribe=NO",
            "PartitionName=high Nodes=ALL MaxTime=INFINITE DefaultTime=10 State=UP PriorityTier=10 PreemptMode=OFF"
            " OverSubscribe=NO",
        ]
