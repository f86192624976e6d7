"""`sppnet test` starts from a run's configuration, whatever was typed or set in files when it was trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from calling import SMALL, Called, Caller


@pytest.fixture
def run(sppnet: Caller, tmp_path: Path) -> Called:
    """A run with keys and options of its own: typed, in a study's file, and in an option file of a nested group."""
    for label in "ab":
        (tmp_path / "photos" / label).mkdir(parents=True)
        for number in range(12):
            image = np.random.default_rng(number).integers(0, 255, (30, 40, 3), dtype=np.uint8)
            Image.fromarray(image).save(tmp_path / f"photos/{label}/{number}.png")
    (tmp_path / "mine/data/crop").mkdir(parents=True)
    (tmp_path / "mine/data/crop/mild.yaml").write_text("name: random_resized\nscale: [0.5, 1.0]\nratio: [1.0, 1.0]\n")
    words = ("data=folder", "data.root=photos", "data.num_workers=0", "data.batch_size=8", "data/crop=mild")
    done = sppnet("train", "--config-dir", "mine", *SMALL, *words, "views=ten", "views.scales=[256,280]")
    assert done.code == 0, done.err
    return done


def test_another_alternative_replaces_that_of_the_run(sppnet: Caller, run: Called) -> None:
    """The keys of the run's ten views, which the whole image lacks, are no obstacle; nor is a missing option file."""
    done = sppnet("test", f"checkpoint={run.run}", "views=full", "views.aspect_step=0.25")
    assert done.code == 0, done.err
    same = sppnet("test", f"checkpoint={run.run}", "views=ten", "views.scales=[256,280]")
    assert same.figure("test/loss") == run.figure("test/loss")
    other = sppnet("test", f"checkpoint={run.run}", "data=digits")  # which has no data.root
    assert "none of the 2 classes that the network was trained on" in other.err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["data=digits", "data.root=photos"], "unknown key data.root"),
        (["views=full", "views.scales=[256]"], "unknown key views.scales"),
        (["+callbacks.x._target_=lightning.pytorch.callbacks.Timer"], "callbacks.x"),
        (["+backbone.depth.a=1"], "backbone.depth={'a': 1} is not allowed"),
        (["+logger.wandb.project=x"], "logger.wandb"),
        (["trainer.strategy=ddp"], "trainer.strategy=ddp is not allowed: the checkpoint was trained with auto"),
        (["trainer.threads=2"], "it is now called compute.num_threads"),
        (["trainer.limit_test_batches=0.01"], "batches, so none is used"),
        (["data.fit=full"], "data.fit=full is not allowed"),
        (["seed=1", "views=full"], "seed=1 is not allowed"),
    ],
)
def test_what_cannot_be_obeyed_is_refused(sppnet: Caller, trained: Called, words: list[str], expected: str) -> None:
    checkpoint = trained.run
    done = sppnet("test", f"checkpoint={checkpoint}", *words)
    assert done.code == 2, (done.out, done.err)
    assert expected in done.err.splitlines()[-1]


def test_the_code_of_a_plugin_in_a_list_is_part_of_the_identity(
    sppnet: Caller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    code = "from lightning.pytorch.plugins import TorchSyncBatchNorm\n\nclass Mine(TorchSyncBatchNorm):\n    pass\n"
    runs = []
    for comment in ("", "# changed\n"):
        (tmp_path / "own_plugin.py").write_text(code + comment)
        done = sppnet("train", *SMALL, "allow=own_plugin", "trainer.plugins=[{_target_: own_plugin.Mine}]")
        assert done.code == 0, done.err
        runs.append(done.run)
    assert runs[0] != runs[1]
