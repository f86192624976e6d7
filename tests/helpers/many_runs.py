"""Copy a few real runs many times and time `sppnet status` and `sppnet report` on the copies.

    uv run python tests/helpers/many_runs.py runs/bins 2000

makes 2000 copies of the study's runs in a temporary folder and prints the seconds of each command, and of its imports
alone. Every copy keeps the figures of its original.
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
from sppnet.studies.study import SweepPoint, add_points, load_points

IMPORTS = {
    "status": "import sppnet.commands.status, sppnet.commands.hydra_app",
    "report": "import sppnet.commands.report, sppnet.report.figures, sppnet.report.html, sppnet.report.collect",
}


def multiply(study: Path, number: int, into: Path) -> None:
    """Write `number` copies of the runs of `study`, each with its own seed, and their plan into `into`."""
    cells = {cell.run: cell for cell in load_points(study)}
    originals = [path.parent for path in sorted(study.glob("*/status.json")) if path.parent.name in cells]
    copies = [_copy(run, cells[run.name], seed, into) for run, seed in _in_turn(originals, number)]
    add_points(into, copies)


def _in_turn(originals: list[Path], number: int) -> Iterator[tuple[Path, int]]:
    for i in range(number):
        yield originals[i % len(originals)], 1000 + i


def _copy(run: Path, cell: SweepPoint, seed: int, into: Path) -> SweepPoint:
    provenance: dict[str, Any] = json.loads((run / "provenance.json").read_text())
    provenance["identity"]["config"]["seed"] = seed
    new = into / f"{run.name.rsplit('-', 1)[0]}-{digest(provenance['identity'])}"
    shutil.copytree(run, new, ignore=shutil.ignore_patterns("*.ckpt"))
    (new / "provenance.json").write_text(json.dumps(provenance, indent=1))
    for path in (run / "checkpoints").glob("*.ckpt"):
        (new / "checkpoints" / path.name).symlink_to(path.absolute())
    words = tuple(sorted([*cell.setting, f"seed={seed}"]))
    return SweepPoint(words, new.name, cell.test, cell.conf, cell.row, cell.experiments)


def seconds(command: list[str], cwd: Path) -> float:
    began = time.perf_counter()
    subprocess.run(command, cwd=cwd, check=True, stdout=subprocess.DEVNULL)
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
