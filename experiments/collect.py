"""A study's runs as evidence: a CSV with a row per run, a Markdown table over seeds, and a figure.

`python experiments/collect.py runs/STUDY --by head.name [--keep]`: rows are the values of the keys in `--by`; each is
the mean over seeds with its standard deviation; of every pair of rows the difference, paired by seed, with its 95 %
interval. With `--transfer` instead of `--by` the rows are those of `sppnet transfer`, over splits.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from scipy.stats import t  # type: ignore[import-untyped]

from sppnet.transfer.table import lines as transfer_lines

RESULTS = Path(__file__).parent / "results"
Row = dict[str, Any]
Group = dict[int, Row]  # by seed


def look_up(cfg: Any, key: str) -> str:
    """The value of a dotted key, as text; lists without blanks, classes without their modules."""
    for part in key.split("."):
        cfg = cfg[part]
    return str(cfg).rpartition(".")[2] if key.endswith("_target_") else str(cfg).replace(" ", "")


def read(run: Path, by: Sequence[str]) -> Row:
    """One run: what it is, what made it, and its figures."""
    cfg = yaml.safe_load((run / "config.yaml").read_text())
    last = json.loads((run / "provenance.json").read_text())["starts"][-1]
    return {
        "run": run.name,
        "row": " ".join(look_up(cfg, key) for key in by),
        "seed": cfg["seed"],
        "commit": str(last["code"]["commit"])[:10] + ("+changes" if last["code"]["dirty"] else ""),
        "machine": f"{last['machine']['cores']} cores, {last['machine']['processor']}",
        "time": last["time"],
        **json.loads((run / "summary.json").read_text()),
    }


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation, in percent."""
    return f"{100 * np.mean(values):.2f} ± {100 * np.std(values, ddof=1):.2f}"


def paired(one: Group, other: Group, figure: str) -> str:
    """The difference of two rows, paired by seed, with half its 95 % interval (Student's t), in points."""
    both = sorted(one.keys() & other.keys())
    apart = 100 * np.array([one[seed][figure] - other[seed][figure] for seed in both])
    half = t.ppf(0.975, len(both) - 1) * apart.std(ddof=1) / np.sqrt(len(both))
    return f"{apart.mean():+.2f} ± {half:.2f}"


def table(groups: Mapping[str, Group], figures: Sequence[str]) -> list[str]:
    """Markdown: rows over seeds, then pairs of rows."""
    head = "".join(f" {figure.removeprefix('test/')} |" for figure in figures)
    lines = [f"| | seeds |{head} seconds |", f"|---|---|{'---|' * len(figures)}---|"]
    for name, group in groups.items():
        cells = "".join(f" {spread([row[figure] for row in group.values()])} |" for figure in figures)
        lines.append(f"| {name} | {len(group)} |{cells} {np.mean([row['seconds'] for row in group.values()]):.0f} |")
    lines += ["", f"| difference, paired by seed |{head}", f"|---|{'---|' * len(figures)}"]
    for one, other in combinations(groups, 2):
        cells = "".join(f" {paired(groups[one], groups[other], figure)} |" for figure in figures)
        lines.append(f"| {one} - {other} |{cells}")
    return lines


def draw(dots: Mapping[str, Mapping[str, list[float]]], where: Path) -> None:
    """Every value as a dot, the mean of a row as a bar; a panel for each figure of `dots`."""
    from matplotlib.figure import Figure

    rows = max(map(len, dots.values()))
    drawing = Figure(figsize=(1.2 + (0.6 + 0.35 * rows) * len(dots), 3.2), layout="constrained")
    axes = drawing.subplots(1, len(dots), sharey=True, squeeze=False)[0]
    for axis, (figure, values_of) in zip(axes, dots.items(), strict=True):
        for place, values in enumerate(values_of.values()):
            percent = [100 * value for value in values]
            axis.plot([place] * len(percent), percent, "o", color="tab:blue", alpha=0.5, markersize=4)
            axis.plot([place - 0.25, place + 0.25], [np.mean(percent)] * 2, color="black")
        axis.set_xticks(range(len(values_of)), list(values_of), rotation=40, ha="right", fontsize=7)
        axis.set_xlim(-0.6, len(values_of) - 0.4)
        axis.set_title(figure, fontsize=8)
    axes[0].set_ylabel("%")
    drawing.savefig(where, metadata={"Date": None})


def keep(name: str, lines: Sequence[str], rows: Sequence[Row], dots: Mapping[str, Mapping[str, list[float]]]) -> None:
    """Write `experiments/results/NAME.md`, `.csv` and `.svg`."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text("\n".join(lines) + "\n")
    draw(dots, RESULTS / f"{name}.svg")
    with (RESULTS / f"{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def collect_transfer(study: Path, kept: bool) -> None:
    """The rows of `sppnet transfer` in a study: what it prints itself, and each row with what made it."""
    found = [json.loads(path.read_text()) for path in sorted((study / "transfer").glob("*.json"))]
    found.sort(key=lambda one: -one["figures"]["accuracy"])
    lines = ["```", *list(transfer_lines(found[0], found))[2:], "```"]
    print("\n".join(lines))
    rows = [
        {
            **{"row": one["hash"], **one["row"], **one["figures"], "seed": one["seed"], "commit": one["commit"][:10]},
            "machine": f"{one['machine']['cores']} cores, {one['machine']['processor']}",
            "time": one["time"],
            **{f"seconds_{name}": value for name, value in one["seconds"].items()},
        }
        for one in found
    ]
    dots = {
        f"{one['row']['layer']} {one['row']['view']}": [split["accuracy"] for split in one["splits"]] for one in found
    }
    if kept:
        keep(study.name, lines, rows, {"mean accuracy of the classes": dots})


def main() -> None:
    """Read the study, print its table and keep what it came from."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path)
    parser.add_argument("--by", nargs="+", default=[])
    parser.add_argument("--transfer", action="store_true")
    parser.add_argument("--figures", nargs="+", default=["test/top1"])
    parser.add_argument("--keep", action="store_true", help="write experiments/results/STUDY.{csv,md,svg}")
    arguments = parser.parse_args()
    if arguments.transfer:
        collect_transfer(arguments.study, arguments.keep)
        return
    rows = [read(path.parent, arguments.by) for path in sorted(arguments.study.glob("*/summary.json"))]
    groups: dict[str, Group] = {}
    for row in sorted(rows, key=lambda row: (row["row"], row["seed"])):
        groups.setdefault(row["row"], {})[row["seed"]] = row
    lines = table(groups, arguments.figures)
    print("\n".join(lines))
    dots = {
        figure.removeprefix("test/"): {name: [row[figure] for row in group.values()] for name, group in groups.items()}
        for figure in arguments.figures
    }
    if arguments.keep:
        keep(arguments.study.name, lines, rows, dots)


if __name__ == "__main__":
    main()
