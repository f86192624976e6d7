"""`sppnet bench`: how fast this is on this machine, beside what one would use otherwise."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table

from sppnet.commands import hydra_app
from sppnet.config import schema
from sppnet.config.compose import Job
from sppnet.config.validators import FLAG, TEXT, Rule, choice, list_of, or_null, whole
from sppnet.errors import UserError
from sppnet.report.output_paths import check_writable
from sppnet.runs.provenance import code, machine, packages

if TYPE_CHECKING:
    from sppnet.benchmarks.measurement import Row, Setting

GROUPS = {  # name: module and function of sppnet.benchmarks, what is measured
    "layer": ("pooling_layer", "measure", "the pyramid pooling layer"),
    "loading": ("loading", "measure", "from JPEG to a batch of crops"),
    "views": ("views", "measure", "a test in ten and in 96 views"),
    "windows": ("windows", "measure", "2,000 windows of one photograph"),
    "step": ("training_step", "measure", "a training step under the Trainer"),
    "throughput": ("throughput", "measure", "images a second on a GPU"),
    "compile": ("compiled", "measure", "several sizes under torch.compile"),
    "start": ("startup", "starting", "the time to the first training step"),
    "sweep": ("startup", "sweeping", "a sweep on one machine"),
}
RULES: Mapping[str, Rule] = {
    "only": or_null(list_of(choice(*GROUPS), distinct=True)),
    "accelerator": choice("auto", "cpu", "gpu"),
    "threads": whole(1, 1024),
    "photographs": or_null(TEXT),
    "quick": FLAG,
    "output": or_null(TEXT),
}
PACKAGES = ("torch", "torchvision", "lightning", "hydra-core", "numpy", "pillow")


def main(words: Sequence[str]) -> None:
    """Compose `conf/bench.yaml` and measure what it asks for."""
    hydra_app.run("bench", words, bench)


def bench(job: Job) -> None:
    """Measure, print the table, and write it where `output` says.

    Raises:
        UserError: a value is not allowed, the accelerator or the photographs are not there, or `output` is no place.
    """
    cfg = dict(job.cfg)
    own = schema.take(cfg, RULES)
    if cfg:
        raise UserError(f"unknown key {next(iter(cfg))}; sppnet bench has {', '.join(RULES)}")
    output = None if own["output"] is None else Path(own["output"]).expanduser()
    if output is not None:
        check_writable(output)  # before minutes are spent on what it is for
    import torch

    gpu = torch.cuda.is_available()
    if own["accelerator"] == "gpu" and not gpu:
        raise UserError("accelerator=gpu: torch sees no GPU here; use accelerator=cpu or auto")
    device = torch.device("cuda" if gpu and own["accelerator"] != "cpu" else "cpu")
    torch.set_num_threads(own["threads"])
    console = Console(width=shutil.get_terminal_size().columns if sys.stdout.isatty() else 240, highlight=False)
    with tempfile.TemporaryDirectory(prefix="sppnet-bench-") as scratch:
        from sppnet.benchmarks.measurement import Setting

        folders = _photographs(own["photographs"], Path(scratch))
        setting = Setting(device, own["threads"], folders, Path(scratch), own["quick"])
        began, rows, name = time.monotonic(), [], _name(device.type)
        for group in own["only"] or GROUPS:
            for row in _measured(group, setting):
                rows.append(row)
                print(f"sppnet bench: {row.what}: {_value(row)}", file=sys.stderr, flush=True)
                if output is not None:  # what is measured is kept if this is stopped
                    _write(output, f"{name}.partial", rows, own["threads"], time.monotonic() - began, device.type)
        seconds = time.monotonic() - began
        if output is not None and rows:  # an older result is there until this one is whole
            for suffix in ("json", "md"):
                (output / f"{name}.partial.{suffix}").replace(output / f"{name}.{suffix}")
    console.print(_table(rows))
    console.print(_where(device.type, own["threads"], seconds))
    if output is not None and rows:
        print(f"written: {output / name}.json, {output / name}.md")


def _measured(group: str, setting: Setting) -> Iterator[Row]:
    module, function, _ = GROUPS[group]
    measure: Callable[[Setting], Iterator[Row]] = getattr(import_module(f"sppnet.benchmarks.{module}"), function)
    yield from measure(setting)


def _photographs(given: str | None, scratch: Path) -> dict[str, Path]:
    """The folder of photographs by its name: the one that is given, `$SPPNET_DATA/caltech20`, or scikit-learn's two."""
    usual = Path(os.environ.get("SPPNET_DATA", ""), "caltech20")
    if given is None and not (os.environ.get("SPPNET_DATA") and usual.is_dir()):
        from sppnet.benchmarks.loading import two_photographs

        print("sppnet bench: no photographs here (photographs=FOLDER): parts of scikit-learn's two", file=sys.stderr)
        return {"scikit-learn": two_photographs(scratch / "two")}
    folder = usual if given is None else Path(given).expanduser()
    if not folder.is_dir() or not any(folder.glob("*/*.jpg")):
        raise UserError(f"photographs={folder} must be a folder of CLASS/IMAGE.jpg")
    return {folder.name: folder.resolve()}


def _value(row: Row) -> str:
    return f"{row.value:.3g} ({'at most' if row.most else 'at least'} {row.target:g}: {_verdict(row)})"


def _verdict(row: Row) -> str:
    return "reached" if row.reached else "falls short"


def _time(row: Row, value: float) -> str:
    if math.isnan(value):
        return ""
    if row.unit == "graphs":
        return f"{value:.0f}"
    return f"{value:.3g} s" if value >= 1 else f"{value * 1e3:.3g} ms"


def _cells(row: Row) -> list[str]:
    times = (_time(row, row.ours), _time(row, row.theirs))
    target = f"{'at most' if row.most else 'at least'} {row.target:g}"
    return [row.what, row.against, *times, f"{row.value:.3g}", target, _verdict(row), row.limit]


HEADS = ("what", "against", "ours", "theirs", "value", "target", "", "of it")


def _table(rows: Sequence[Row]) -> Table:
    table = Table(box=box.SIMPLE, show_edge=False)
    for head in HEADS:
        table.add_column(head, justify="right" if head in ("ours", "theirs", "value") else "left")
    for row in rows:
        table.add_row(*_cells(row), style=None if row.reached else "yellow")
    return table


def _where(device: str, threads: int, seconds: float) -> str:
    here, versions = machine(), packages()
    card = f", {', '.join(here['gpus'])}" if device == "cuda" else ""
    named = ", ".join(f"{name} {versions[name]}" for name in PACKAGES if name in versions)
    commit = code()["commit"]
    made = f"commit {commit[:10]}{' and what is not committed' if code()['dirty'] else ''}" if commit else "no checkout"
    what = (
        f"{here['processor']}, {here['cores']} cores, {threads} threads{card}; Python {here['python']}, {named}; {made}"
    )
    return f"{what}; {time.strftime('%Y-%m-%d')}; {seconds / 60:.1f} min"


def _write(folder: Path, name: str, rows: Sequence[Row], threads: int, seconds: float, device: str) -> None:
    """`NAME.json` with everything, and `NAME.md` with the table."""
    folder.mkdir(parents=True, exist_ok=True)
    versions = {package: packages().get(package) for package in PACKAGES}
    made: dict[str, Any] = {
        "machine": machine() | {"host": None},
        "threads": threads,
        "packages": versions,
        "commit": code()["commit"],
        "dirty": bool(code()["dirty"]),
        "date": time.strftime("%Y-%m-%d"),
        "seconds": round(seconds, 1),
        "rows": [{**asdict(row), "reached": row.reached} for row in rows],
    }
    text = json.dumps(made, indent=1).replace("NaN", "null")
    (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    lines = [f"| {' | '.join(HEADS)} |", "|---" * len(HEADS) + "|"]
    lines += [f"| {' | '.join(_cells(row))} |" for row in rows]
    (folder / f"{name}.md").write_text("\n".join([*lines, "", _where(device, threads, seconds), ""]), encoding="utf-8")


def _name(device: str) -> str:
    return f"bench_{'gpu' if device == 'cuda' else 'cpu'}"
