"""Compares views pooled from the feature map with the same views cropped from the image, on the test images of runs.

Usage: `python experiments/views_agree.py RUN [RUN ...]`. Give all runs of a cross-validation (`data.split.fold`), so
that every image is scored by a network that was not trained on it. The script prints a Markdown table. `--keep` also
writes the table, and a CSV file with a line per run, to `experiments/results/views_agree*`.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from sppnet.config.load import load, replace
from sppnet.config.schema import Config
from sppnet.data import load_splits
from sppnet.data.views import Views
from sppnet.runs.checkpoint_files import load_stored_config, read_checkpoint
from sppnet.runs.provenance import code_state, machine
from sppnet.training.inference import load_classifier
from sppnet.training.multi_view import Scorer
from sppnet.training.trainer import build_data, set_threads_and_filter_warnings

RESULTS = Path(__file__).parent / "results"
NOT_RUNS = ("report", "predictions", "transfer")  # folders of a study that are not run directories
PROVENANCE_COLUMNS = ("commit", "machine", "time")


@dataclass
class Scores:
    """Softmax scores (N, V, K) of a run's N test images in V views for K classes, and the true classes (N,)."""

    from_map: np.ndarray
    from_pixels: np.ndarray
    target: np.ndarray
    seconds: tuple[float, float]  # seconds per image, from the map and from pixels
    seed: int | None = None

    def is_correct(self, scores: np.ndarray) -> np.ndarray:
        """Whether the class with the highest mean score over the views is correct, for each image (N,)."""
        correct: np.ndarray = scores.mean(1).argmax(1) == self.target
        return correct


@torch.no_grad()
def score_run(run: Path, threads: int | None) -> Scores:
    """Score a run's test images in the views of its configuration, once from the feature map and once from pixels."""
    cfg = load(Config, load_stored_config(run))
    if threads:
        cfg = replace(cfg, {"compute.num_threads": threads})
    set_threads_and_filter_warnings(cfg)
    sets = load_splits(cfg.data)
    classifier = load_classifier(read_checkpoint(run / "checkpoints/best.ckpt"), cfg, sets, run).eval()
    data, size = build_data(cfg, sets), cfg.sizes.test[0]
    scorers = [
        Scorer(classifier.network, Views(**{**vars(classifier.views), "source": source}), size)
        for source in ("map", "image")
    ]
    scores: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    targets = []
    for batch in data.test_dataloader()[0]:
        images = [classifier.normalise(scale) for scale in (batch["image"], *batch["more"])]
        for scorer, batches in zip(scorers, scores, strict=True):
            batches.append(torch.cat(scorer(images), 1).softmax(2).numpy())
        targets.append(batch["target"].numpy())
    map_seconds, pixel_seconds = (sum(scorer.seconds.values()) / scorer.images for scorer in scorers)
    from_map, from_pixels = (np.concatenate(batches) for batches in scores)
    return Scores(from_map, from_pixels, np.concatenate(targets), (map_seconds, pixel_seconds), cfg.seed)


def interval(differences: np.ndarray) -> tuple[float, float]:
    """The mean of per-image differences and the half-width of its 95 % interval (normal approximation), in points."""
    return 100 * differences.mean(), 100 * 1.96 * differences.std(ddof=1) / np.sqrt(len(differences))


def markdown_table(runs: list[Scores]) -> list[str]:
    """The lines of the table: first the average of all views, then each view."""
    of_map, of_pixels, target = (
        np.concatenate([getattr(run, name) for run in runs]) for name in ("from_map", "from_pixels", "target")
    )
    pooled = Scores(of_map, of_pixels, target, (0.0, 0.0))
    lines = ["| view | mean abs. difference of scores | top-1 from map | top-1 from pixels | map - pixels (points) |"]
    lines.append("|---|---|---|---|---|")
    views = [("average of all", slice(None)), *((f"view {v + 1}", slice(v, v + 1)) for v in range(of_map.shape[1]))]
    for name, which in views:
        a, b = of_map[:, which], of_pixels[:, which]
        difference = np.abs(a.mean(1) - b.mean(1)).mean()
        correct_a, correct_b = pooled.is_correct(a), pooled.is_correct(b)
        mean, half = interval(correct_a.astype(float) - correct_b)
        top1 = " | ".join(f"{100 * correct.mean():.2f}" for correct in (correct_a, correct_b))
        lines.append(f"| {name} | {difference:.5f} | {top1} | {mean:+.2f} ± {half:.2f} |")
    return lines


def provenance_columns() -> tuple[str, str, str]:
    """The commit, machine and time, for a line of the CSV file."""
    this_machine = machine()
    return (
        str(code_state()["commit"])[:10],
        f"{this_machine['cores']} cores, {this_machine['processor']}",
        time.strftime("%Y-%m-%d %H:%M"),
    )


def main() -> None:
    """Score all runs and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--keep", action="store_true", help="write experiments/results/views_agree.{md,csv}")
    arguments = parser.parse_args()
    arguments.runs = [run for run in arguments.runs if run.name not in NOT_RUNS]
    for path in arguments.runs:
        if not (path / "checkpoints/best.ckpt").is_file():
            parser.error(f"{path} is not the directory of a finished run")
    runs: list[Scores] = []
    for path in arguments.runs:
        runs.append(score_run(path, arguments.threads))
        print(f"{path}: {len(runs[-1].target)} images", file=sys.stderr)
    images = sum(len(run.target) for run in runs)
    per_image = [np.mean([run.seconds[source] for run in runs]) for source in (0, 1)]
    lines = [
        f"{images} out-of-fold images; ± is half the 95 % interval of the paired difference over images.",
        f"Seconds per image: {per_image[0]:.4f} from the map, {per_image[1]:.4f} from pixels"
        f" ({per_image[1] / per_image[0]:.1f} times as long).",
        "",
        *markdown_table(runs),
    ]
    print("\n".join(lines))
    if arguments.keep:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "views_agree.md").write_text("\n".join(lines) + "\n")
        with (RESULTS / "views_agree.csv").open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(
                [
                    *("run", "seed", "images", "top1_map", "top1_pixels", "seconds_map", "seconds_pixels"),
                    *PROVENANCE_COLUMNS,
                ]
            )
            for path, run in zip(arguments.runs, runs, strict=True):
                top1 = [round(float(run.is_correct(scores).mean()), 6) for scores in (run.from_map, run.from_pixels)]
                seconds = [round(s, 6) for s in run.seconds]
                writer.writerow([path.name, run.seed, len(run.target), *top1, *seconds, *provenance_columns()])


if __name__ == "__main__":
    main()
