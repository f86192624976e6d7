"""SLURM accounting for a private cluster: MariaDB and slurmdbd on this machine."""

from __future__ import annotations

import getpass
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

NEEDED = ("slurmdbd", "mariadbd", "mariadb-install-db", "mariadb", "sacct")
SMALL = ("--innodb-buffer-pool-size=64M", "--innodb-log-file-size=16M")


class Accounting:
    """The database and slurmdbd, in `folder`, on the ports `port` and `port + 1`."""

    def __init__(self, folder: Path, port: int, env: dict[str, str]) -> None:
        self.folder, self.port, self.env = folder, port, os.environ | env
        self._database()
        self._daemon()

    @staticmethod
    def conf(folder: Path, port: int) -> list[str]:
        """Lines of slurm.conf."""
        return [
            "AccountingStorageType=accounting_storage/slurmdbd",
            *("AccountingStorageHost=127.0.0.1", f"AccountingStoragePort={port}"),
            f"AccountingStoragePass={folder}/run/munge.sock",  # slurmctld ignores AuthInfo for this connection
        ]

    def stop(self) -> None:
        pid = self.folder / "run/slurmdbd.pid"
        if pid.exists():
            os.kill(int(pid.read_text()), signal.SIGTERM)
        self.server.terminate()
        self.server.wait()

    def _database(self) -> None:
        data, sock, user = self.folder / "mysql", self.folder / "run/mysql.sock", getpass.getuser()
        self._call(
            *("mariadb-install-db", "--no-defaults", f"--datadir={data}", f"--user={user}", "--skip-test-db", *SMALL),
            "--auth-root-authentication-method=normal",
        )
        self.server = subprocess.Popen(
            (
                *("mariadbd", "--no-defaults", f"--user={user}", f"--datadir={data}", f"--socket={sock}", *SMALL),
                *("--bind-address=127.0.0.1", f"--port={self.port + 1}", "--innodb-lock-wait-timeout=900"),
                *("--innodb-flush-log-at-trx-commit=0", "--skip-name-resolve"),
                f"--log-error={self.folder}/log/mariadb.log",
            ),
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        client = ("mariadb", "--no-defaults", "-S", str(sock), "-u", "root", "-e")
        self._until(lambda: self._works(*client, "select 1"))
        self._call(
            *client,
            "create database slurm_acct_db; create user slurm@'127.0.0.1' identified by 'slurm';"
            " grant all on slurm_acct_db.* to slurm@'127.0.0.1'",
        )

    def _daemon(self) -> None:
        host = socket.gethostname().split(".")[0]
        conf = self.folder / "slurmdbd.conf"
        conf.write_text(
            f"AuthType=auth/munge\nAuthInfo=socket={self.folder}/run/munge.sock\nDbdHost={host}\nDbdAddr=127.0.0.1\n"
            f"DbdPort={self.port}\nSlurmUser={getpass.getuser()}\nLogFile={self.folder}/log/slurmdbd.log\n"
            f"PidFile={self.folder}/run/slurmdbd.pid\nStorageType=accounting_storage/mysql\nStorageHost=127.0.0.1\n"
            f"StoragePort={self.port + 1}\nStorageUser=slurm\nStoragePass=slurm\nStorageLoc=slurm_acct_db\n"
        )
        conf.chmod(0o600)
        self._call("slurmdbd")
        self._until(lambda: self._works("sacctmgr", "-n", "list", "cluster"))
        self._call("sacctmgr", "-i", "-Q", "add", "cluster", "test")

    def _call(self, *words: str) -> None:
        subprocess.run(words, env=self.env, check=True, capture_output=True, timeout=120)

    def _works(self, *words: str) -> bool:
        return subprocess.run(words, env=self.env, capture_output=True, timeout=60).returncode == 0

    @staticmethod
    def _until(ready: Callable[[], bool], seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while not ready():
            assert time.monotonic() < end
            time.sleep(0.1)
