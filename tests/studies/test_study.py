"""Which overrides tell the points of a sweep apart."""

from __future__ import annotations

import pytest

from sppnet.studies.study import identifying_overrides

ALWAYS = (
    *(
        "seed=1",
        "pooling=gap",
        "pooling.bins=[2,1]",
        "pyramid=l1_1",
        "data/crop=random_resized",
        "optim/schedule=plateau",
    ),
    *("sizes.test=[20]", "views=full", "loss=bce", "compute.num_threads=1", "debug=fast", "callbacks.a.x=1", "mine=x"),
)
SWEPT = (
    *("name=a", "logger=wandb", "logger.wandb.project=p", "data.root=photos", "data.num_workers=0", "data.cache=true"),
    *("pooling.kernel=plain", "progress=none", "trainer.accelerator=cpu", "checkpointing.every_n_steps=3"),
)
NEVER = (
    *("experiments=heads", "launch=slurm", "hydra/launcher=x", "study=mine", "paths.runs=elsewhere", "force=true"),
    *("retry=all", "report.figure=bins"),
)


@pytest.mark.parametrize("override", [*ALWAYS, *SWEPT, *NEVER])
def test_the_schema_says_which_overrides_identify_a_point(override: str) -> None:
    swept, shared = identifying_overrides([override], []), identifying_overrides([override], [override])
    assert swept == (() if override in NEVER else (override,))
    assert shared == ((override,) if override in ALWAYS else ())


def test_an_argument_of_an_own_class_identifies_a_point_whatever_it_is_called() -> None:
    words = ["pooling=mine", "+pooling.kernel=2"]
    assert identifying_overrides(words, words) == ("pooling.kernel=2", "pooling=mine")
    ours = ["pooling=spp", "pooling.kernel=plain"]
    assert identifying_overrides(ours, ours) == ("pooling=spp",)


def test_an_added_argument_identifies_a_point_however_it_is_typed() -> None:
    for typed in ("trainer.val_check_interval=1", "+trainer.val_check_interval=1", "++trainer.val_check_interval=1"):
        assert identifying_overrides([typed, "seed=0"], []) == ("seed=0", "trainer.val_check_interval=1")
