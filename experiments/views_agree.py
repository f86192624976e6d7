"""Each view scored out of the feature map against the same view cropped in pixels, over the test parts of runs.

`python experiments/views_agree.py RUN [RUN ...]`: of a cross-validation (`data.split.fold`) all runs are given, so that
every image is scored by a network that was not trained on it. Prints a Markdown table and keeps it, with a row per run,
in `experiments/results/views_agree*` if `--keep` is given.
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
import yaml

from sppnet.data import load_splits
from sppnet.data.views import Views
from sppnet.runs.from_checkpoint import read_checkpoint
from sppnet.runs.provenance import code_state, machine
from sppnet.training.inference import load_classifier
from sppnet.training.multi_view import Scorer
from sppnet.training.trainer import build_data, set_threads_and_filter_warnings

RESULTS = Path(__file__).parent / "results"
BESIDE = ("report", "predictions", "transfer")  # what else lies in the folder of a study
MADE_WITH = ("commit", "machine", "time")


@dataclass
class Scores:
    """Of one run's test images: softmax scores (N, V, K) of the views from both sources, and the classes (N,)."""

    from_map: np.ndarray
    from_pixels: np.ndarray
    target: np.ndarray
    seconds: tuple[float, float]  # per image
    seed: int | None = None

    def right(self, scores: np.ndarray) -> np.ndarray:
        """Whether the average of the views is right, of each image."""
        right: np.ndarray = scores.mean(1).argmax(1) == self.target
        return right


@torch.no_grad()
def score(run: Path, threads: int | None) -> Scores:
    """Score the test part of a run in the views of its configuration, both ways."""
    cfg = yaml.safe_load((run / "config.yaml").read_text())
    if threads:
        cfg["trainer"]["threads"] = threads
    set_threads_and_filter_warnings(cfg)
    sets = load_splits(cfg["data"])
    classifier = load_classifier(read_checkpoint(run / "checkpoints/best.ckpt"), cfg, sets, run).eval()
    data, size = build_data(cfg, sets), cfg["sizes"]["test"][0]
    scorers = [
        Scorer(classifier.network, Views(**{**vars(classifier.views), "source": source}), size)
        for source in ("map", "image")
    ]
    found: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    targets = []
    for batch in data.test_dataloader()[0]:
        images = [classifier.normalise(scale) for scale in (batch["image"], *batch["more"])]
        for scorer, kept in zip(scorers, found, strict=True):
            kept.append(torch.cat(scorer(images), 1).softmax(2).numpy())
        targets.append(batch["target"].numpy())
    of_map, of_pixels = (sum(scorer.seconds.values()) / scorer.images for scorer in scorers)
    return Scores(
        np.concatenate(found[0]), np.concatenate(found[1]), np.concatenate(targets), (of_map, of_pixels), cfg["seed"]
    )


def interval(differences: np.ndarray) -> tuple[float, float]:
    """Mean of paired differences over images and half its 95 % interval, in points (normal approximation)."""
    return 100 * differences.mean(), 100 * 1.96 * differences.std(ddof=1) / np.sqrt(len(differences))


def table(every: list[Scores]) -> list[str]:
    """Markdown: the averaged views both ways, then view by view."""
    of_map, of_pixels, target = (
        np.concatenate([getattr(one, name) for one in every]) for name in ("from_map", "from_pixels", "target")
    )
    whole = Scores(of_map, of_pixels, target, (0.0, 0.0))
    lines = ["| view | mean abs. difference of scores | top-1 from map | top-1 from pixels | map - pixels (points) |"]
    lines.append("|---|---|---|---|---|")
    views = [("average of all", slice(None)), *((f"view {v + 1}", slice(v, v + 1)) for v in range(of_map.shape[1]))]
    for name, which in views:
        a, b = of_map[:, which], of_pixels[:, which]
        apart = np.abs(a.mean(1) - b.mean(1)).mean()
        right_a, right_b = whole.right(a), whole.right(b)
        mean, half = interval(right_a.astype(float) - right_b)
        tops = " | ".join(f"{100 * right.mean():.2f}" for right in (right_a, right_b))
        lines.append(f"| {name} | {apart:.5f} | {tops} | {mean:+.2f} ± {half:.2f} |")
    return lines


def made_with() -> tuple[str, str, str]:
    """Commit, machine and time of a row."""
    here = machine()
    return (
        str(code_state()["commit"])[:10],
        f"{here['cores']} cores, {here['processor']}",
        time.strftime("%Y-%m-%d %H:%M"),
    )


def main() -> None:
    """Score all runs and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--keep", action="store_true", help="write experiments/results/views_agree.{md,csv}")
    arguments = parser.parse_args()
    arguments.runs = [run for run in arguments.runs if run.name not in BESIDE]
    for run in arguments.runs:
        if not (run / "checkpoints/best.ckpt").is_file():
            parser.error(f"{run} is not the directory of a run that is done")
    every = []
    for run in arguments.runs:
        every.append(score(run, arguments.threads))
        print(f"{run}: {len(every[-1].target)} images", file=sys.stderr)
    images = sum(len(one.target) for one in every)
    per_image = [np.mean([one.seconds[way] for one in every]) for way in (0, 1)]
    lines = [
        f"{images} images out of fold; ±: half the 95 % interval of the paired difference over images.",
        f"Seconds per image: {per_image[0]:.4f} from the map, {per_image[1]:.4f} from pixels"
        f" ({per_image[1] / per_image[0]:.1f} times as long).",
        "",
        *table(every),
    ]
    print("\n".join(lines))
    if arguments.keep:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "views_agree.md").write_text("\n".join(lines) + "\n")
        with (RESULTS / "views_agree.csv").open("w", newline="") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(
                [*("run", "seed", "images", "top1_map", "top1_pixels", "seconds_map", "seconds_pixels"), *MADE_WITH]
            )
            for run, one in zip(arguments.runs, every, strict=True):
                tops = [round(float(one.right(scores).mean()), 6) for scores in (one.from_map, one.from_pixels)]
                seconds = [round(s, 6) for s in one.seconds]
                rows.writerow([run.name, one.seed, len(one.target), *tops, *seconds, *made_with()])


if __name__ == "__main__":
    main()
