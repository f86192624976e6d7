"""Many run directories out of a few real ones, and how long `sppnet status` and `sppnet report` take over them.

    uv run python tests/helpers/many_runs.py runs/bins 2000

copies the runs of the study until there are so many, in a temporary folder, and prints the seconds of either command,
with those of its imports apart. No figure is made up: every copy has the record of the run it was copied from.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sppnet.runs.identity import digest
from sppnet.studies.study import SweepPoint, remember, stored

IMPORTS = {
    "status": "import sppnet.commands.status, sppnet.commands.hydra_app",
    "report": "import sppnet.commands.report, sppnet.report.figures, sppnet.report.html, sppnet.report.collect",
}


def multiply(study: Path, number: int, into: Path) -> None:
    """Write `number` runs into the folder `into`: those of `study` with ever further seeds, and a plan of them."""
    cells = {cell.run: cell for cell in stored(study)}
    there = [path.parent for path in sorted(study.glob("*/status.json")) if path.parent.name in cells]
    made = [_copy(run, cells[run.name], seed, into) for run, seed in _turns(there, number)]
    remember(into, made)


def _turns(there: list[Path], number: int) -> Iterator[tuple[Path, int]]:
    for i in range(number):
        yield there[i % len(there)], 1000 + i


def _copy(run: Path, cell: SweepPoint, seed: int, into: Path) -> SweepPoint:
    story: dict[str, Any] = json.loads((run / "provenance.json").read_text())
    story["identity"]["seed"] = seed
    new = into / f"{run.name.rsplit('-', 1)[0]}-{digest(story['identity'])}"
    shutil.copytree(run, new, ignore=shutil.ignore_patterns("*.ckpt"))
    (new / "provenance.json").write_text(json.dumps(story, indent=1))
    for path in (run / "checkpoints").glob("*.ckpt"):
        (new / "checkpoints" / path.name).symlink_to(path.absolute())
    words = tuple(sorted([*cell.setting, f"seed={seed}"]))
    return SweepPoint(words, new.name, cell.test, cell.conf, cell.row, cell.experiments)


def seconds(command: list[str], where: Path) -> float:
    """How long a command takes."""
    began = time.perf_counter()
    subprocess.run(command, cwd=where, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main(study: str, number: str = "2000") -> None:
    """Time both commands over `number` copies of the runs of `study`."""
    with tempfile.TemporaryDirectory() as name:
        into = Path(name, "runs/many")
        multiply(Path(study), int(number), into)
        for command, imports in IMPORTS.items():
            start = min(seconds([sys.executable, "-c", imports], into) for _ in range(3))
            whole = min(
                seconds([sys.executable, "-m", "sppnet.cli", command, f"paths.runs={into.parent}"], Path(name))
                for _ in range(3)
            )
            print(f"{command:<7}{number} runs: {whole:.2f} s, of which imports {start:.2f} s ({os.cpu_count()} cores)")


if __name__ == "__main__":
    main(*sys.argv[1:])
