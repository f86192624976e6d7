"""`sppnet bench`: compare the speed of sppnet on this machine with that of the usual alternatives."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table

from sppnet.commands import hydra_app
from sppnet.config.command_schemas import BenchConfig
from sppnet.config.compose import Job
from sppnet.errors import UserError
from sppnet.report.output_paths import check_writable
from sppnet.runs.provenance import code_state, machine, packages

if TYPE_CHECKING:
    from sppnet.benchmarks.measurement import Row, Setting

GROUPS = {  # group name: module in sppnet.benchmarks, function in that module, and what the group measures
    "layer": ("pooling_layer", "measure", "the pyramid pooling layer"),
    "loading": ("loading", "measure", "from JPEG to a batch of crops"),
    "views": ("views", "measure", "a test with ten views and with 96"),
    "windows": ("windows", "measure", "2,000 windows of one photograph"),
    "step": ("training_step", "measure", "a training step under the Trainer"),
    "throughput": ("throughput", "measure", "images per second on a GPU"),
    "compile": ("compiled", "measure", "several sizes under torch.compile"),
    "export": ("export", "measure", "exported networks in ONNX Runtime"),
    "start": ("startup", "measure_startup", "the time to the first training step"),
    "sweep": ("startup", "measure_sweep", "a sweep on one machine"),
}
PACKAGES = ("torch", "torchvision", "lightning", "hydra-core", "numpy", "pillow")
COLUMNS = ("what", "against", "ours", "theirs", "value", "target", "", "details")


def main(words: Sequence[str]) -> None:
    hydra_app.run("bench", words, bench)


def bench(job: Job[BenchConfig]) -> None:
    """Run the benchmarks, print a table of the results and write it to the folder `output`.

    Raises:
        UserError: the accelerator or the photographs are missing, or `output` is not writable.
    """
    cfg = job.cfg
    output = None if cfg.output is None else Path(cfg.output).expanduser()
    if output is not None:
        check_writable(output)  # checked first, so that minutes of measurements are not lost
    import torch

    gpu = torch.cuda.is_available()
    if cfg.accelerator == "gpu" and not gpu:
        raise UserError("accelerator=gpu: torch sees no GPU here; use accelerator=cpu or auto")
    device = torch.device("cuda" if gpu and cfg.accelerator != "cpu" else "cpu")
    torch.set_num_threads(cfg.num_threads)
    console = Console(width=shutil.get_terminal_size().columns if sys.stdout.isatty() else 240, highlight=False)
    with tempfile.TemporaryDirectory(prefix="sppnet-bench-") as scratch:
        from sppnet.benchmarks.measurement import Setting

        folders = _photographs(cfg.photographs, Path(scratch))
        setting = Setting(device, cfg.num_threads, folders, Path(scratch), cfg.quick)
        name = f"bench_{'gpu' if device.type == 'cuda' else 'cpu'}"
        began, rows = time.monotonic(), []
        for group in cfg.only or GROUPS:
            for row in _measure(group, setting):
                rows.append(row)
                print(f"sppnet bench: {row.what}: {_format_value(row)}", file=sys.stderr, flush=True)
                if output is not None:  # written after each row, so that an interruption loses no finished rows
                    _write(output, f"{name}.partial", rows, cfg.num_threads, time.monotonic() - began, device.type)
        seconds = time.monotonic() - began
        if output is not None and rows:  # only a complete result replaces an older one
            for suffix in ("json", "md"):
                (output / f"{name}.partial.{suffix}").replace(output / f"{name}.{suffix}")
    console.print(_build_table(rows))
    console.print(_describe_machine(device.type, cfg.num_threads, seconds))
    if output is not None and rows:
        print(f"written: {output / name}.json, {output / name}.md")


def _measure(group: str, setting: Setting) -> Iterator[Row]:
    module, function, _ = GROUPS[group]
    measure: Callable[[Setting], Iterator[Row]] = getattr(import_module(f"sppnet.benchmarks.{module}"), function)
    yield from measure(setting)


def _photographs(typed: str | None, scratch: Path) -> dict[str, Path]:
    """Return the folder of photographs as `{name: folder}`.

    The default is `$SPPNET_DATA/caltech20`. If the user typed no folder and the default does not exist, a folder in
    `scratch` is filled with crops of the two photographs that scikit-learn includes.
    """
    default = Path(os.environ.get("SPPNET_DATA", ""), "caltech20")
    if typed is None and not (os.environ.get("SPPNET_DATA") and default.is_dir()):
        from sppnet.benchmarks.loading import write_sample_photographs

        print(
            "sppnet bench: photographs=FOLDER is not set; using crops of the two photographs in scikit-learn",
            file=sys.stderr,
        )
        return {"scikit-learn": write_sample_photographs(scratch / "two")}
    folder = default if typed is None else Path(typed).expanduser()
    if not folder.is_dir() or not any(folder.glob("*/*.jpg")):
        raise UserError(f"photographs={folder} must be a folder of CLASS/IMAGE.jpg files")
    return {folder.name: folder.resolve()}


def _format_value(row: Row) -> str:
    return f"{row.value:.3g} ({_format_target(row)}: {_verdict(row)})"


def _format_target(row: Row) -> str:
    return f"{'at most' if row.most else 'at least'} {row.target:g}"


def _verdict(row: Row) -> str:
    return "reached" if row.reached else "falls short"


def _format_time(row: Row, value: float) -> str:
    if math.isnan(value):
        return ""
    if row.unit == "graphs":
        return f"{value:.0f}"
    return f"{value:.3g} s" if value >= 1 else f"{value * 1e3:.3g} ms"


def _columns(row: Row) -> list[str]:
    times = (_format_time(row, row.ours), _format_time(row, row.theirs))
    return [row.what, row.against, *times, f"{row.value:.3g}", _format_target(row), _verdict(row), row.limit]


def _build_table(rows: Sequence[Row]) -> Table:
    table = Table(box=box.SIMPLE, show_edge=False)
    for column in COLUMNS:
        table.add_column(column, justify="right" if column in ("ours", "theirs", "value") else "left")
    for row in rows:
        table.add_row(*_columns(row), style=None if row.reached else "yellow")
    return table


def _describe_machine(device: str, threads: int, seconds: float) -> str:
    """Return the line that is printed below the table: machine, package versions, commit, date and duration."""
    here, versions = machine(), packages()
    card = f", {', '.join(here['gpus'])}" if device == "cuda" else ""
    installed = ", ".join(f"{name} {versions[name]}" for name in PACKAGES if name in versions)
    commit = code_state()["commit"]
    uncommitted = " and uncommitted changes" if code_state()["dirty"] else ""
    source = f"commit {commit[:10]}{uncommitted}" if commit else "no checkout"
    return (
        f"{here['processor']}, {here['cores']} cores, {threads} threads{card}; Python {here['python']}, {installed};"
        f" {source}; {time.strftime('%Y-%m-%d')}; {seconds / 60:.1f} min"
    )


def _write(folder: Path, name: str, rows: Sequence[Row], threads: int, seconds: float, device: str) -> None:
    """Write `NAME.json` with all details and `NAME.md` with the table."""
    folder.mkdir(parents=True, exist_ok=True)
    versions = {package: packages().get(package) for package in PACKAGES}
    record: dict[str, Any] = {
        "machine": machine() | {"host": None},
        "threads": threads,
        "packages": versions,
        "commit": code_state()["commit"],
        "dirty": bool(code_state()["dirty"]),
        "date": time.strftime("%Y-%m-%d"),
        "seconds": round(seconds, 1),
        "rows": [{**asdict(row), "reached": row.reached} for row in rows],
    }
    text = json.dumps(record, indent=1).replace("NaN", "null")
    (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    lines += [f"| {' | '.join(_columns(row))} |" for row in rows]
    note = _describe_machine(device, threads, seconds)
    (folder / f"{name}.md").write_text("\n".join([*lines, "", note, ""]), encoding="utf-8")
